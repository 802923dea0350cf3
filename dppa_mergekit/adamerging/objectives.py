"""From a recipe and the prompts of its domains to the live merge and the losses it descends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from dppa_mergekit.adamerging.losses import DomainLoss, Entropy, StateTeaching, Teaching
from dppa_mergekit.adamerging.teacher import ANSWER_TOKENS, Lessons
from dppa_mergekit.adamerging.teaching_model import check_words, collect_lessons
from dppa_mergekit.adamerging.tokenization import check_completions, completion_loss
from dppa_mergekit.errors import DppaError, RecipeError
from dppa_mergekit.live.context import shorten
from dppa_mergekit.live.placement import Placement
from dppa_mergekit.live.source_model import SourceModel
from dppa_mergekit.live.weighted_merge import WeightedMerge
from dppa_mergekit.method_table import default_weight, learnable
from dppa_mergekit.prompts import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from dppa_mergekit.recipes.recipe import Recipe

    Tokenize: TypeAlias = Callable[[PreTrainedModel, PreTrainedTokenizerBase], list[list[int]]]

OBJECTIVES = ("distill", "hidden", "entropy", "loss")

TAUGHT = ("distill", "hidden")
"""The objectives for which every domain has a teacher."""

_WITHOUT_STATES = [name for name in OBJECTIVES if name != "hidden"]

START = 0.3
"""The starting weight of a model in a sum that has none in the recipe (AdaMerging's own)."""


@dataclass(frozen=True)
class DomainPrompts:
    """The prompts of one domain, and who teaches it.

    Attributes:
        prompts: The prompts; with completions for objective `loss`, and not used by the others.
        tokenize: Returns the tokens of the prompts, given a live model and its tokenizer; not used
            by objective `loss`.
        teacher: The fine-tuned model that teaches, as the recipe names it; None if nobody does.
        lessons_file: The file that keeps the teacher's answers; None to keep them nowhere.
    """

    prompts: Sequence[Prompt]
    tokenize: Tokenize
    teacher: str | None
    lessons_file: Path | None = None

    @classmethod
    def of_texts(
        cls, prompts: Sequence[Prompt], teacher: str | None, lessons_file: Path | None = None
    ) -> DomainPrompts:
        """Make them of prompts whose texts are known."""

        def tokenize(_: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
            return [tokenizer(prompt.text)["input_ids"] for prompt in prompts]

        return cls(prompts, tokenize, teacher, lessons_file)

    def tokens(
        self, name: str, room: int, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
    ) -> list[list[int]]:
        """Return the tokens of the prompts, cut to the model's context with room for an answer.

        Args:
            name: The name of the domain, for messages.
            room: The number of tokens to leave for an answer.
            model: The live model whose context counts.
            tokenizer: Its tokenizer.
        """
        return shorten(name, self.tokenize(model, tokenizer), model, room)


def check_method(recipe: Recipe) -> None:
    """Refuse a recipe whose weights or factors cannot be learned.

    Raises:
        RecipeError: The merge has no derivative in the weights or factors of the method, or the
            method is not of this package, so the live merge cannot set them in place.
    """
    allowed = learnable()
    if recipe.method not in allowed:
        hint = " (task_arithmetic is dp at density 1)" if recipe.method == "task_arithmetic" else ""
        raise RecipeError(
            f"{recipe.origin}: the weights of {recipe.method} cannot be learned{hint}; allowed "
            f"are {', '.join(allowed)}."
        )


def check_objective(objective: str, prompts: Mapping[str, Sequence[Prompt]]) -> None:
    """Refuse an unknown objective, or one that needs more than these prompts.

    Args:
        objective: The name of the objective.
        prompts: Domain -> its prompts.

    Raises:
        DppaError: The objective is not one of OBJECTIVES, or it needs completions and a prompt has
            none.
    """
    if objective not in OBJECTIVES:
        raise DppaError(f"objective is {objective!r}; allowed are {', '.join(OBJECTIVES)}.")
    if objective == "loss":
        check_completions(prompts)


def load_merge_and_losses(
    recipe: Recipe,
    domains: Mapping[str, DomainPrompts],
    objective: str,
    batch_size: int,
    placement: Placement,
    workspace: Path,
) -> tuple[WeightedMerge, dict[str, DomainLoss]]:
    """Load the live merge of a recipe, and make the losses by which it is learned.

    Args:
        recipe: The recipe of the merge.
        domains: Domain -> its prompts; for an objective of TAUGHT, every domain has a teacher.
        objective: One of OBJECTIVES.
        batch_size: The number of prompts that a teacher answers at once.
        placement: The device and the dtype of live models.
        workspace: An existing folder on a disk that has room for the merged model.

    Returns:
        The live merge, and domain -> its loss.

    Raises:
        DppaError: A model cannot be loaded, a prompt cannot be used, or a teacher cannot teach.
    """
    # The teachers have left memory before the merge is loaded, unless they are read in each step.
    taught = _teach(recipe, domains, batch_size, placement) if objective in TAUGHT else {}
    merge = load_merge(recipe, workspace, placement)
    losses: dict[str, DomainLoss] = {}
    for name, domain in domains.items():
        if name in taught:
            teacher, lessons = taught[name]
            check_words(teacher, lessons, merge.model, merge.tokenizer)
            losses[name] = Teaching(lessons)
            if objective == "hidden":
                live = teacher.load()[0].requires_grad_(False)
                _check_states(teacher.model, live, merge.model)
                losses[name] = StateTeaching(lessons, live)
        elif objective == "loss":
            losses[name] = completion_loss(name, domain.prompts, merge.model, merge.tokenizer)
        else:
            losses[name] = Entropy(domain.tokens(name, 0, merge.model, merge.tokenizer))
    return merge, losses


def _check_states(name: str, teacher: PreTrainedModel, merge: PreTrainedModel) -> None:
    """Refuse a teacher whose hidden states cannot be compared with those of the merge.

    Raises:
        DppaError: They are of another number of layers, or of another size.
    """
    configs = teacher.config.get_text_config(), merge.config.get_text_config()
    for what in ("num_hidden_layers", "hidden_size"):
        wanted, found = (getattr(config, what, None) for config in configs)
        if wanted != found:
            raise DppaError(
                f"{name} cannot teach the merge by objective hidden: its {what} is {wanted}, and "
                f"that of the merge is {found}; allowed are {', '.join(_WITHOUT_STATES)}."
            )


def load_merge(recipe: Recipe, workspace: Path, placement: Placement) -> WeightedMerge:
    """Load the live merge of a recipe; a model without a weight has the default, or START.

    Raises:
        DppaError: The recipe cannot be merged, or the merged model has an encoder.
    """
    weighted = recipe.with_default("weight", default_weight(recipe.method) or START)
    merge = WeightedMerge.load(weighted, workspace, placement)
    if merge.model.config.is_encoder_decoder:
        raise DppaError("The merged model has an encoder; AdaMerging is for causal models only.")
    return merge


def _teach(
    recipe: Recipe, domains: Mapping[str, DomainPrompts], batch_size: int, placement: Placement
) -> dict[str, tuple[SourceModel, Lessons]]:
    """Domain -> its teacher, and the teacher's lessons."""
    taught = {}
    for name, domain in domains.items():
        assert domain.teacher is not None
        teacher = SourceModel(recipe.spelling_of(domain.teacher), placement)
        prompts_of = partial(domain.tokens, name, ANSWER_TOKENS)
        lessons = collect_lessons(teacher, prompts_of, batch_size, domain.lessons_file)
        taught[name] = (teacher, lessons)
    return taught
