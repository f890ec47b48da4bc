"""Sparse weights: projections and penalties, entry by entry or in groups."""
