"""Measurements of merges: the weights that each way finds, and the test scores."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from statistics import mean

from interference import measure_interference
from plan import LEARNED, Domains, Merging, Plain
from single_models import read_factors
from subject_folder import (
    SubjectFolder,
    count_candidates,
    join,
    read_json,
    read_parameters,
    to_density,
)

from dppa_mergekit import method_table
from dppa_mergekit.analysis.results import Overlap

SUM_START, INPUTS_START = 0.3, 1.0
"""Weight of each model where a way to find weights begins: of a sum, and of a combination by
inputs."""

NORMALIZED = ("ties", "della")
"""mergekit's methods that divide by the sum of the weights unless told not to. With that division,
a common weight would change nothing."""

OBSERVED = "observed/observed.yml"

GROUPS = {
    "unpruned": ("task_arithmetic", "dp"),
    "mergekit": ("ties", "dare_linear", "dare_ties", "della"),
    "dare": ("dare_dpa",),
    "dppa": ("dppa",),
    "inputs": ("dare_regmean", "dppa_regmean"),
}
"""Group of merges that one command scores -> their methods. A command scores the fine-tuned models,
too, so few commands with many merges take less time."""


@dataclass(frozen=True)
class Merges:
    """The measurements of the merges of a subject."""

    folder: SubjectFolder

    def observe(self) -> float:
        """Observe the inputs of every model on prompts of its training; return the seconds."""
        if not any(map(_is_observed, chain(*self.folder.plan.mergings.values()))):
            return 0.0
        recipe = "recipes/observed.yml"
        alike: dict[str, Plain] = {domain: {"density": 0.2} for domain in self.folder.domains}
        self.folder.write_recipe(recipe, "dppa_regmean", alike)
        options: list[str] = []
        for domain in self.folder.domains:
            path = Path("prompts", f"{domain}.jsonl")
            path.parent.mkdir(exist_ok=True)
            lines = [
                json.dumps({"prompt": prompt}) for prompt in self.folder.subject.prompts[domain]
            ]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
            options += ["--prompts", str(path)]
        Path(OBSERVED).parent.mkdir(exist_ok=True)
        return self.folder.run("activations", recipe, "--output", OBSERVED, *options)

    def measure_interference(self, domains: Domains) -> Plain:
        """Return how far the models of some domains disturb each other.

        `shared` and `conflict` are means over pairs, at every rate that `analyze` knows: the share
        that both keep of what either keeps, and the share of opposite signs in what both keep.
        `angle` and `crosstalk` are those of `Interference`; only observed inputs tell them.
        """
        analysis = read_json(Path("analysis/analysis.json"))
        pairs = [
            {rate: Overlap(**overlap) for rate, overlap in pair["overlaps"].items()}
            for pair in analysis["pairs"]  # type: ignore[attr-defined]
            if {Path(model).name for model in pair["models"]} <= set(domains)
        ]
        found: Plain = {
            "shared": {rate: mean(pair[rate].shared for pair in pairs) for rate in pairs[0]},
            "conflict": {rate: mean(pair[rate].conflict for pair in pairs) for rate in pairs[0]},
        }
        if self.observe():
            given = read_parameters(OBSERVED)
            models = {name: Path(str(self.folder.domains[name]["model"])) for name in domains}
            files = {name: str(given[name]["activations"]) for name in domains}
            base = Path(self.folder.subject.base)
            found |= asdict(measure_interference(base, models, files))
        return found

    def list_weighings(self, domains: Domains) -> Iterator[partial[Plain]]:
        """Yield what finds the weights of each merge of some domains' models."""
        for merging in self.folder.plan.mergings[domains]:
            yield partial(self.find_weights, merging, domains)

    def find_weights(self, merging: Merging, domains: Domains) -> Plain:
        """Write the recipe of a merge with the weights that its way finds, and return their cost.

        The cost is the number of `candidates`, or states, that were scored, and the `seconds` that
        this took. Factors that were found before, and the observation of inputs, are not in it.
        """
        output = _name_recipe(merging, domains)
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        if merging.way == "given":
            self._write_start(output, merging, domains)
            return {"candidates": 0, "seconds": 0}
        recipe = f"recipes/{join(domains)}_{merging.name}.yml"
        self._write_start(recipe, merging, domains)
        plan = self.folder.plan
        options: tuple[str, ...]
        if merging.way in LEARNED:
            command = "adamerge"
            options = (
                *("--steps", str(plan.steps), "--every", str(plan.steps // (plan.states - 1))),
                *("--patience", str(plan.states), "--lr", f"{plan.learning_rate:g}"),
                *("--granularity", merging.way),
            )
        else:
            command = "search"
            options = (
                *("--tune", "weights", *(("--shared",) if merging.way == "shared" else ())),
                *("--max-evaluations", str(plan.weighings)),
            )
        tasks = self.folder.write_tasks_file(domains, "dev")
        seconds = self.folder.run(command, recipe, "--tasks", tasks, "--output", output, *options)
        return {"candidates": count_candidates(output), "seconds": seconds}

    def score_base(self, domains: Domains) -> Plain:
        """Return the test scores of the base model on some domains' tasks."""
        base, folder = self.folder.subject.base, f"merged/{join(domains)}/base"
        scores = self.folder.evaluate(domains, folder, (), "guarded", models=(base,))
        return {"base": scores[base], "dense": scores["dense"]}

    def score(self, group: str, domains: Domains) -> Plain:
        """Return the test scores of a group of merges of some domains' models.

        The scores of a merge also hold what its weights cost, as `find_weights` returns it.
        """
        all_ways = self.folder.plan.mergings[domains]
        own = [merging for merging in all_ways if _find_group(merging) == group]
        names = [merging.name for merging in own]
        scores = self.folder.evaluate(domains, f"merged/{join(domains)}/{group}", names, "guarded")
        for merging in own:
            found = scores[merging.name]
            assert isinstance(found, dict)
            found |= self.find_weights(merging, domains)
        return scores

    def list_groups(self, domains: Domains) -> list[str]:
        """Return the groups of the merges of some domains' models."""
        return list(dict.fromkeys(map(_find_group, self.folder.plan.mergings[domains])))

    def _write_start(self, path: str, merging: Merging, domains: Domains) -> None:
        """Write the recipe of a merge as it is before its weights are found."""
        parameters = {domain: self._start(merging, domain) for domain in domains}
        shared: Plain = {}
        if merging.method in NORMALIZED:
            shared["normalize"] = False
        if merging.method == "della":
            # Its densities lie within epsilon of the density, and have to be above 0.
            shared["epsilon"] = to_density(merging.rate) / 2
        self.folder.write_recipe(path, merging.method, parameters, shared)

    def _start(self, merging: Merging, domain: str) -> Plain:
        """Return the parameters of a domain's model before weights are found."""
        by_inputs = method_table.is_by_inputs(merging.method)
        parameters: Plain = {"weight": INPUTS_START if by_inputs else SUM_START}
        if merging.method != "task_arithmetic":
            parameters["density"] = to_density(merging.rate)
        if merging.method == "dppa" and merging.rate:
            parameters = {**read_factors("dppa", merging.rate, domain), **parameters}
        if _is_observed(merging):
            parameters["activations"] = read_parameters(OBSERVED)[domain]["activations"]
        return parameters


def _is_observed(merging: Merging) -> bool:
    return merging.observed and method_table.is_by_inputs(merging.method)


def _name_recipe(merging: Merging, domains: Domains) -> str:
    return f"merged/{join(domains)}/{_find_group(merging)}/{merging.name}.yml"


def _find_group(merging: Merging) -> str:
    (found,) = (group for group, methods in GROUPS.items() if merging.method in methods)
    return found
