"""Rehearsal of the base's own texts, which keeps a fine-tuned model intact outside its domain.

In:  the base model.
Out: texts that it writes, and a loss that is added to that of the domain's items: how far the model
     has moved from the base on these texts (Learning without Forgetting, arXiv 1606.09282).

Without rehearsal, a small model that learns to answer in two words answers everything in two words,
and so does every merge with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import kl_div
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from dppa_mergekit.storage.output_files import write_whole

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
    """Let the base model write texts and store their tokens as JSON, unless the file exists.

    Args:
        base: Folder of the model.
        file: The JSON file: a list of texts, each a list of `LENGTH` token numbers.
        device: Where the model runs: cpu, cuda, ...
    """
    if file.exists():
        return
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
    texts: list[list[int]] = []
    with torch.random.fork_rng():
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
            texts += written.tolist()
    write_whole(file, json.dumps(texts))


class Rehearsal:
    """A loss that grows as a model moves away from its base on the base's own texts."""

    def __init__(self, base: Path, texts: Path, batch_size: int, seed: int, device: str) -> None:
        """Load the base model and its texts.

        Args:
            base: Folder of the base model.
            texts: The file that `write_texts` has written.
            batch_size: Texts in a step.
            seed: Seed of the random choice of texts.
            device: Where the models run.
        """
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).to(device)
        self._base: LlamaForCausalLM = model.requires_grad_(False)
        self._texts = torch.tensor(json.loads(texts.read_text(encoding="utf-8")), device=device)
        self._batch_size, self._seed = batch_size, seed

    def __call__(self, model: LlamaForCausalLM, step: int) -> torch.Tensor:
        """Return the mean over tokens of the divergence from the base to the model, in nats."""
        rows = Random(f"{self._seed} {step}").sample(range(len(self._texts)), self._batch_size)
        tokens = self._texts[rows]
        expected = self._base(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        found = model(input_ids=tokens, use_cache=False).logits.float().log_softmax(-1)
        return kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean()
