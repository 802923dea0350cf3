"""What `analyze` advises, against the tables that it is drawn from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

import pytest
import quotes

from dppa_mergekit.analysis.advice import merge_verdict, verdict
from dppa_mergekit.analysis.evidence import (
    INPUTS,
    LEARNED,
    LEARNED_INPUTS,
    MERGED,
    PRUNED,
    SIGNS,
    SUM,
    WOULD_DO,
    Merged,
    bound_noise,
)
from dppa_mergekit.analysis.results import (
    Analysis,
    Divergences,
    LinearAnalysis,
    MergeDivergences,
    ModelAnalysis,
    Offsets,
)

QUOTES = quotes.Quotes(quotes.read_tables(quotes.HERE / "tables"))


def model(relative: float, density: float, name: str = "math") -> ModelAnalysis:
    offsets = Offsets(-1.0, (0.0,) * 9, 1.0, 0.0, relative, relative, (), 1.0)
    linear = LinearAnalysis("w", 0, "w", 1000, relative, None, round(1000 * density), {})
    return ModelAnalysis(name, offsets, (linear,), ())


@pytest.mark.parametrize(
    ("relative", "density", "beginning"),
    [
        # Little noise, at any density.
        (0.002, 0.1, "dare_linear would probably do: "),
        (0.022, 0.1, "dare_linear would probably do: "),
        (0.022, 0.05, "dare_linear would probably do: "),
        (0.1, 0.9, "dare_linear would probably do: "),
        (0.04, 0.1, "dare_linear would probably do: "),
        # Too much.
        (0.022, 0.02, "No method is sure to do at this density; prune less: "),
        (0.05, 0.1, "dp would probably do, dare_linear may not: "),
        (0.064, 0.1, "dp would probably do, dare_linear may not: "),
        (0.064, 0.05, "No method is sure to do at this density; prune less: "),
        (0.209, 0.2, "dp would probably do, dare_linear may not: "),
        (0.209, 0.1, "dp would probably do, dare_linear may not: "),
        (0.33, 0.2, "dp would probably do, dare_linear may not: "),
        (0.6, 0.1, "No method is sure to do at this density; prune less: "),
        (0.6, 0.2, "dp may do, dare_linear may not: "),
        (0.022, 0.001, "No method is sure to do at this density; prune less: "),
        (0.33, 0.01, "No method is sure to do at this density; prune less: "),
        (0.33, 0.05, "No method is sure to do at this density; prune less: "),
    ],
)
def test_the_verdict_on_one_model(relative: float, density: float, beginning: str) -> None:
    said = verdict(model(relative, density))
    assert said.startswith(beginning)
    assert f"deviate by {relative:.2g}" in said
    noise = relative * ((1 - density) / density) ** 0.5
    assert re.search(rf"noise of DARE's rescaling is {noise:.2g} of the (base's )?weights", said)
    assert ("more than any" in said) == (relative == 0.6)
    assert ("No density as low was measured." in said) == (
        (relative, density) in ((0.022, 0.001), (0.33, 0.01))
    )


def test_the_bounds_of_noise_are_those_of_the_tables() -> None:
    """Below them the methods kept enough of every model in the tables, right above not."""
    for method, column in (("dare_linear", "DARE"), ("dare_dpa", "DARE, linears alone")):
        points = []
        for training in chain(*TRAININGS):
            table = f"{training}: Where methods cross"
            noises, shares = (QUOTES.column(table, name) for name in ("noise", column))
            points += [(one.value, two.value) for one, two in zip(noises, shares, strict=True)]
        largest, (least, _) = bound_noise(method)
        # Deviations of three models lie within a tenth of their mean.
        below = [share for noise, share in points if noise <= 0.9 * largest]
        above = sorted(point for point in points if point[0] > 1.1 * largest)
        assert min(below) >= least - 0.6 >= WOULD_DO - 0.6, method
        assert min(share for _, share in above[:6]) < WOULD_DO, method


def test_nothing_to_advise() -> None:
    assert "equal those of the base" in verdict(model(0.0, 0.1))
    assert "Nothing is pruned" in verdict(model(0.1, 1.0))
    assert "Nothing is kept" in verdict(model(0.1, 0.0))


def test_measured_on_prompts() -> None:
    def said(**measured: float) -> str:
        found = Divergences(prompts=8, **measured)  # type: ignore[arg-type]
        return verdict(replace(model(0.02, 0.1), divergences=found))

    assert said(dare_linear=0.11, dare=0.1, dp=0.3).startswith("Prune by dare_linear: ")
    far = said(dare_linear=2.0, dare=0.1, dp=0.3)
    assert far.startswith("Prune by dare_dpa: ")
    assert "2 by dare_linear, 0.1 by dare_dpa, 0.3 by dp" in far
    assert said(dare_linear=2.0, dare=0.5, dp=0.3).startswith("Prune by dp: ")


def analysis(*models: ModelAnalysis, merges: tuple[MergeDivergences, ...] = ()) -> Analysis:
    return Analysis("dppa", (), models, (), merges)


def test_the_verdict_on_a_merge() -> None:
    assert merge_verdict(analysis(model(0.03, 0.1))) is None
    two = merge_verdict(analysis(model(0.03, 0.1), model(0.026, 0.1, "law")))
    assert two is not None
    assert two.startswith("Combine by inputs (dppa_regmean or dare_regmean, with prompts): ")
    assert "two short fine-tunes of SmolLM2-135M that rehearsed (0.028), kept 94 to 95 % by" in two
    tiny = merge_verdict(analysis(*(model(0.2, 0.1, str(number)) for number in range(3))))
    assert tiny is not None
    assert tiny.startswith("Combine by inputs (")
    assert "of three hard fine-tunes of tiny Llamas (0.209), kept 91 to 99 % by inputs" in tiny
    light = merge_verdict(analysis(*(model(0.022, 0.1, str(number)) for number in range(3))))
    assert light is not None
    assert "of three light fine-tunes of SmolLM2-135M (0.024), kept 82 to 97 % by inputs" in light
    six = merge_verdict(analysis(*(model(0.32, 0.1, str(number)) for number in range(6))))
    assert six is not None
    assert "six hard fine-tunes of a tiny Llama (0.316)" in six
    merges = tuple(
        MergeDivergences(words, method, weight, {"math": value, "law": value + 1})
        for words, method, weight, value in (
            (SUM, "dp", 0.3, 1.0),
            (SIGNS, "dppa_ties", 0.7, 2.0),
            (INPUTS, "dppa_regmean", None, 0.25),
        )
    )
    measured = merge_verdict(analysis(model(0.3, 0.1), model(0.3, 0.1, "law"), merges=merges))
    assert measured is not None
    assert measured.startswith("Combine by inputs, with prompts (dppa_regmean): of all merges")
    assert "1.5 by a sum with one weight a model (dp, weight 0.3)" in measured


SIX = "addition + function + sentiment + ratio + clause + article"
DOMAINS = ("math", "finance", "law")
TRAININGS = (
    {"smollm2_simple": DOMAINS},
    {"smollm2_hard": DOMAINS},
    {"miniature": DOMAINS},
    {"quickstart": DOMAINS, "six_tiny_experts": SIX.split(" + ")},
)
"""For each of PRUNED, file of its tables -> its models."""


@pytest.mark.parametrize("number", range(len(PRUNED)), ids=map("_".join, TRAININGS))
def test_what_pruning_kept_is_what_the_results_say(number: int) -> None:
    """Every share is in the tables that are their source."""
    for density, kept in PRUNED[number].kept.items():
        for method, (least, largest) in kept.items():
            table, column = {
                "dare_linear": ("Where methods cross", "DARE"),
                "dare_dpa": ("Where methods cross", "DARE, linears alone"),
                "dp": ("Where methods cross", "DP"),
                "dppa": ("Table 1: one model pruned", "DPPA"),
            }[method]
            shares = [
                QUOTES.cell(
                    f"{file}: {table}", f"{model}, {100 - 100 * density:.0f} %", column
                ).value
                for file, models in TRAININGS[number].items()
                for model in models
            ]
            assert abs(min(shares) - least) <= 0.6, method
            assert abs(max(shares) - largest) <= 0.6, method


@dataclass(frozen=True)
class MergeTable:
    """A table of merges: its name, the columns of the rows' names, and those of shares."""

    name: str
    names: tuple[int, ...] = (0,)
    shares: tuple[int, ...] = (3,)


