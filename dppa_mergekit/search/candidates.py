"""The meaning of a candidate's numbers: factors, weights, or shares of a teacher's proposal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeAlias

from dppa_mergekit.recipes.recipe import Setting
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.racing import ONE, Candidate
from dppa_mergekit.search.strategies import Space

Settings: TypeAlias = Mapping[str, Setting]
"""Name -> factor, factors of all layers, or weight; empty for the recipe as it is."""

AS_IT_IS = "the recipe as it is"

Proposal: TypeAlias = Mapping[str, Sequence[float]]
"""Factor -> what a teacher proposes: one value, or a value for each layer from first to last."""


class Candidates(Protocol):
    """The candidates of one search."""

    @property
    def names(self) -> Sequence[str]:
        """The factors or weights that a candidate has a number for, in order."""
        ...

    @property
    def space(self) -> Space:
        """The candidates that may be tried."""
        ...

    def settings(self, candidate: Candidate) -> Settings:
        """Return name -> the factors or the weight that a candidate stands for."""
        ...

    def may_win(self, candidate: Candidate) -> bool:
        """Return whether a candidate may be the result of the search."""
        ...


MakeCandidates: TypeAlias = Callable[[Sequence[str], Options, Proposal | None], Candidates]
"""Makes the candidates of a search from its names, its options and the teacher's proposal."""


@dataclass(frozen=True)
class FactorCandidates:
    """Candidates that are factors, one for each partition; see `Candidates`."""

    names: Sequence[str]
    space: Space

    def settings(self, candidate: Candidate) -> Settings:
        """Return name -> factor."""
        return _values(self.names, candidate)

    def may_win(self, candidate: Candidate) -> bool:
        """Return False for a factor of 0: it leaves a partition out, which is only a step."""
        return 0 not in candidate


@dataclass(frozen=True)
class MergeFactorCandidates(FactorCandidates):
    """Candidates that are factors of all models in a merge, beside the merge as the recipe has it.

    The start, all factors 1, stands for the recipe with what it has: factors that it gives, or
    those that the merge finds itself.
    """

    def settings(self, candidate: Candidate) -> Settings:
        """Return name -> factor; nothing for the recipe as it is."""
        return {} if candidate == self.space.start else super().settings(candidate)


@dataclass(frozen=True)
class BlockCandidates:
    """Candidates that are shares of the way from factors 1 to a proposal for each block.

    Attributes:
        names: The factors.
        space: The shares that may be tried: 0 is factors 1, ONE is the proposal.
        proposal: The teacher's proposal.
        low: The least factor.
        high: The largest factor.
    """

    names: Sequence[str]
    space: Space
    proposal: Proposal
    low: float
    high: float

    def settings(self, candidate: Candidate) -> Settings:
        """Return name -> factors of all layers, or one factor."""
        found: dict[str, Setting] = {}
        for name, share in _values(self.names, candidate).items():
            factors = [
                min(max(round(1 + share * (factor - 1), 4), self.low), self.high)
                for factor in self.proposal[name]
            ]
            found[name] = factors[0] if len(factors) == 1 else factors
        return found

    def may_win(self, candidate: Candidate) -> bool:
        """Return True: a share of 0 is factors 1."""
        return True


@dataclass(frozen=True)
class WeightCandidates:
    """Candidates that are weights of a merge.

    Attributes:
        names: The fine-tuned models, or the one weight of all.
        space: The weights that may be tried.
        start: The weights of the recipe.
    """

    names: Sequence[str]
    space: Space
    start: Sequence[float]

    def settings(self, candidate: Candidate) -> Settings:
        """Return name -> weight; of the start, the recipe's to the last digit."""
        if candidate == self.space.start:
            return dict(zip(self.names, self.start, strict=True))
        return _values(self.names, candidate)

    def may_win(self, candidate: Candidate) -> bool:
        """Return True: a weight may be 0."""
        return True


@dataclass(frozen=True)
class WeightFactorCandidates:
    """Candidates that are weights of a merge, and then factors of its models.

    Attributes:
        weights: Candidates of the weights alone.
        factors: Candidates of the factors alone.
        space: The weights and factors that may be tried.
    """

    weights: Candidates
    factors: Candidates
    space: Space

    @property
    def names(self) -> Sequence[str]:
        """The fine-tuned models, then model and factor."""
        return [*self.weights.names, *self.factors.names]

    def settings(self, candidate: Candidate) -> Settings:
        """Return model -> weight, and model and factor -> factor; none for the recipe's own."""
        weights, factors = self._parts(candidate)
        return {**self.weights.settings(weights), **self.factors.settings(factors)}

    def may_win(self, candidate: Candidate) -> bool:
        """Return False for a factor of 0."""
        weights, factors = self._parts(candidate)
        return self.weights.may_win(weights) and self.factors.may_win(factors)

    def _parts(self, candidate: Candidate) -> tuple[Candidate, Candidate]:
        number = len(self.weights.names)
        return candidate[:number], candidate[number:]


