"""Deltas of a recipe, looked at: offsets, significance, structure, overlaps."""
