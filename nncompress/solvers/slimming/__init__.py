"""Network slimming, proximal and with subgradients."""
