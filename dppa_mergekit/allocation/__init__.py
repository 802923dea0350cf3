"""Significance and density of every linear (paper 3.3.1, equations 1 to 5)."""
