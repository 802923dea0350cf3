"""The tokenizer of a merge beside its models: sources that are not there, tokens without a row.

See mergekit/tokenizer/build.py and embed.py, release 0.1.5.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.checkpoint_files import inspect_model
from dppa_mergekit.checks.findings import Finding, error, find_nearest, warning
from dppa_mergekit.checks.tokenizer_choice import ROWS, padding_of, source_of
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.inputs import OF_ALL
from dppa_mergekit.recipes.references import Reference, identity, named, spell
from dppa_mergekit.report.phrases import count

Node = Mapping[str, object]


def check_sources(
    content: Node,
    spelled: Collection[str],
    models: Mapping[str, CheckpointFacts],
    base: CheckpointFacts | None,
    outputs: Sequence[str],
    beside: Path | None,
) -> Iterator[Finding]:
    """Yield what is wrong with the source of the tokenizer, and of rows of tokens.

    Args:
        content: The content of the recipe.
        spelled: The models of the recipe.
        models: Those of which something is known -> what it is.
        base: The base model, or the first if the recipe names none; None if it is not known.
        outputs: The names of other stages whose outputs the recipe uses.
        beside: The folder of the recipe.
    """
    source = source_of(content)
    if source is None:
        return
    tokenizer = content.get("tokenizer")
    tokens = tokenizer.get("tokens") if isinstance(tokenizer, dict) else None
    rows = {str(token): row for token, row in tokens.items()} if isinstance(tokens, dict) else {}
    donor = base
    if source not in OF_ALL:
        if named(spell(source)).model.path in outputs:
            return
        donor, findings = _inspect_source(source, models, rows, beside)
        yield from findings
    for token, row in rows.items():
        if isinstance(row, dict):
            yield from _check_row(token, row.get("source"), spelled, models, outputs)
    if base is not None and donor is not None and base.vocabulary and donor.vocabulary:
        added = [token for token in rows if token not in donor.vocabulary]
        yield from _check_numbers(source, donor, added, padding_of(content))
        yield from _check_overfull(source, donor, base, models)


def _inspect_source(
    source: object,
    models: Mapping[str, CheckpointFacts],
    rows: Iterable[str],
    beside: Path | None,
) -> tuple[CheckpointFacts | None, list[Finding]]:
    """Return the model whose tokenizer the merge gets, and what is wrong with it.

    Args:
        source: The source of the tokenizer.
        models: The models of the recipe -> what is known of them.
        rows: The tokens of which the recipe says where their rows come from.
        beside: The folder of the recipe.
    """
    try:
        Reference.parse(source)
    except RecipeError as problem:
        return None, [error("tokenizer", f"its source is {problem.message}")]
    name = spell(source)
    near = None if os.path.exists(name) else find_nearest(name, OF_ALL)
    if near is not None:
        sentence = (
            f"its source is {name!r}; allowed is union, base, a folder, or a name on the Hub; did "
            f"you mean {near}?"
        )
        return None, [error("tokenizer", sentence)]
    of_recipe = {identity(model): facts for model, facts in models.items()}
    facts = of_recipe.get(identity(source))
    if facts is None:
        # Of a model that is not merged, only the tokenizer matters.
        facts, findings = inspect_model(name, beside)
        if facts is None:
            return None, [
                replace(
                    finding, subject="tokenizer", sentence=f"its source {name}: {finding.sentence}"
                )
                for finding in findings
            ]
    if facts.folder is not None and not facts.has_tokenizer:
        return None, [warning("tokenizer", f"its source {name} seems to have no tokenizer.")]
    known = {token for model in models.values() for token in model.vocabulary}
    unknown = facts.vocabulary.keys() - known - set(rows)
    if not known or not unknown:
        return facts, []
    sentence = (
        f"its source {name} has {count(len(unknown), 'token')} that no model of the recipe has, "
        f"such as {min(unknown)!r}: their embeddings will be zero."
    )
    return facts, [warning("tokenizer", sentence)]


def _check_row(
    token: str,
    source: object,
    spelled: Collection[str],
    models: Mapping[str, CheckpointFacts],
    outputs: Sequence[str],
) -> Iterator[Finding]:
    """Yield what is wrong with the source of a token's embedding."""
    where = f"tokenizer, {token}"
    if source is None:
        lacking = [model for model, facts in models.items() if _lacks(facts, token)]
        if lacking:
            yield error(where, f"it has no source, and {lacking[0]} lacks it; allowed is {ROWS}.")
        return
    model: object = source
    taken: object = token
    number: object = None
    if isinstance(source, dict) and "kind" in source:
        model, taken, number = (source.get(key) for key in ("model", "token", "token_id"))
    if model is None or named(spell(model)).model.path in outputs:
        return
    name = spell(model)
    if name not in spelled:
        same = next((other for other in spelled if identity(other) == identity(name)), None)
        sentence = f"its source {name} is no model of the recipe; allowed is {ROWS}."
        if same is not None:
            sentence = f"the recipe spells its source {same}; write {same} here, not {name}."
        yield error(where, sentence)
        return
    if name not in models:
        return
    if taken is not None and _lacks(models[name], str(taken)):
        yield error(where, f"its source {name} has no token {str(taken)!r}.")
    rows = _rows(models[name])
    if isinstance(number, int) and rows is not None and not 0 <= number < rows:
        yield error(where, f"its token_id is {number}; allowed is 0 to {rows - 1}, as in {name}.")


