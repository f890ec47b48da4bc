"""Quantized weights: codebooks, learned or fixed, and levels."""

from nncompress.compressions.quantization.codebook import Codebook, codebook
from nncompress.compressions.quantization.codes import Coded, Quantization
from nncompress.compressions.quantization.fixed import (
    FixedCodebook,
    ScaledBinary,
    ScaledCodebook,
    ScaledTernary,
    binary,
    fixed_codebook,
    powers_of_two,
    scaled_binary,
    scaled_ternary,
    ternary,
)  # fmt: skip
from nncompress.compressions.quantization.uniform import LowPrecision, Rounded, Uniform, low_precision, uniform

__all__ = [
    "Codebook", "Coded", "FixedCodebook", "LowPrecision", "Quantization", "Rounded", "ScaledBinary",
    "ScaledCodebook", "ScaledTernary", "Uniform", "binary", "codebook", "fixed_codebook", "low_precision",
    "powers_of_two", "scaled_binary", "scaled_ternary", "ternary", "uniform",
]  # fmt: skip
