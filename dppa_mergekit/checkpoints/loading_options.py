"""mergekit's options of how models are loaded, which every command passes on.

The names are those of mergekit (mergekit/options.py, release 0.1.5).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.recipes.references import named

if TYPE_CHECKING:
    from mergekit.options import MergeOptions


@dataclass(frozen=True)
class LoadingOptions:
    """How models are loaded.

    Attributes:
        trust_remote_code: Whether code that comes with a model may run.
        lora_merge_cache: The folder where mergekit keeps models into which it has merged a LoRA.
        lora_merge_dtype: The dtype in which it merges them; None for that of the files.
        transformers_cache: The folder for models from the Hub; None for the usual one.
        lazy_unpickle: Whether mergekit reads pickled files tensor by tensor.
        unsafe_truncate_embeddings: Whether the last rows of longer embeddings are cut off.
        allow_crimes: Whether architectures may differ.
    """

    trust_remote_code: bool = False
    lora_merge_cache: str | None = None
    lora_merge_dtype: str | None = None
    transformers_cache: str | None = None
    lazy_unpickle: bool = False
    unsafe_truncate_embeddings: bool = False
    allow_crimes: bool = False

    def merge_options(self) -> MergeOptions:
        """Return them as mergekit's options of a quiet merge without a model card."""
        from mergekit.options import MergeOptions

        return MergeOptions(quiet=True, write_model_card=False, **asdict(self))


DEFAULT_LOADING = LoadingOptions()
"""mergekit's defaults."""


@contextmanager
def caching_loras(
    loading: LoadingOptions, models: Iterable[str], workspace: Path
) -> Iterator[LoadingOptions]:
    """Give LoRAs a temporary cache if they need one and have none.

    Args:
        loading: The options as they were given.
        models: The models, as mergekit writes them.
        workspace: A folder on a disk that has room for the merged models; it is made if missing.
    """
    if loading.lora_merge_cache is not None or all(named(model).lora is None for model in models):
        yield loading
        return
    workspace.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dppa-loras-", dir=workspace) as folder:
        yield replace(loading, lora_merge_cache=folder)
