"""How the pruned, amplified deltas of several models become one (paper 3.4, equation 6)."""