THREE = "Table 5: merges of math + finance + law"
PAIRS = [
    MergeTable(f"six_tiny_experts: Table 6: merges of {one} + {other}", (0, 2), (5,))
    for one, other in combinations(SIX.split(" + "), 2)
]
TABLES = {
    "the fifteen pairs of six hard fine-tunes of a tiny Llama": PAIRS,
    "three light fine-tunes of SmolLM2-135M": [
        MergeTable(f"smollm2_simple: {THREE}", (0, 2), (6,))
    ],
    "three hard fine-tunes of SmolLM2-135M": [MergeTable(f"smollm2_hard: {THREE}", (0, 2), (6,))],
    "two hard fine-tunes of SmolLM2-135M": [
        MergeTable("smollm2_hard: Table 6: merges of math + finance", (0, 2), (5,))
    ],
    "three hard fine-tunes of tiny Llamas": [MergeTable(f"miniature: {THREE}", (0, 2), (6,))],
    "three short fine-tunes of SmolLM2-135M": [MergeTable("smollm2_short: Three")],
    "two short fine-tunes of SmolLM2-135M": [MergeTable("smollm2_short: Two")],
    "two short fine-tunes of SmolLM2-135M that rehearsed": [
        MergeTable("smollm2_short: Two that rehearsed")
    ],
    "the quickstart's three fine-tunes of a tiny Llama": [
        MergeTable(f"quickstart: {THREE}", (0, 2), (6,))
    ],
    "six hard fine-tunes of a tiny Llama": [
        MergeTable(f"six_tiny_experts: Table 5: merges of {SIX}", (0, 2), (9,)),
        # Of the densities, those down to 0.1; of the granularities, all but a number a model.
        MergeTable("six_experts: Merges", shares=(1, 2, 3)),
        MergeTable("six_experts: Finer weights and factors", (0, 1), (4, 5, 6)),
    ],
}

