"""Three fine-tuned models, whose merges several files of tests compare."""

import torch

Tensors = dict[str, torch.Tensor]
MODELS = {
    "math": {"weight": 0.7, "density": 0.25, "amplify_90": 2.1, "amplify_80": 1.3},
    "law": {"weight": 0.4, "density": 0.1, "amplify_90": 1.7, "amplify_dense": 0.5},
    "bank": {"weight": -0.2, "density": 0.62, "amplify_60": 3.0, "amplify_40": 0.0},
}


def assert_equal(merged: Tensors, wanted: Tensors) -> None:
    assert merged.keys() == wanted.keys()
    unequal = [name for name in wanted if not torch.equal(merged[name], wanted[name])]
    assert unequal == []
