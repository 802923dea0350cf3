"""Factors and weights by evaluation (paper, Methods 1 and 2)."""
