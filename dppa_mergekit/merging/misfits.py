"""Tensors that a merge would lose, or fail for: where mergekit's table does not fit its models.

mergekit reads the tensors that its table of an architecture lists. Others it drops without a word,
and transformers then initialises them anew: experts of a model whose first layer is dense, biases
of linears, towers of a multimodal model, layers beyond those of the configuration. And where a
table lists a tensor that a checkpoint lacks, the merge fails when it is read, after it has begun to
write.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dppa_mergekit.checkpoints.tensor_loading import conversions_of, tied_names_of, ties_head
from dppa_mergekit.errors import CheckpointError
from dppa_mergekit.merging.layer_ranges import find_layers_past_the_end
from dppa_mergekit.merging.table_fit import TableFit, fit_table, missing_experts, own_names
from dppa_mergekit.report.phrases import count, such_as
from dppa_mergekit.tensor_names import is_output_head

if TYPE_CHECKING:
    from mergekit.architecture.base import ConfiguredModelArchitecture
    from mergekit.common import ModelReference
    from mergekit.config import InputSliceDefinition
    from mergekit.plan import MergePlanner
    from transformers import PretrainedConfig

LOG = logging.getLogger(__name__)

ALLOWANCE = "DPPA_MERGEKIT_ALLOW_LOSS"
"""The environment variable that lets merges lose tensors; off where empty or 0."""

Kind = Literal["failure", "loss"]


@dataclass(frozen=True)
class Misfit:
    """One way in which a table does not fit.

    Attributes:
        subject: The model, or "recipe" where it concerns all of them.
        sentence: What is wrong, and what is allowed.
        kind: Whether the merge would fail, or succeed and lose tensors.
    """

    subject: str
    sentence: str
    kind: Kind

    def __str__(self) -> str:
        """Return the sentence after its subject."""
        return f"{self.subject}: {self.sentence}"


class MisfitError(CheckpointError):
    """mergekit's table does not fit the checkpoints of a merge.

    Attributes:
        misfits: All ways in which it does not.
    """

    def __init__(self, misfits: Sequence[Misfit]) -> None:
        """Name the first misfit, and count the others."""
        more = f" (and {len(misfits) - 1} more: mergekit-dppa check)" if len(misfits) > 1 else ""
        super().__init__(f"{misfits[0]}{more}")
        self.misfits = misfits


def is_loss_allowed() -> bool:
    """Return whether the environment lets merges lose tensors."""
    return os.environ.get(ALLOWANCE, "") not in ("", "0")


def refuse_misfits(misfits: Sequence[Misfit]) -> Sequence[Misfit]:
    """Refuse a merge that would fail or lose tensors; warn of losses that are allowed.

    Args:
        misfits: Where mergekit's table does not fit the models of the merge.

    Returns:
        The losses that are allowed.

    Raises:
        MisfitError: A model lacks tensors, or has stored ones that are in no output.
    """
    grave = [misfit for misfit in misfits if misfit.kind == "failure" or not is_loss_allowed()]
    if grave:
        raise MisfitError(grave)
    for misfit in misfits:
        LOG.warning("%s", misfit)
    return misfits


def find_misfits(planner: MergePlanner) -> list[Misfit]:
    """Return where mergekit's table does not fit the models of a merge.

    Args:
        planner: mergekit's planner; every model is in mergekit's cache of loaders.
    """
    from mergekit.io.tasks import LoaderCache

    misfits = [*_layers_past_the_end(planner), *_refused_configuration(planner)]
    if misfits:
        return misfits
    base, models = planner.config.base_model, planner.config.referenced_models()
    models.sort(key=lambda model: (model != base, str(model)))
    stored = {model: list(LoaderCache().get(model).index.tensor_paths) for model in models}
    of_all = set().union(*stored.values())
    misfits += find_missing_heads(planner, of_all)
    fits = {}
    for model, names in stored.items():
        missing = missing_experts(_config_of(planner, model), names)
        if missing:
            found = such_as(
                missing, "tensor of an expert is missing", "tensors of experts are missing"
            )
            misfits.append(Misfit(str(model), f"{found}.", kind="failure"))
        else:
            fits[model] = _fit(planner, model, names, of_all)
    if not fits:
        return misfits
    by_none = set.intersection(*(set(fit.absent) for fit in fits.values()))
    if by_none:
        found = such_as(by_none, "tensor that no model has", "tensors that no model has")
        named = _config_of(planner, models[0]).architectures
        architecture = " ".join(named or ["this architecture"])
        misfits.append(
            Misfit(
                "recipe",
                f"mergekit's table does not fit {architecture}: it reads {found}.",
                kind="failure",
            )
        )
    lacking = {
        model: absent
        for model, fit in fits.items()
        if (absent := [name for name in fit.absent if name not in by_none])
    }
    misfits += [_lack(model, absent, fits[model].unread) for model, absent in lacking.items()]
    if not by_none:
        # What a table that fits no model leaves out is the same fault.
        whole = {model: fit.unread for model, fit in fits.items() if model not in lacking}
        misfits += _losses(whole)
    return misfits


def find_missing_heads(planner: MergePlanner, given: Collection[str]) -> Iterator[Misfit]:
    """Yield output heads that a merge does not get, where its configuration does not tie them.

    Args:
        planner: mergekit's planner.
        given: The names of all stored tensors, or of those that are planned to be written.
    """
    from mergekit.architecture.base import ConfiguredModelArchitecture

    config = planner.out_model_config
    # A head under a name that the table does not list is among the tensors that are not read.
    if ties_head(config) or any(map(is_output_head, given)):
        return
    table = ConfiguredModelArchitecture(info=planner.arch_info, config=config)
    for weight in table.all_weights():
        if is_output_head(weight.name):
            yield Misfit(
                "recipe",
                f"the merge would get no {weight.name}, which its config.json does not tie to the "
                f"embeddings, so that transformers would initialise it anew; set {ALLOWANCE}=1 to "
                f"merge all the same.",
                kind="loss",
            )


def _lack(model: ModelReference, absent: Collection[str], unread: Collection[str]) -> Misfit:
    """Return that a model lacks tensors, which may be those of which nothing is read."""
    found = such_as(
        absent,
        "tensor that mergekit reads is missing",
        "tensors that mergekit reads are missing",
    )
    if unread:
        others = such_as(unread, "stored tensor is not read", "stored tensors are not read")
        found += f", and {others}: it may be saved under other names"
    return Misfit(str(model), f"{found}.", kind="failure")


def _losses(unread: Mapping[ModelReference, Sequence[str]]) -> Iterator[Misfit]:
    """Yield the losses of a merge, models that lose the same tensors together."""
    groups: dict[frozenset[str], list[ModelReference]] = {}
    for model, names in unread.items():
        if names:
            groups.setdefault(frozenset(names), []).append(model)
    for lost, (first, *others) in groups.items():
        found = such_as(lost, "stored tensor", "stored tensors")
        also = f" (and of {count(len(others), 'other model')})" if others else ""
        yield Misfit(
            str(first),
            f"mergekit's table of this architecture leaves out {found}{also}, which the merge "
            f"would lose; set {ALLOWANCE}=1 to merge all the same.",
            kind="loss",
        )


def _fit(
    planner: MergePlanner, model: ModelReference, stored: Sequence[str], of_all: Collection[str]
) -> TableFit:
    """Return how the table fits one model; layers that slices leave out need not be there.

    Args:
        planner: mergekit's planner.
        model: The model.
        stored: The names of its stored tensors.
        of_all: The names of the stored tensors of all models.
    """
    from mergekit.architecture.base import ConfiguredModelArchitecture

    config = _config_of(planner, model)
    table = ConfiguredModelArchitecture(info=planner.arch_info, config=config)
    # mergekit skips an optional weight that no model stores, even where one could be packed.
    names = planner.config.modules or planner.arch_info.modules
    modules = [table.get_module(name) for name in names if name in planner.arch_info.modules]
    planned = [
        weight
        for module in modules
        for weight in module.all_weights()
        if not weight.optional or any(name in of_all for name in own_names(weight))
    ]
    fit = fit_table(stored, planned, conversions_of(config), tied_names_of(config))
    left_out = _names_left_out(planner, model, table)
    return TableFit(fit.unread, [name for name in fit.absent if name not in left_out])


def _names_left_out(
    planner: MergePlanner, model: ModelReference, table: ConfiguredModelArchitecture
) -> set[str]:
    """Return the tensors of the layers of a model that no slice of the recipe takes."""
    names: set[str] = set()
    for module, of_module in _sources_by_module(planner).items():
        sources = [source for source in of_module if source.model == model]
        taken = {layer for source in sources for layer in range(*source.layer_range)}
        layers = table.get_module(module)
        for layer in set(range(layers.num_layers() if of_module else 0)) - taken:
            names.update(weight.name for weight in layers.layer_weights(layer))
    return names


def _layers_past_the_end(planner: MergePlanner) -> Iterator[Misfit]:
    """Yield slices that take layers which their model does not have."""
    for name, sources in _sources_by_module(planner).items():
        if name not in planner.arch_info.modules:
            continue
        architecture = planner.arch_info.modules[name].architecture
        number = {
            model: architecture.num_layers(_config_of(planner, model))
            for model in {source.model for source in sources}
        }
        for source in sources:
            (first, after), layers = source.layer_range, number[source.model]
            if layers is None:
                continue
            sentence = find_layers_past_the_end(first, after, layers, "it")
            if sentence is not None:
                yield Misfit(str(source.model), sentence, kind="failure")


def _refused_configuration(planner: MergePlanner) -> Iterator[Misfit]:
    """Yield a configuration of the merge that transformers refuses to write, after the weights."""
    validate = getattr(planner.out_model_config, "validate", None)
    try:
        if validate is not None:
            validate()
    # The validators of transformers raise kinds of their own.
    except Exception as problem:
        reason = " ".join(str(problem).split()).rstrip(".")
        yield Misfit(
            "recipe",
            f"transformers refuses the configuration that the merge would get ({reason}).",
            kind="failure",
        )


def _sources_by_module(planner: MergePlanner) -> dict[str, list[InputSliceDefinition]]:
    """Return module -> the sources of its slices; none where the recipe names no slices for it."""
    config = planner.config
    modules = {name: module.slices for name, module in (config.modules or {}).items()}
    if config.slices:
        modules = dict.fromkeys(planner.arch_info.modules, config.slices)
    return {
        name: [source for stretch in slices or () for source in stretch.sources]
        for name, slices in modules.items()
    }


def _config_of(planner: MergePlanner, model: ModelReference) -> PretrainedConfig:
    config: PretrainedConfig = model.config(trust_remote_code=planner.options.trust_remote_code)
    return config
