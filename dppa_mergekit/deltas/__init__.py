"""The delta of a tensor, fine_tuned - base: chunks, keys, masks, threads and compiled passes."""
