"""Measurements of single models: pruned without factors, and amplified by factors of a search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from plan import Plain
from subject_folder import SubjectFolder, count_candidates, read_json, read_parameters, to_density

PRUNINGS: dict[str, tuple[str, Plain]] = {
    "magnitude": ("dp", {"max_fluctuation": 0.0}),
    "owl": ("owl", {}),
    "dp": ("dp", {}),
    "dare": ("dare_linear", {}),
    "dare_linears": ("dare_dpa", {}),
}
"""Pruning without factors -> merge method and its shared parameters. `dare` prunes every tensor, as
mergekit does; `dare_linears` prunes the tensors that DP prunes."""

AMPLIFIED = ("dppa", "dare_dpa")
"""Merge methods with factors."""


@dataclass(frozen=True)
class SingleModels:
    """The measurements of the models of a subject, each alone on the base."""

    folder: SubjectFolder

    def measure_offsets(self) -> Plain:
        """Return domain -> offsets of the deltas by `analyze`, whose figures stay in the folder."""
        alike: dict[str, Plain] = {
            domain: {"weight": 1.0, "density": 0.2} for domain in self.folder.domains
        }
        self.folder.write_recipe("recipes/all.yml", "dppa", alike)
        self.folder.run("analyze", "recipes/all.yml", "--output", "analysis")
        models = read_json(Path("analysis/analysis.json"))["models"]
        assert isinstance(models, list)
        return {Path(model["model"]).name: model["offsets"] for model in models}

    def score_pruned(self, domain: str) -> Plain:
        """Return method and rate -> test scores of the domain's model, pruned without factors."""
        scores: Plain = {}
        plan = self.folder.plan
        for section, rates in (("pruned", plan.rates), ("beyond", plan.beyond)):
            names = []
            for rate in rates:
                for name, (method, shared) in PRUNINGS.items():
                    parameters: Plain = {"weight": 1.0, "density": to_density(rate)}
                    names.append(f"{name}_{rate}")
                    path = f"{section}/{domain}/{names[-1]}.yml"
                    self.folder.write_recipe(path, method, {domain: parameters}, shared)
            if names:
                scores |= self.folder.evaluate([domain], f"{section}/{domain}", names, use="test")
        return scores

    def search_factors(self, method: str, rate: int, domain: str) -> Plain:
        """Return the factors that `search` finds for a domain's model alone, and their cost.

        The cost is the number of `candidates` that were scored, and the `seconds` that this took.
        """
        recipe = f"recipes/{method}_{rate}.yml"
        alike: dict[str, Plain] = {
            name: {"weight": 1.0, "density": to_density(rate)} for name in self.folder.domains
        }
        self.folder.write_recipe(recipe, method, alike)
        Path("factors").mkdir(exist_ok=True)
        output = _name_factors_file(method, rate, domain)
        seconds = self.folder.run(
            *("search", recipe, "--tasks", self.folder.write_tasks_file([domain], "dev")),
            *("--output", output),
            *("--max-evaluations", str(self.folder.plan.candidates)),
        )
        found = read_factors(method, rate, domain)
        factors = {name: value for name, value in found.items() if name.startswith("amplify_")}
        return {"factors": factors, "candidates": count_candidates(output), "seconds": seconds}

    def list_searches(self) -> Iterator[partial[Plain]]:
        """Yield all searches of factors."""
        for domain in self.folder.domains:
            for rate in self.folder.plan.searched:
                for method in AMPLIFIED:
                    yield partial(self.search_factors, method, rate, domain)

    def score_amplified(self, domain: str) -> Plain:
        """Return method and rate -> test scores of the domain's model with the searched factors.

        The plan's other factors of the 90 partition are scored with them.
        """
        folder, names = f"amplified/{domain}", []
        for rate in self.folder.plan.searched:
            for method in AMPLIFIED:
                found = {**read_factors(method, rate, domain), "weight": 1.0}
                names.append(f"{method}_{rate}")
                self.folder.write_recipe(f"{folder}/{names[-1]}.yml", method, {domain: found})
            for factor in self.folder.plan.factors:
                given: Plain = {"weight": 1.0, "density": to_density(rate), "amplify_90": factor}
                names.append(f"dppa_{rate}_at_{factor:g}")
                self.folder.write_recipe(f"{folder}/{names[-1]}.yml", "dppa", {domain: given})
        return self.folder.evaluate([domain], folder, names, use="test")


def read_factors(method: str, rate: int, domain: str) -> Plain:
    """Return the parameters of a domain's model with the factors that the search has found."""
    return read_parameters(_name_factors_file(method, rate, domain))[domain]


def _name_factors_file(method: str, rate: int, domain: str) -> str:
    return f"factors/{method}_{rate}_{domain}.yml"
