"""What is wrong with a recipe before a merge, or with a folder after it.

An answer takes a second: torch and mergekit are imported only to compute tensors anew, and where
the names of stored tensors do not agree.
"""
