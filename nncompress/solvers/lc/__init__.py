"""The learning-compression algorithm, and the baselines it is compared with."""
