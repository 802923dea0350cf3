"""Second moments of what enters a linear: observed, or estimated from its delta."""
