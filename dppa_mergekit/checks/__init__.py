"""Checks: what is wrong with a recipe before a merge, or with a folder after it.

Text and headers take a second, without torch or mergekit. Both are imported for mergekit's plan of
a sound recipe, and where tensors are computed again; a quick check does neither.
"""
