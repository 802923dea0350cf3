"""Tasks files, lm-eval, and Task-Ratios and Domain-Ratios (paper, equations 7 and 8)."""
