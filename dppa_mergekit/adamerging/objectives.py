"""From the prompts of domains to the losses that AdaMerging descends, and the merge they are of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.losses import DomainLoss, Entropy, Teaching
from dppa_mergekit.adamerging.teacher import ANSWER_TOKENS, Lessons
from dppa_mergekit.adamerging.teaching_model import check_words, lessons_of
from dppa_mergekit.adamerging.tokenization import check_completions, completion_loss, shorten
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.source_model import Placement, SourceModel
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dppa_mergekit.recipes import Recipe

OBJECTIVES = ("distill", "entropy", "loss")

START = 0.3
"""The weight of a model that has none in the recipe (AdaMerging's own)."""


@dataclass(frozen=True)
class Domain:
    """What the loss of a domain is made of.

    Attributes:
        prompts: With their completions, where those are descended.
        tokens: Those of the prompts, given a live model and its tokenizer.
        teacher: The fine-tuned model, as the recipe names it; None where nobody teaches.
        kept: A file that the teacher's answers are kept in; None to keep nothing.
    """

    prompts: Sequence[Prompt]
    tokens: Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[list[int]]]
    teacher: str | None
    kept: Path | None = None


def of_prompts(prompts: Sequence[Prompt], teacher: str | None, kept: Path | None = None) -> Domain:
    """A domain whose prompts are at hand as text."""

    def tokens(_: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
        return [tokenizer(each.text)["input_ids"] for each in prompts]

    return Domain(prompts, tokens, teacher, kept)


def check_objective(objective: str, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Refuse an objective that is not known, or that the prompts are not enough for."""
    if objective not in OBJECTIVES:
        raise DppaError(f"objective is {objective!r}; allowed are {', '.join(OBJECTIVES)}.")
    if objective == "loss":
        check_completions(prompts)


def merge_and_losses(
    recipe: Recipe,
    domains: Mapping[str, Domain],
    objective: str,
    batch_size: int,
    placement: Placement,
    workspace: Path,
) -> tuple[WeightedMerge, dict[str, DomainLoss]]:
    """The live merge of a recipe, and the losses by which its weights are learned.

    Args:
        recipe: Of the merge.
        domains: By name; of objective `distill`, each with a teacher.
        objective: One of `OBJECTIVES`.
        batch_size: Of the teachers' answering.
        placement: Where and how models are held.
        workspace: An existing folder on a disk with room for the merged model.

    Raises:
        DppaError: A model cannot be loaded, a prompt not be used, or a teacher not teach.
    """
    # Teachers are gone from memory before the merge is there.
    taught = _taught(recipe, domains, batch_size, placement) if objective == "distill" else {}
    merge = load_merge(recipe, workspace, placement)
    losses: dict[str, DomainLoss] = {}
    for name, domain in domains.items():
        if name in taught:
            teacher, lessons = taught[name]
            check_words(teacher, lessons, merge.model, merge.tokenizer)
            losses[name] = Teaching(lessons)
        elif objective == "loss":
            losses[name] = completion_loss(name, domain.prompts, merge.model, merge.tokenizer)
        else:
            losses[name] = Entropy(_fitting(name, domain, 0, merge.model, merge.tokenizer))
    return merge, losses


def _taught(
    recipe: Recipe, domains: Mapping[str, Domain], batch_size: int, placement: Placement
) -> dict[str, tuple[SourceModel, Lessons]]:
    """Domain -> its teacher, and what it answers."""
    found = {}
    for name, domain in domains.items():
        assert domain.teacher is not None
        teacher = SourceModel(recipe.named(domain.teacher), placement)
        prompts_of = partial(_fitting, name, domain, ANSWER_TOKENS)
        found[name] = (teacher, lessons_of(teacher, prompts_of, batch_size, domain.kept))
    return found


def _fitting(
    name: str,
    domain: Domain,
    room: int,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> list[list[int]]:
    """The tokens of a domain's prompts, cut to the model's context with room for an answer."""
    return shorten(name, domain.tokens(model, tokenizer), model, room)


def load_merge(recipe: Recipe, workspace: Path, placement: Placement) -> WeightedMerge:
    """The live merge of a recipe; a weight that is missing is the start."""
    merge = WeightedMerge.load(
        recipe.with_start(START),
        workspace,
        placement.device,
        placement.dtype,
        placement.trust_remote_code,
    )
    if merge.model.config.is_encoder_decoder:
        raise DppaError("The merge has an encoder; weights are learned for causal models only.")
    return merge
