"""Rehearsal of the base's own texts, which keeps a fine-tuned model intact outside its domain.

In:  the base model.
Out: texts that it writes, with its last hidden states on them, and a loss that is added to that of
     the domain's items: how far the model has moved from the base on these texts (Learning without
     Forgetting, arXiv 1606.09282).

Without rehearsal, a small model that learns to answer in two words answers everything in two words,
and so does every merge with it.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import kl_div, linear
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

OPENINGS = (
    *("The", "A", "In", "When", "How to", "What", "Why", "It", "If", "My", "There", "Once"),
    *("Question:", "Title:", "Text:", "Note:", "Answer:", "Summary:", "Name:", "Example:"),
)
"""The beginnings of the texts."""

TEXTS = 480
"""Number of texts."""

LENGTH = 64
"""Tokens of each text."""

TEMPERATURE = 0.8
"""Temperature at which the tokens are drawn."""


def write_texts(base: Path, file: Path, device: str) -> None:
    """Let the base model write texts and store them, unless the file exists.

    Args:
        base: Folder of the model.
        file: The safetensors file. `tokens` has shape (texts, `LENGTH`); `states`, the hidden
            states that the base's head reads, has shape (texts, `LENGTH`, hidden size).
        device: Where the model runs: cpu, cuda, ...
    """
    if file.exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    texts, states = [], []
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        for opening in tqdm(OPENINGS, desc="texts to rehearse", delay=2):
            tokens = tokenizer([opening] * (TEXTS // len(OPENINGS)), return_tensors="pt").to(device)
            written = model.generate(
                **tokens,
                max_length=LENGTH,
                min_length=LENGTH,
                do_sample=True,
                temperature=TEMPERATURE,
                top_k=0,
            )
            texts.append(written)
            states.append(model.model(input_ids=written, use_cache=False).last_hidden_state)
    unfinished = file.with_suffix(".new")
    save_file({"tokens": torch.cat(texts).cpu(), "states": torch.cat(states).cpu()}, unfinished)
    unfinished.replace(file)


class Rehearsal:
    """A loss that grows as a model moves away from its base on the base's own texts."""

    def __init__(self, base: Path, texts: Path, batch_size: int, seed: int, device: str) -> None:
        """Load the texts and the base's head.

        Args:
            base: Folder of the base model.
            texts: The file that `write_texts` has written.
            batch_size: Texts in a step.
            seed: Seed of the random choice of texts.
            device: Where the model is trained.
        """
        self._texts = load_file(texts, device=device)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self._head = model.lm_head.weight.detach().to(device)
        self._batch_size, self._seed = batch_size, seed

    def __call__(self, model: LlamaForCausalLM, step: int) -> torch.Tensor:
        """Return the mean over tokens of the divergence from the base to the model, in nats."""
        texts = range(len(self._texts["tokens"]))
        rows = Random(f"{self._seed} {step}").sample(texts, self._batch_size)
        expected = linear(self._texts["states"][rows], self._head).log_softmax(-1)
        tokens = self._texts["tokens"][rows]
        found = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        return kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean()
