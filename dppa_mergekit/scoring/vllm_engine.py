"""Scoring by vLLM, through lm-eval's own model for it; needs the extra `vllm`.

Written against lm-eval 0.4.13 and vLLM 0.32. Every model has an engine of its own: after vLLM's
`reload_weights` an engine on a CPU still answers by some of the weights that it had before.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping
from copy import deepcopy
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import JsonValue

from dppa_mergekit.checks.checkpoint_facts import DTYPE_NAMES
from dppa_mergekit.checks.checkpoint_files import inspect_folder
from dppa_mergekit.errors import DppaError, first_line
from dppa_mergekit.live.loading import load_tokenizer
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.scoring.lm_eval_harness import Harness, quiet
from dppa_mergekit.scoring.ratios import Items, Scores

if TYPE_CHECKING:
    from lm_eval.models.vllm_causallms import VLLM


RESERVED: Mapping[str, str] = MappingProxyType(
    {
        "pretrained": "models are named on the command line",
        "tokenizer": "every model has its own",
        "dtype": "give --dtype",
        "trust_remote_code": "give --trust-remote-code",
        "batch_size": "vLLM fills its batches itself",
        "data_parallel_size": "one engine runs at a time; tensor_parallel_size uses several GPUs",
    }
)
"""Argument that a tasks file must not set -> what is used in its place."""


class VllmEngine:
    """Scores folders by vLLM; see `FolderScorer`.

    Args:
        harness: The loaded tasks; the settings of their file hold here, too, but for `batch_size`:
            vLLM fills its batches itself.
        placement: The dtype of the weights; that of most of the stored tensors where None. vLLM
            chooses the device.
        arguments: Further arguments for lm-eval's model and vLLM, by name.

    Raises:
        DppaError: vLLM is not installed, lm-eval does not find it, or an argument is not allowed.
    """

    def __init__(
        self,
        harness: Harness,
        placement: Placement,
        arguments: Mapping[str, JsonValue] = MappingProxyType({}),
    ) -> None:
        vllm_version()
        for name in RESERVED:
            if name in arguments:
                raise DppaError(f"vllm_args: {name} is not allowed: {RESERVED[name]}.")
        self._harness = harness
        self._placement = placement
        self._arguments = arguments

    def item_count(self, task: str) -> int:
        """Return how many items of a task are used, within the limit."""
        return self._harness.item_count(task)

    def run(self, folder: Path, items: Items, tokenizer_folder: Path | None = None) -> Scores:
        """Return the scores of a model on items; see `FolderScorer`.

        Raises:
            DppaError: vLLM cannot load the model.
            TasksError: A chat template is to be applied, and the tokenizer has none.
        """
        own = tokenizer_folder or folder
        self._harness.check_chat_template(load_tokenizer(own, self._placement))
        model = self._start(folder, own)
        try:
            return self._harness.score_by(model, items)
        finally:
            model.model.llm_engine.engine_core.shutdown()
            del model
            gc.collect()

    def _start(self, folder: Path, tokenizer_folder: Path) -> VLLM:
        """Start an engine."""
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        trusting = self._placement.loading.trust_remote_code
        try:
            with quiet():
                from lm_eval.models.vllm_causallms import VLLM

                return VLLM(
                    pretrained=str(folder),
                    tokenizer=str(tokenizer_folder),
                    dtype=self._dtype(folder),
                    trust_remote_code=trusting,
                    batch_size="auto",
                    use_tqdm_on_load=False,
                    # lm-eval takes entries out of the dictionaries that it is given.
                    **deepcopy(dict(self._arguments)),
                )
        # vLLM raises many kinds of errors for models that it does not know or has no room for.
        except Exception as error:
            raise DppaError(
                f"{folder}: vLLM cannot load the model ({first_line(error)})."
            ) from error

    def _dtype(self, folder: Path) -> str:
        """Return the dtype of the weights: vLLM's own "auto" turns float32 into 16 bits."""
        if self._placement.dtype is not None:
            return str(self._placement.dtype).removeprefix("torch.")
        facts, _ = inspect_folder(folder, str(folder))
        return DTYPE_NAMES.get(facts.dtype, "auto")


def vllm_version() -> str:
    """Return the installed release of vLLM; scores may differ between releases.

    Raises:
        DppaError: It is not installed, or under a name by which lm-eval does not find it.
    """
    try:
        return version("vllm")
    except PackageNotFoundError as error:
        raise DppaError(
            "--engine vllm needs a package named vllm, by which lm-eval finds it: "
            "pip install 'dppa-mergekit[vllm]'."
        ) from error
