"""What a recipe says of the tokenizer and the chat template of the merge.

mergekit builds the tokenizer while it merges and saves the template after it, so a mistake shows
late, or, where a key is misspelt, not at all: a tokenizer without a source is a union.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from dppa_mergekit.checks import mergekit_schema
from dppa_mergekit.checks.checkpoint_facts import CheckpointFacts
from dppa_mergekit.checks.checkpoint_files import inspect_model
from dppa_mergekit.checks.findings import Finding, error, find_nearest, suggest, warning
from dppa_mergekit.errors import RecipeError
from dppa_mergekit.recipes.references import Reference, identity, spell
from dppa_mergekit.report.phrases import count

Node = Mapping[str, object]

OF_ALL = ("union", "base")
"""The sources of a tokenizer that are no model."""

_SOURCES = "union, base, a folder, or a name on the Hub"
_ROWS = (
    "a model of the recipe, {kind: zero}, or {kind: model_token, model: ...} with a token or a "
    "token_id"
)


def source_of(content: Node) -> object:
    """Return the source of the tokenizer that mergekit makes; None where it copies the base's."""
    tokenizer = content.get("tokenizer")
    if tokenizer is None:
        return content.get("tokenizer_source")
    return tokenizer.get("source", "union") if isinstance(tokenizer, dict) else None


def check_choice(content: Node) -> Iterator[Finding]:
    """Yield what is wrong in the text of `tokenizer`, `tokenizer_source` and `chat_template`."""
    tokenizer = content.get("tokenizer")
    if tokenizer is not None and content.get("tokenizer_source"):
        yield error("tokenizer", "there is a tokenizer_source, too; allowed is one of them.")
    if isinstance(tokenizer, dict):
        yield from _check_known(tokenizer, mergekit_schema.TOKENIZER, "tokenizer")
        yield from _check_padding(tokenizer.get("pad_to_multiple_of"))
        tokens = tokenizer.get("tokens")
        if tokens is not None and not isinstance(tokens, dict):
            yield error("tokenizer", "tokens is not a mapping of tokens.")
        for token, row in tokens.items() if isinstance(tokens, dict) else ():
            yield from _check_row(row, f"tokenizer, {token}")
    elif tokenizer is not None:
        yield error(
            "tokenizer",
            f"it is {tokenizer!r}; allowed is a mapping, such as {{source: union}}.",
        )
    yield from _check_template(content.get("chat_template"))


def _check_known(content: Node, keys: tuple[str, ...], where: str) -> Iterator[Finding]:
    for key in content:
        if key not in keys:
            yield error(where, f"mergekit ignores {key!r}: {suggest(str(key), keys)}")


def _check_padding(multiple: object) -> Iterator[Finding]:
    whole = isinstance(multiple, int) and not isinstance(multiple, bool)
    if multiple is not None and not (whole and multiple > 0):  # type: ignore[operator]
        yield error(
            "tokenizer", f"pad_to_multiple_of is {multiple!r}; allowed is a whole number above 0."
        )


def _check_row(row: object, where: str) -> Iterator[Finding]:
    """Yield what is wrong with the entry of one token."""
    if not isinstance(row, dict):
        yield error(where, f"it is {row!r}; allowed is a mapping with a source.")
        return
    yield from _check_known(row, mergekit_schema.TOKEN, where)
    source = row.get("source")
    if isinstance(source, dict) and "kind" in source:
        kinds = mergekit_schema.ROW_KINDS
        kind = str(source["kind"])
        if kind not in kinds:
            yield error(where, f"its source is of kind {kind}; allowed is {_ROWS}.")
            return
        yield from _check_known(source, kinds[kind], where)
        given = sum(source.get(key) is not None for key in ("token", "token_id"))
        if kind == "model_token" and (given != 1 or source.get("model") is None):
            yield error(where, f"its source is {source}; allowed is {_ROWS}.")
    elif source is not None and not isinstance(source, (str, dict)):
        yield error(where, f"its source is {source!r}; allowed is {_ROWS}.")


