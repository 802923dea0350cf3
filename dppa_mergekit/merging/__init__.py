"""The one seam to mergekit: its hooks, its plan, header checks, the merge of a tensor."""
