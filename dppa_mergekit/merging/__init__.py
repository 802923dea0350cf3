"""How mergekit calls this package: its hooks, its plan, header checks, the merge of a tensor."""