def _check_numbers(
    source: object, donor: CheckpointFacts, added: Sequence[str], multiple: int
) -> Iterator[Finding]:
    """Yield numbers of tokens for which the merge has no row.

    Args:
        source: The source of the tokenizer.
        donor: The model whose tokenizer the merge gets, or begins with.
        added: The tokens of the recipe that are not in it.
        multiple: The number of which the rows are a multiple; 0 for any number.
    """
    rows = _rows(donor)
    numbers = [number for number in donor.vocabulary.values() if rows is None or number < rows]
    size = len(numbers) + len(added)
    padded = math.ceil(size / multiple) * multiple if multiple else size
    if numbers and max(numbers) >= padded:
        yield error(
            "tokenizer",
            f"the tokens of {donor.model} have gaps in their numbers, the last being "
            f"{max(numbers)} of {len(numbers)}, and mergekit makes one row a token: set "
            f"pad_to_multiple_of.",
        )
    if source == "base" and added and rows is not None and size > rows:
        yield error(
            "tokenizer",
            f"with source base, mergekit finds no row for a token that {donor.model} lacks, such "
            f"as {added[0]!r}, beyond its {rows}: set source: union.",
        )


def _check_overfull(
    source: object,
    donor: CheckpointFacts,
    base: CheckpointFacts,
    models: Mapping[str, CheckpointFacts],
) -> Iterator[Finding]:
    """Yield models with more tokens than rows, at which mergekit fails.

    Of the base, mergekit leaves out the tokens without a row, if it is a BPE tokenizer.
    """
    # Of the base, only tokens with a row are in the tokenizer of the merge.
    given = donor.vocabulary.keys() - (_over(donor) if donor is base else set())
    for facts in {id(facts): facts for facts in (base, *models.values())}.values():
        over = _over(facts)
        if facts is base:
            fails = bool(over) and facts.tokenizer_kind != "BPE"
        elif source == "union":
            others = (other for other in models.values() if other is not facts)
            fails = any(over & (other.vocabulary.keys() - _over(other)) for other in others)
        else:
            fails = bool(over & given)
        if fails:
            token = min(over)
            yield error(
                facts.model,
                f"its token {token!r} has number {facts.vocabulary[token]}, and config.json has "
                f"vocab_size {_rows(facts)}, so mergekit cannot move its embeddings: resize them, "
                f"or remove the token.",
            )


def _rows(facts: CheckpointFacts) -> int | None:
    """Return the rows of a model's embeddings, by its configuration."""
    rows = facts.config.get("vocab_size")
    return rows if isinstance(rows, int) else None


def _over(facts: CheckpointFacts) -> set[str]:
    """Return the tokens of a model for which its embeddings have no row."""
    rows = _rows(facts)
    if rows is None:
        return set()
    return {token for token, number in facts.vocabulary.items() if number >= rows}


def _lacks(facts: CheckpointFacts, token: str) -> bool:
    """Return whether a model whose tokens are known lacks one."""
    return bool(facts.vocabulary) and token not in facts.vocabulary