def _check_template(template: object) -> Iterator[Finding]:
    """Yield a chat template that is neither one nor the name of one of mergekit's."""
    if not template:
        return
    names = mergekit_schema.CHAT_TEMPLATES
    is_text = isinstance(template, str) and "{" in template
    if is_text or template in names:
        return
    near = find_nearest(str(template), names)
    end = f"did you mean {near}?" if near else f"allowed is {', '.join(names)}, or a template."
    yield error(
        "chat_template",
        f"there is none of the name {str(template)[:60]!r}, and mergekit fails at the end of the "
        f"merge; {end}",
    )


def check_sources(
    content: Node, models: Mapping[str, CheckpointFacts], beside: Path | None
) -> Iterator[Finding]:
    """Yield sources of the tokenizer, and of rows of tokens, that are not there.

    Args:
        content: The content of the recipe.
        models: The models of the recipe -> what is known of them.
        beside: The folder of the recipe.
    """
    of_recipe = {identity(model): facts for model, facts in models.items()}
    tokenizer, source = content.get("tokenizer"), source_of(content)
    if source is not None and source not in OF_ALL:
        yield from _check_source(source, of_recipe, beside)
    tokens = tokenizer.get("tokens") if isinstance(tokenizer, dict) else None
    for token, row in tokens.items() if isinstance(tokens, dict) else ():
        if isinstance(row, dict):
            yield from _check_row_source(str(token), row.get("source"), of_recipe)


def _check_source(
    source: object, of_recipe: Mapping[object, CheckpointFacts], beside: Path | None
) -> Iterator[Finding]:
    """Yield what is wrong with a model whose tokenizer the merge gets."""
    try:
        Reference.parse(source)
    except RecipeError as problem:
        yield error("tokenizer", f"its source is {problem.message}")
        return
    name = spell(source)
    near = None if os.path.exists(name) else find_nearest(name, OF_ALL)
    if near is not None:
        yield error(
            "tokenizer", f"its source is {name!r}; allowed is {_SOURCES}; did you mean {near}?"
        )
        return
    facts = of_recipe.get(identity(source))
    if facts is None:
        # Of a model that is not merged, only the tokenizer matters.
        facts, findings = inspect_model(name, beside)
        if facts is None:
            for finding in findings:
                yield error("tokenizer", f"its source {name}: {finding.sentence}")
            return
    if facts.folder is not None and not facts.has_tokenizer:
        yield error("tokenizer", f"its source {name} has no tokenizer.")
        return
    known: set[str] = set()
    for model in of_recipe.values():
        known |= model.vocabulary.keys()
    unknown = facts.vocabulary.keys() - known
    if known and unknown:
        yield warning(
            "tokenizer",
            f"its source {name} has {count(len(unknown), 'token')} that no model of the recipe "
            f"has, such as {min(unknown)!r}: their embeddings will be zero.",
        )


def _check_row_source(
    token: str, source: object, of_recipe: Mapping[object, CheckpointFacts]
) -> Iterator[Finding]:
    """Yield what is wrong with the source of a token's embedding."""
    where = f"tokenizer, {token}"
    if source is None:
        lacking = [facts.model for facts in of_recipe.values() if _lacks(facts, token)]
        if lacking:
            yield error(where, f"it has no source, and {lacking[0]} lacks it; allowed is {_ROWS}.")
        return
    model: object = source
    taken: object = token
    if isinstance(source, dict) and "kind" in source:
        model, taken = source.get("model"), source.get("token")
        if model is None:
            return
    facts = of_recipe.get(identity(model))
    if facts is None:
        yield error(
            where, f"its source {spell(model)} is no model of the recipe; allowed is {_ROWS}."
        )
    elif taken is not None and _lacks(facts, str(taken)):
        yield error(where, f"its source {facts.model} has no token {str(taken)!r}.")


def _lacks(facts: CheckpointFacts, token: str) -> bool:
    """Return whether a model whose tokens are known lacks one."""
    return bool(facts.vocabulary) and token not in facts.vocabulary
