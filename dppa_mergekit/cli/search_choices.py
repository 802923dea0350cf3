"""The options of `mergekit-dppa search`: which of them go together, and what they choose."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dppa_mergekit.cli import options

if TYPE_CHECKING:
    from dppa_mergekit.live.placement import Placement
    from dppa_mergekit.recipes.recipe import Recipe
    from dppa_mergekit.scoring.engines import EngineName
    from dppa_mergekit.scoring.tasks import TasksFile
    from dppa_mergekit.search.options import Options
    from dppa_mergekit.search.workers import Cluster

Given: TypeAlias = (
    "tuple[Recipe, TasksFile, Path, Options, Placement, str | None, EngineName, Cluster | None]"
)
"""The inputs that every search takes first."""


def refuse_idle_options(
    tune: str,
    methods: str | None,
    shared: bool,
    by: str,
    guard_loss: float | None,
    tune_dense: bool,
    per_block: bool,
    prompts_file: Path | None,
    strategy: str | None,
) -> None:
    """Refuse options that do nothing beside the others.

    Raises:
        ParameterError: There is one.
    """
    from dppa_mergekit.errors import ParameterError

    if tune != "weights":
        options.refuse_idle({"--shared": shared}, "--tune weights")
    if tune not in ("weights", "both"):
        options.refuse_idle({"--methods": methods}, "--tune weights or both")
    if methods is not None:
        options.refuse_idle({"--shared": shared, "--strategy": strategy}, "one method")
    if tune == "factors":
        of_merges = {"--by worst": by == "worst", "--guard-loss": guard_loss is not None}
        options.refuse_idle(of_merges, "--tune weights, merge-factors or both")
    else:
        of_factors = {"--tune-dense": tune_dense, "--per-block": per_block}
        options.refuse_idle(of_factors, "--tune factors")
    if tune_dense and per_block:
        raise ParameterError("--tune-dense and --per-block do not go together.")
    if strategy != "distill":
        options.refuse_idle({"--prompts": prompts_file}, "--strategy distill")


def check_scoring(
    score_command: str | None, engine: EngineName, workers: int | None, ray_address: str | None
) -> None:
    """Refuse ways of scoring that do not go together.

    Raises:
        ParameterError: A score command names no folder or has an engine beside it, vLLM has workers
            beside it, or a cluster has none.
    """
    from dppa_mergekit.errors import ParameterError

    if score_command is not None and "{model}" not in score_command:
        raise ParameterError(
            f"--score-command {score_command!r} names no {{model}}, the folder that it scores."
        )
    if score_command is not None:
        options.refuse_idle({"--engine vllm": engine == "vllm"}, "scoring by lm-eval")
    if workers is not None and engine == "vllm":
        raise ParameterError(
            "--engine vllm takes no --workers: it runs one engine at a time, on as many GPUs as "
            "vllm_args of the tasks file says (tensor_parallel_size)."
        )
    if ray_address is not None and workers is None:
        raise ParameterError("--ray-address says where workers run; it needs --workers.")


def search_options(
    method: str,
    tune: str,
    range_: tuple[float, float] | None,
    strategy: str | None,
    max_evaluations: int,
    patience: int,
    seed: int,
    per_block: bool,
) -> Options:
    """Return how to search: what the user gives, and the defaults of what is tuned.

    Raises:
        ParameterError: The range is empty, or a range of factors lacks 1.
    """
    from dataclasses import replace

    from dppa_mergekit.errors import ParameterError
    from dppa_mergekit.search.factor_search import default_options
    from dppa_mergekit.search.merge_factor_search import MERGE_FACTOR_OPTIONS
    from dppa_mergekit.search.weight_factor_search import WEIGHT_FACTOR_OPTIONS
    from dppa_mergekit.search.weight_search import WEIGHT_OPTIONS

    of_merges = {
        "weights": WEIGHT_OPTIONS,
        "merge-factors": MERGE_FACTOR_OPTIONS,
        "both": WEIGHT_FACTOR_OPTIONS,
    }
    defaults = default_options(method) if tune == "factors" else of_merges[tune]
    low, high = (defaults.low, defaults.high) if range_ is None else range_
    of_weights = tune in ("weights", "both")
    if not of_weights and not low <= 1 <= high:
        raise ParameterError(f"--range is {low:g} {high:g}; allowed is a range with 1 in it.")
    if of_weights and not low < high:
        raise ParameterError(f"--range is {low:g} {high:g}; allowed is a range from less to more.")
    return replace(
        defaults,
        strategy=strategy or defaults.strategy,
        max_evaluations=max_evaluations,
        patience=patience,
        low=low,
        high=high,
        seed=seed,
        per_block=per_block,
    )
