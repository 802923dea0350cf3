"""Models in memory: source models, and merges whose factors or weights change in place."""