def factor_candidates(
    names: Sequence[str], options: Options, proposal: Proposal | None = None
) -> Candidates:
    """Return the candidates of a search for factors, which starts from factors 1.

    Args:
        names: The factors.
        options: How to search; with `per_block` there must be a proposal.
        proposal: The teacher's proposal, if the strategy asks for one.
    """
    if proposal is not None and options.per_block:
        shares = Space(
            (0,) * len(names),
            0,
            2 * ONE,
            options.downwards,
            options.patience,
            proposal=(ONE,) * len(names),
        )
        return BlockCandidates(names, shares, proposal, options.low, options.high)
    proposed = None if proposal is None else [proposal[name][0] for name in names]
    return FactorCandidates(names, _space([1.0] * len(names), options, proposed))


def weight_candidates(weights: Sequence[float], relative: bool = False) -> MakeCandidates:
    """Return what makes the candidates of a search that starts from the weights of a recipe.

    Args:
        weights: The weights of the recipe.
        relative: Whether only their ratios count.
    """

    def make(names: Sequence[str], options: Options, _: Proposal | None) -> Candidates:
        space = replace(_space(weights, options), relative=relative)
        return WeightCandidates(names, space, weights)

    return make


def merge_factor_candidates(
    names: Sequence[str], options: Options, _: Proposal | None
) -> Candidates:
    """Return the candidates of a search for all models' factors, which starts from the recipe's.

    Args:
        names: Model and factor, separated by a blank; those of one model stand together.
        options: How to search.
    """
    of_models: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        of_models.setdefault(name.rpartition(" ")[0], []).append(index)
    space = replace(_space([1.0] * len(names), options), groups=list(of_models.values()))
    return MergeFactorCandidates(names, space)


def weight_factor_candidates(
    weights: Sequence[float], relative: bool, of_factors: Options
) -> MakeCandidates:
    """Return what makes the candidates of a search for weights, and then for factors.

    Args:
        weights: The weights of the recipe.
        relative: Whether only their ratios count.
        of_factors: How factors are searched; the options of the search are those of the weights.
    """

    def make(names: Sequence[str], options: Options, _: Proposal | None) -> Candidates:
        models, factors = names[: len(weights)], names[len(weights) :]
        first = weight_candidates(weights, relative)(models, options, None)
        second = merge_factor_candidates(factors, of_factors, None)
        start = (*first.space.start, *second.space.start)
        whole = replace(first.space, start=start, stages=(first.space, second.space))
        return WeightFactorCandidates(first, second, whole)

    return make


def one_number(setting: Setting) -> float:
    """Return a setting that is one number, as weights and factors for all blocks are.

    Factors for each block, the only gradients among settings, are those of the partitions of one
    model: they go to its live model or its recipe as they are.
    """
    assert isinstance(setting, (int, float)), setting
    return float(setting)


def describe(candidates: Candidates, candidate: Candidate) -> str:
    """Return a candidate's numbers as text, as in `amplify_90 1.2, amplify_80 1`.

    Numbers that stand for the recipe as it is are left out.
    """
    settings = candidates.settings(candidate)
    if not settings:
        return AS_IT_IS
    values = _values(candidates.names, candidate)
    values = {name: value for name, value in values.items() if name in settings}
    return ", ".join(f"{name} {value:g}" for name, value in values.items())


def _values(names: Sequence[str], candidate: Candidate) -> dict[str, float]:
    return {name: value / ONE for name, value in zip(names, candidate, strict=True)}


def _space(
    start: Sequence[float], options: Options, proposal: Sequence[float] | None = None
) -> Space:
    return Space(
        _hundredths(start),
        round(options.low * ONE),
        round(options.high * ONE),
        options.downwards,
        options.patience,
        None if proposal is None else _hundredths(proposal),
    )


def _hundredths(values: Sequence[float]) -> Candidate:
    return tuple(round(value * ONE) for value in values)
