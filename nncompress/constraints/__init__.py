"""The convex sets of Frank-Wolfe: linear minimisation over each, and which weights get which."""
