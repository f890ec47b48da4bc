"""One run, from its settings to its summary, and what is measured of the network that it leaves."""
