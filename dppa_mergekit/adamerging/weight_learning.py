"""AdaMerging in Python: learn the weights or factors of a merge from prompts, without files."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dppa_mergekit.adamerging.descent import Descent, descend
from dppa_mergekit.adamerging.learnable import check_granularity
from dppa_mergekit.adamerging.objectives import (
    DomainPrompts,
    check_method,
    check_objective,
    load_merge_and_losses,
)
from dppa_mergekit.adamerging.states import DevScore, LearningResult
from dppa_mergekit.errors import DppaError
from dppa_mergekit.live.placement import AS_STORED, Placement
from dppa_mergekit.prompts import Prompt
from dppa_mergekit.recipes.recipe import Recipe
from dppa_mergekit.scoring.ratios import Estimate

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def learn_weights(
    recipe: Recipe,
    prompts: Mapping[str, Sequence[Prompt]],
    objective: str = "distill",
    descent: Descent | None = None,
    placement: Placement = AS_STORED,
    score: Callable[[PreTrainedModel, PreTrainedTokenizerBase], float] | None = None,
    workspace: Path | None = None,
) -> LearningResult:
    """Learn the weights of a merge, or the factors of one by inputs, from prompts (paper 3.4).

    Example::

        from pathlib import Path

        from dppa_mergekit import Prompt, Recipe, learn_weights

        recipe = Recipe.read(Path("recipe.yml"))
        prompts = {
            "./math": [Prompt("What is 12 times 7?"), Prompt("Solve 3 x = 12.")],
            "./law": [Prompt("What is a tort?"), Prompt("Who may sue?")],
        }
        learned = learn_weights(recipe, prompts)
        Path("learned.yml").write_text(learned.recipe.to_yaml())

    Args:
        recipe: The recipe of the merge, of a method of this package that is a weighted sum or
            combines by inputs. In a sum, a model without a weight starts at 0.3.
        prompts: Fine-tuned model, as the recipe names it -> the prompts of its domain.
        objective: `distill` descends the divergence from the answers of the domain's fine-tuned
            model; `hidden` adds the distance from its hidden states, and keeps all fine-tuned
            models in memory; `entropy` descends the entropy of the next token (AdaMerging's own),
            and `loss` the cross-entropy of the prompts' completions.
        descent: The settings of gradient descent; the defaults of `Descent` where None.
        placement: The device and the dtype of live models.
        score: Returns how good the live merge is, given it and its tokenizer; higher is better.
            The result is then the best state met, the start included; without it, the last one.
        workspace: An existing folder on a disk that has room for the merged model; the system's
            folder for temporary files where None.

    Returns:
        The recipe with the learned numbers, and what they are: weights from 0 to 1, for every model
        and block, or whatever `descent.granularity` says, and factors.

    Raises:
        DppaError: The recipe, the objective or a prompt cannot be used.
        LossError: A loss is not finite.
    """
    settings = descent or Descent()
    check_method(recipe)
    check_granularity(recipe, settings.granularity)
    check_objective(objective, prompts)
    if not prompts:
        raise DppaError("There are no prompts.")
    domains = {name: DomainPrompts.of_texts(of_domain, name) for name, of_domain in prompts.items()}
    folder = Path(tempfile.gettempdir()) if workspace is None else workspace
    merge, losses = load_merge_and_losses(
        recipe, domains, objective, settings.batch_size, placement, folder
    )

    def evaluate() -> DevScore:
        assert score is not None
        value = float(score(merge.model, merge.tokenizer))
        return DevScore(value, Estimate(value), {})

    return descend(merge, losses, settings, evaluate=None if score is None else evaluate)
