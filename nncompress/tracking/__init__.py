"""Where records go beside the run's own folder: TensorBoard, MLflow, Weights & Biases, or a place of yours."""

from nncompress.tracking.base import About, Tracker
from nncompress.tracking.mlflow import MLflow
from nncompress.tracking.tensorboard import TensorBoard
from nncompress.tracking.wandb import WandB

__all__ = ["About", "MLflow", "TensorBoard", "Tracker", "WandB"]
