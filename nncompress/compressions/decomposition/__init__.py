"""Matrices and tensors of low rank."""
