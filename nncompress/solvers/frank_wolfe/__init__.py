"""Stochastic Frank-Wolfe: training within convex sets."""
