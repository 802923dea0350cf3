"""Partitions and their amplification (paper 3.3.2, DPA), by magnitude or at random."""
