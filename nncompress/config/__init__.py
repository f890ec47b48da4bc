"""The configuration: its keys, the check of every node, the objects that it names."""
