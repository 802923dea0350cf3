"""Factors and weights by evaluation (paper, Methods 1 and 2).

`factor_search` and `weight_search` are the two drivers. Both run `candidate_search`, in which a
strategy of `strategies` tries candidates in a contest of `racing`, and trials score them.
"""
