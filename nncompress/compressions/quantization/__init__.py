"""Quantized weights: codebooks, learned or fixed, and levels."""
