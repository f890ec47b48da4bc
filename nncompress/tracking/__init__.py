"""Where a run tells its records beside its own folder: TensorBoard, MLflow, Weights & Biases, or a place of yours."""