ROWS = {
    SUM: "task_arithmetic|dare_linear|dare_dpa|dppa|"
    "(task arithmetic|`dare_linear`|DARE(, linears alone)?|DPPA), search( of one)?",
    SIGNS: "ties|TIES(, summed)?, search",
    LEARNED: "(dare_dpa|dppa|DARE(, linears alone)?|DPPA|DP|task arithmetic), "
    "(AdaMerging(?!, model).*|distill|hidden)",
    INPUTS: "(dare|dppa)_regmean, (25|32|100) prompts|(DARE|DPPA), by inputs, as it starts",
    LEARNED_INPUTS: "(dare|dppa)_regmean, (32 prompts, AdaMerging.*|distill|hidden)|"
    "DPPA, by inputs, AdaMerging, (?!model).*",
}
"""Combination -> the names of its rows."""


def list_shares(tables: Sequence[MergeTable]) -> dict[str, list[float]]:
    """Return combination -> the shares of all its rows in some tables."""
    found: dict[str, list[float]] = {}
    for table in tables:
        for cells in QUOTES.tables[table.name].rows:
            name = ", ".join(cells[column] for column in table.names)
            for combination, pattern in ROWS.items():
                if re.fullmatch(pattern, name):
                    shares = [cells[column].split(" ± ")[0] for column in table.shares]
                    found.setdefault(combination, []).extend(map(float, filter(None, shares)))
    return found


def test_the_leads_of_pairs_are_those_of_the_tables() -> None:
    (pairs,) = (merged for merged in MERGED if merged.merges > 1)
    assert pairs.merges == len(PAIRS) == 15
    shares = [list_shares([table]) for table in PAIRS]
    leads = [max(each[INPUTS]) - max(each[SUM]) for each in shares]
    assert pairs.lead == (round(min(leads)), round(max(leads)))


@pytest.mark.parametrize("merged", MERGED, ids=lambda one: one.what)
def test_what_merges_kept_is_what_the_results_say(merged: Merged) -> None:
    found = list_shares(TABLES[merged.what])
    assert found.keys() == merged.combinations.keys()
    for combination, (least, largest) in merged.combinations.items():
        assert abs(min(found[combination]) - least) <= 0.6, combination
        assert abs(max(found[combination]) - largest) <= 0.6, combination
