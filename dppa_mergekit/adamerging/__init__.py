"""Weights by gradient descent on prompts (paper 3.4, AdaMerging)."""
