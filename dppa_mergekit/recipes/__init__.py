"""Merge recipes: read, walked through, and written with other numbers."""
