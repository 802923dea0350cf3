"""What is wrong with a recipe before a merge, or with a folder after it.

None of it imports torch or mergekit, but for computing tensors anew: an answer takes a second.
"""
