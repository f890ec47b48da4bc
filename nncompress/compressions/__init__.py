"""Compressions: sets Θ with their projection Π and decompression Δ, the views of weights, and plans of tasks."""
