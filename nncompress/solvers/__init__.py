"""Solvers: how a problem is solved."""
