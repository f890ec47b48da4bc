"""The tables and plots of many runs."""
