"""Observe what enters the linears of fine-tuned models: `mergekit-dppa activations`."""
