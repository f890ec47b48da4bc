"""Networks taken apart: the layers a sample passes, channels removed, layers that keep Θ."""
