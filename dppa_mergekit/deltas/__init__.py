"""The delta of a tensor, fine-tuned minus base, a chunk at a time; keys, masks, threads."""
