"""What runs and sweeps leave on disk, and reading it back. Imports no torch."""
