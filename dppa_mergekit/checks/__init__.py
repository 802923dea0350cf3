"""Checks: what is wrong with a recipe before a merge, or with a folder after it.

A check takes a second. It imports torch and mergekit only where stored tensors differ in name
between models or filters match none, which mergekit's plan resolves, and where tensors are computed
again.
"""
