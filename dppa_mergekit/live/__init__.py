"""Models in memory: before a merge, pruned with settable factors, merged with settable weights."""
