"""Checkpoint files: headers, fingerprints, and tensors as mergekit reads them."""
