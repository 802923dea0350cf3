"""What a recipe says of the tokenizer and the chat template of the merge.

mergekit builds the tokenizer while it merges and saves the template after it, so a mistake shows
late, or, where a key is misspelt, not at all: a tokenizer without a source is a union.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pydantic

from dppa_mergekit.checks import mergekit_schema
from dppa_mergekit.checks.findings import Finding, error, find_nearest, suggest

Node = Mapping[str, object]

ROWS = (
    "a model of the recipe, {kind: zero}, or {kind: model_token, model: ...} with a token or a "
    "token_id"
)
"""What the source of a token's embedding may be."""

SHORT = 20
"""mergekit refuses a shorter chat template."""

_WHOLE = pydantic.TypeAdapter(int)


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


def padding_of(content: Node) -> int:
    """Return the number of which the rows of embeddings are made a multiple; 0 for none."""
    tokenizer = content.get("tokenizer")
    multiple = tokenizer.get("pad_to_multiple_of") if isinstance(tokenizer, dict) else None
    return _read_multiple(multiple) or 0


def _read_multiple(value: object) -> int | None:
    """Return a multiple as mergekit reads it; None where it is not allowed."""
    try:
        multiple = _WHOLE.validate_python(value or 0)
    except pydantic.ValidationError:
        return None
    return multiple if multiple >= 0 else None


def _check_padding(multiple: object) -> Iterator[Finding]:
    if _read_multiple(multiple) is None:
        yield error(
            "tokenizer",
            f"pad_to_multiple_of is {multiple!r}; allowed is a whole number of at least 0.",
        )


def _check_row(row: object, where: str) -> Iterator[Finding]:
    """Yield what is wrong with the entry of one token."""
    if not isinstance(row, dict):
        yield error(where, f"it is {row!r}; allowed is a mapping with a source.")
        return
    yield from _check_known(row, mergekit_schema.TOKEN, where)
    source = row.get("source")
    if source is None and row.get("force"):
        yield error(where, f"force needs a source; allowed is {ROWS}.")
    if isinstance(source, dict) and "kind" in source:
        kinds = mergekit_schema.ROW_KINDS
        kind = str(source["kind"])
        if kind not in kinds:
            yield error(where, f"its source is of kind {kind}; allowed is {ROWS}.")
            return
        yield from _check_known(source, kinds[kind], where)
        given = sum(source.get(key) is not None for key in ("token", "token_id"))
        if kind == "model_token" and (given != 1 or source.get("model") is None):
            yield error(where, f"its source is {source}; allowed is {ROWS}.")
    elif source is not None and not isinstance(source, (str, dict)):
        yield error(where, f"its source is {source!r}; allowed is {ROWS}.")


def _check_template(template: object) -> Iterator[Finding]:
    """Yield a chat template that is neither one nor the name of one of mergekit's."""
    if not template:
        return
    names = mergekit_schema.CHAT_TEMPLATES
    is_text = isinstance(template, str) and "{" in template and len(template) >= SHORT
    if is_text or template in names:
        return
    near = find_nearest(str(template), names)
    end = f"allowed is {', '.join(names)}, or a template of at least {SHORT} characters."
    yield error(
        "chat_template",
        f"there is none of the name {str(template)[:60]!r}, as mergekit notices after the merge; "
        f"{f'did you mean {near}?' if near else end}",
    )
