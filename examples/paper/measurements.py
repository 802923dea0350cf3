"""The results of an experiment's subjects, in groups whose numbers are averaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any, TypeAlias

LABELS = {
    "magnitude": "Magnitude",
    "owl": "OWL",
    "dp": "DP",
    "dare": "DARE",
    "dare_linears": "DARE, linears alone",
    "dare_dpa": "DARE + DPA",
    "dppa": "DPPA",
    "dare_linear": "`dare_linear`",
    "ties": "TIES",
    "dare_ties": "`dare_ties`",
    "della": "DELLA",
    "dare_regmean": "DARE, by inputs",
    "dppa_regmean": "DPPA, by inputs",
    "dare_regmean_data_free": "DARE, by inputs, data-free",
    "dppa_regmean_data_free": "DPPA, by inputs, data-free",
    "task_arithmetic": "task arithmetic",
    "base": "base",
}
"""Method -> its name in tables and figures."""

LADDER = ("magnitude", "owl", "dp", "dare", "dare_linears")
"""The methods of Appendix A, and DARE on the tensors that the other methods prune."""

Results: TypeAlias = Mapping[str, Any]
"""The content of a subject's `results.json`."""


def make_slug(title: str) -> str:
    """Return a title as part of the name of a file or folder."""
    return title.lower().replace(" ", "_")


@dataclass(frozen=True)
class Sample:
    """The same number of every subject that has it, with its standard errors."""

    values: Sequence[float]
    errors: Sequence[float]

    @property
    def mean(self) -> float:
        """The mean over the subjects."""
        return mean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over the subjects, or the standard error of a single one."""
        return stdev(self.values) if len(self.values) > 1 else self.errors[0]

    def to_cell(self, printed: float | None = None) -> str:
        """Return a table cell: mean, spread and the paper's number; empty without values."""
        if not self.values:
            return ""
        in_brackets = "" if printed is None else f" ({printed:.2f})"
        return f"{self.mean:.1f} ± {self.spread:.1f}{in_brackets}"


@dataclass(frozen=True)
class Group:
    """Subjects whose numbers are averaged.

    Attributes:
        title: Heading of the group's part of the report.
        results: Subject -> its results.
    """

    title: str
    results: Mapping[str, Results]

    @property
    def first(self) -> Results:
        """The results of the first subject; all subjects measure the same recipes."""
        return next(iter(self.results.values()))

    @property
    def slug(self) -> str:
        """The title as part of a file name."""
        return make_slug(self.title)

    @property
    def domains(self) -> list[str]:
        """The domains, in their order."""
        return list(self.first["pruned"])

    @property
    def rates(self) -> list[int]:
        """The pruning rates, in percent, of single models without factors."""
        endings = {name.rpartition("_")[2] for name in self.recipe_names("pruned")}
        return sorted(int(ending) for ending in endings if ending.isdecimal())

    @property
    def merged_domains(self) -> list[tuple[str, ...]]:
        """The sets of domains that were merged."""
        return [tuple(name.split("_")) for name in self.first["merged"]]

    def recipe_names(self, section: str) -> list[str]:
        """The names of the recipes of one model, in the section `pruned` or `amplified`."""
        return list(self.first[section][self.domains[0]])

    def domain_ratios(self, section: str, name: str, domain: str) -> Sample:
        """Return the Domain-Ratios of all subjects; empty if none were measured.

        Args:
            section: `pruned`, `amplified`, or the merged domains, joined by `_`.
            name: Name of the recipe.
            domain: The domain whose tasks are scored.
        """
        ratios = []
        for results in self.results.values():
            own = results[section][domain] if section in results else results["merged"][section]
            if name in own:
                ratios.append(own[name]["domain_ratios"][domain])
        return Sample(
            [ratio["value"] for ratio in ratios],
            [ratio["error"] for ratio in ratios],
        )
