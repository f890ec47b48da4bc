"""The compact network: Θ and the uncompressed parameters on disk, and the network rebuilt from them."""
