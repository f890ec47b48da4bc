"""nncompress: neural-network compression by optimisation. Importing the package imports nothing heavy."""

__version__ = "0.1.0"
