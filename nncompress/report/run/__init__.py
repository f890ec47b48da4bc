"""The tables and plots of one run."""
