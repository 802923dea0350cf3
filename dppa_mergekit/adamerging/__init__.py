"""AdaMerging: the weights of a merge, learned by gradient descent on prompts (paper 3.4)."""
