"""A network, a data set, a compression and a solver for nncompress, each named by its dotted path."""
