"""The commands of `mergekit-dppa`, a module each; heavy imports are inside them."""
