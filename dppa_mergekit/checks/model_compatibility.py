"""The models of a recipe beside their base, by names, configurations, tokenizers and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dppa_mergekit.checkpoints.loading_options import LoadingOptions
from dppa_mergekit.checkpoints.safetensors_header import Header
from dppa_mergekit.checks.checkpoint_facts import DTYPE_NAMES, CheckpointFacts
from dppa_mergekit.checks.findings import Finding, error, note, warning
from dppa_mergekit.checks.tokenizer_choice import source_of
from dppa_mergekit.recipes.references import identity
from dppa_mergekit.report.phrases import count, join_names, such_as
from dppa_mergekit.tensor_names import is_output_head, natural_order

MUST_AGREE = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_local_experts",
    "num_experts_per_tok",
)
"""Keys of config.json that agree in all models of one base."""

SHOULD_AGREE = ("rope_theta", "rope_scaling", "rope_parameters", "rms_norm_eps", "hidden_act")

VOCABULARY = ("embed_tokens", "lm_head", "wte", "shared", "word_embeddings", "embed_out")
"""Parts of the names of tensors with an axis of tokens."""


def check_names(models: Sequence[str], base: str | None) -> Iterator[Finding]:
    """Yield models that are given twice, in any spelling, and a base that is also fine-tuned."""
    seen: dict[object, str] = {}
    for model in models:
        first = seen.get(identity(model))
        if first is not None:
            also = "" if first == model else f", also as {first}"
            yield error(model, f"it is given twice{also}: list it once, at the summed weight.")
        seen.setdefault(identity(model), model)
    if base is not None:
        same = seen.get(identity(base))
        if same is not None and same != base:
            yield error(same, f"it is the base model, spelt as {base}: its delta is zero.")


@dataclass(frozen=True)
class Stated:
    """What a recipe, or an option of the merge, says of the merged model.

    Attributes:
        source: The source of the tokenizer; None where the merge gets that of its base.
        template: Whether it says which chat template.
        dtype: Whether it says which dtype.
        truncates: Whether the last rows of longer embeddings are cut off.
    """

    source: object
    template: bool
    dtype: bool
    truncates: bool

    @classmethod
    def by(cls, content: Mapping[str, object], loading: LoadingOptions) -> Stated:
        """Read it off the content of a recipe and the options of the merge."""
        return cls(
            source_of(content),
            template=content.get("chat_template") is not None,
            dtype=content.get("dtype") is not None or content.get("out_dtype") is not None,
            truncates=loading.unsafe_truncate_embeddings,
        )

    @property
    def tokenizer(self) -> bool:
        """Whether it says which tokenizer the merge gets."""
        return self.source is not None


def check_donor(base: CheckpointFacts, stated: Stated) -> Iterator[Finding]:
    """Yield what the merge would take over from its base and should not, or cannot.

    Args:
        base: The base model, whose configuration and tokenizer the merge gets.
        stated: What the recipe says.
    """
    if base.folder is not None and not base.has_tokenizer:
        report = error if stated.tokenizer else warning
        yield report(base.model, "there is no tokenizer in it, so the merge gets none from it.")
    declared = str(base.config.get("dtype") or base.config.get("torch_dtype") or "")
    stored = DTYPE_NAMES.get(base.dtype, declared)
    if declared and declared != stored and not stated.dtype:
        yield warning(
            base.model,
            f"its weights are {stored} and its config.json says {declared}, and so will be the "
            f"merge's: set dtype.",
        )


def check_unnamed_donor(models: Sequence[CheckpointFacts], stated: Stated) -> Iterator[Finding]:
    """Yield a warning if models without a base differ in what the merge gets of one of them.

    mergekit takes configuration and tokenizer from the first model of a set (mergekit/merge.py,
    release 0.1.5), and the order of a set of references changes from run to run.

    Args:
        models: The models of the recipe.
        stated: What the recipe says.
    """
    keys = [key for key in (*MUST_AGREE, *SHOULD_AGREE) if key != "num_hidden_layers"]
    keys += [] if stated.tokenizer else ["vocab_size"]
    # A key that one lacks may be written otherwise there.
    different = [key for key in keys if _differ(models, key)]
    report = error if "vocab_size" in different else warning
    if (
        not stated.tokenizer
        and len({frozenset(m.vocabulary.items()) for m in models if m.vocabulary}) > 1
    ):
        different.append("tokenizer")
    if not (stated.tokenizer or stated.template) and len({m.chat_template for m in models}) > 1:
        different.append("chat template")
    if different:
        yield report(
            "base_model",
            f"there is none, so mergekit takes config.json and the tokenizer from one of the "
            f"models, and which one changes from run to run; they differ in "
            f"{join_names(different[:3])}{' and more' * (len(different) > 3)}.",
        )


def check_union(
    models: Sequence[CheckpointFacts], base: CheckpointFacts, stated: Stated
) -> Iterator[Finding]:
    """Yield a warning if a tokenizer that is made of several numbers tokens anew in every run.

    It takes the models in another order each time, and the words of a vocabulary; tokens that were
    added to a vocabulary it takes by their numbers.

    Args:
        models: All models.
        base: The base model.
        stated: What the recipe says.
    """
    if stated.source != "union" or not base.vocabulary:
        return
    added = [model.vocabulary.keys() - base.vocabulary.keys() for model in models]
    contributors = [model for model, tokens in zip(models, added, strict=True) if tokens]
    every = set().union(*added)
    is_ordered = len(contributors) == 1 and every <= contributors[0].added_tokens
    if len(every) > 1 and not is_ordered:
        yield warning(
            "tokenizer",
            f"mergekit gives new ids to the {len(every)} tokens that the base model lacks, such as "
            f"{min(every)!r}; the order of these ids changes from run to run, and their embeddings "
            f"with it.",
        )


def check_against_base(
    fine_tuned: CheckpointFacts, base: CheckpointFacts, stated: Stated
) -> Iterator[Finding]:
    """Yield what does not fit between a fine-tuned model and its base.

    Args:
        fine_tuned: The fine-tuned model.
        base: The base model.
        stated: What the recipe says.
    """
    yield from _check_configurations(fine_tuned, base)
    if fine_tuned.folder is not None and stated.tokenizer and not fine_tuned.has_tokenizer:
        yield warning(
            fine_tuned.model,
            "there is no tokenizer in it: mergekit takes its tokens for those of the base model.",
        )
    yield from check_vocabulary(fine_tuned, base, stated)
    yield from _check_answers(fine_tuned, base, stated)
    if fine_tuned.tensors and base.tensors:
        yield from _check_shapes(fine_tuned, base)
        yield from _check_head(fine_tuned, base)


def _check_head(fine_tuned: CheckpointFacts, base: CheckpointFacts) -> Iterator[Finding]:
    """Yield a note if the base has an output head of its own and a fine-tuned model has none."""
    heads = [name for name in base.tensors if is_output_head(name)]
    ties = [bool(model.config.get("tie_word_embeddings")) for model in (fine_tuned, base)]
    if ties == [True, False] and heads and heads[0] not in fine_tuned.tensors:
        yield note(
            fine_tuned.model,
            f"its output head is its embeddings, and the base model has {heads[0]}: the merge "
            f"takes the embeddings as its head.",
        )


def _differ(models: Sequence[CheckpointFacts], key: str) -> bool:
    """Return whether configurations that have a key differ in its value."""
    values = [config[key] for config in map(_configuration, models) if key in config]
    return any(value != values[0] for value in values)


def _configuration(facts: CheckpointFacts) -> Mapping[str, object]:
    """Return config.json; transformers 5 writes rope_theta into rope_parameters."""
    rope = facts.config.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" in rope:
        return {**facts.config, "rope_theta": rope["rope_theta"]}
    return facts.config


def _check_configurations(fine_tuned: CheckpointFacts, base: CheckpointFacts) -> Iterator[Finding]:
    if not fine_tuned.config or not base.config:
        return
    for keys, report in ((MUST_AGREE, error), (SHOULD_AGREE, warning)):
        for key in keys:
            if _differ((fine_tuned, base), key):
                ours, theirs = (_configuration(model)[key] for model in (fine_tuned, base))
                yield report(
                    fine_tuned.model,
                    f"config.json has {key} {ours}, and {theirs} in the base model.",
                )


def check_vocabulary(
    fine_tuned: CheckpointFacts, base: CheckpointFacts, stated: Stated
) -> Iterator[Finding]:
    """Yield where the tokens of two models differ, and the rows of their tensors.

    Args:
        fine_tuned: The fine-tuned model.
        base: The base model.
        stated: What the recipe says.
    """
    if stated.tokenizer:
        return
    yield from _check_vocabularies(fine_tuned, base)
    for name in _different_shapes(fine_tuned, base):
        if _is_of_tokens(name) and not stated.truncates:
            yield error(
                fine_tuned.model,
                f"{name} has shape {_write_shape(fine_tuned.tensors[name])}, and "
                f"{_write_shape(base.tensors[name])} in the base model: the vocabularies differ; "
                f"set tokenizer: {{source: base}} or {{source: union}}.",
            )


def _check_vocabularies(fine_tuned: CheckpointFacts, base: CheckpointFacts) -> Iterator[Finding]:
    ours, theirs = fine_tuned.vocabulary, base.vocabulary
    if not ours or not theirs:
        return
    moved = [token for token in ours.keys() & theirs.keys() if ours[token] != theirs[token]]
    if moved:
        token = min(moved, key=lambda moved_token: theirs[moved_token])
        yield error(
            fine_tuned.model,
            f"{count(len(moved), 'token has another id', 'tokens have other ids')} than in the "
            f"base model ({token!r} is {ours[token]}, not {theirs[token]}): set tokenizer: "
            f"{{source: union}}, which moves their embeddings.",
        )
    added = ours.keys() - theirs.keys()
    if added:
        yield warning(
            fine_tuned.model,
            f"it has {count(len(added), 'token')} that the base model lacks, such as "
            f"{min(added)!r}: set tokenizer: {{source: union}} to keep them.",
        )


def _check_answers(
    fine_tuned: CheckpointFacts, base: CheckpointFacts, stated: Stated
) -> Iterator[Finding]:
    """Yield what changes how the merge is asked, and where its answers end."""
    template = fine_tuned.chat_template
    if not stated.template and template is not None and template != base.chat_template:
        yield warning(
            fine_tuned.model,
            "its chat template is not the base model's, which the merge gets unless chat_template "
            "or tokenizer says otherwise."
            if base.chat_template
            else "it has a chat template, and the base model has none: set chat_template to keep "
            "it.",
        )
    ours, theirs = fine_tuned.end_tokens, base.end_tokens
    if ours and theirs and ours != theirs:
        yield warning(
            fine_tuned.model,
            f"its answers end with token {_join_ids(ours)}, those of the base model with "
            f"{_join_ids(theirs)}: the merge stops where the base model does.",
        )


def _different_shapes(fine_tuned: CheckpointFacts, base: CheckpointFacts) -> list[str]:
    return [
        name
        for name, header in fine_tuned.tensors.items()
        if name in base.tensors and header.shape != base.tensors[name].shape
    ]


def _is_of_tokens(name: str) -> bool:
    return any(part in name for part in VOCABULARY)


def _check_shapes(fine_tuned: CheckpointFacts, base: CheckpointFacts) -> Iterator[Finding]:
    """Yield tensors, except those of tokens, that have other shapes or dtypes than in the base."""
    others = [name for name in _different_shapes(fine_tuned, base) if not _is_of_tokens(name)]
    if others:
        name = min(others, key=natural_order)
        found = such_as(
            others,
            "tensor has another shape than in the base model",
            "tensors have another shape than in the base model",
        )
        ours, theirs = (_write_shape(facts.tensors[name]) for facts in (fine_tuned, base))
        yield error(fine_tuned.model, f"{found} ({ours}, not {theirs}).")
    if fine_tuned.dtype != base.dtype:
        yield note(
            fine_tuned.model,
            f"its weights are {fine_tuned.dtype}, those of the base model {base.dtype}.",
        )


def _write_shape(header: Header) -> str:
    return " x ".join(map(str, header.shape)) or "none"


def _join_ids(tokens: frozenset[int]) -> str:
    return join_names([str(token) for token in sorted(tokens)])
