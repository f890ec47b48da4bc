"""The papers' experiments: their protocols and published figures as data, and the command that runs them."""
