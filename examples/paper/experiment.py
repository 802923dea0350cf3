"""The paper's measurements of a base model and its fine-tuned models, by the public commands.

In:  a subject: its models in a folder, and the tasks of their domains.
Out: `results.json` in that folder. Every command runs there as a user would type it, and only once
     (see `command_log.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

import yaml
from command_log import run_once
from plan import Plain, Plan, Subject

from dppa_mergekit.storage.output_files import write_whole

Part: TypeAlias = Callable[[], object]
"""A part of an experiment: some commands, one after the other."""

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

START = 0.3
"""Weight of each model where a search for weights begins."""


@dataclass(frozen=True)
class Merge:
    """A merge whose weights are to be found.

    Attributes:
        name: Name of the method and, where there is one, of the pruning rate.
        make_recipe: Returns the recipe with the weights that the search begins with.
        ways: How its weights are found, as in `Plan.ways`.
    """

    name: str
    make_recipe: Callable[[], Plain]
    ways: Sequence[str]


@dataclass(frozen=True)
class Experiment:
    """All measurements of one subject.

    Parts run in the subject's folder. Each reads what parts of earlier stages have written.
    """

    subject: Subject
    plan: Plan

    def run(self, part: Part) -> None:
        """Run a part in the subject's folder; commands that have ended do not run again."""
        here = Path.cwd()
        os.chdir(self.subject.folder)
        try:
            part()
        finally:
            os.chdir(here)

    def list_model_parts(self) -> Iterator[Part]:
        """Yield the parts that only need the models: search of factors, scores after pruning."""
        for domain in self._domains:
            for rate in self.plan.searched:
                for method in AMPLIFIED:
                    yield partial(self._search_factors, method, rate, domain)
        for domain in self._domains:
            yield partial(self._score_pruned, domain)
        yield self._measure_offsets

    def list_factor_parts(self) -> Iterator[Part]:
        """Yield the parts that need factors: weights of merges, scores of amplified models."""
        for domains in self.plan.sets:
            for merge in self._list_merges(domains):
                for way in merge.ways:
                    yield partial(self._find_weights, way, merge, domains)
        for domain in self._domains:
            yield partial(self._score_amplified, domain)

    def list_weight_parts(self) -> Iterator[Part]:
        """Yield the parts that need weights: scores of merges."""
        for domains in self.plan.sets:
            yield partial(self._score_merges, domains)

    def list_final_parts(self) -> Iterator[Part]:
        """Yield the part that writes the results of all other parts."""
        yield self._write_results

    def _write_results(self) -> None:
        results = {
            "offsets": self._measure_offsets(),
            "pruned": {domain: self._score_pruned(domain) for domain in self._domains},
            "factors": {
                f"{method}_{rate}": {
                    domain: self._search_factors(method, rate, domain) for domain in self._domains
                }
                for rate in self.plan.searched
                for method in AMPLIFIED
            },
            "amplified": {domain: self._score_amplified(domain) for domain in self._domains},
            "merged": {_join(domains): self._score_merges(domains) for domains in self.plan.sets},
        }
        write_whole(Path("results.json"), json.dumps(results, indent=1) + "\n")

    @property
    def _domains(self) -> dict[str, Plain]:
        domains: dict[str, Plain] = self.subject.tasks["domains"]  # type: ignore[assignment]
        return domains

    def _measure_offsets(self) -> Plain:
        """Return domain -> offsets of the deltas by `analyze`, whose figures stay in the folder."""
        recipe = self._make_uniform_recipe(
            "dppa", list(self._domains), {"weight": 1.0, "density": 0.2}
        )
        _write_yaml("recipes/all.yml", recipe)
        self._run("analyze", "recipes/all.yml", "--output", "analysis")
        models = read_json(Path("analysis/analysis.json"))["models"]
        assert isinstance(models, list)
        return {Path(model["model"]).name: model["offsets"] for model in models}

    def _score_pruned(self, domain: str) -> Plain:
        """Return method and rate -> test scores of the domain's model, pruned without factors."""
        scores: Plain = {}
        for section, rates in (("pruned", self.plan.rates), ("beyond", self.plan.beyond)):
            names = []
            for rate in rates:
                for name, (method, shared) in PRUNINGS.items():
                    parameters: Plain = {"weight": 1.0, "density": _to_density(rate)}
                    recipe = self._make_recipe(method, {domain: parameters})
                    names.append(f"{name}_{rate}")
                    _write_yaml(
                        f"{section}/{domain}/{names[-1]}.yml", {**recipe, "parameters": shared}
                    )
            if names:
                scores |= self._evaluate([domain], f"{section}/{domain}", names, use="test")
        return scores

    def _search_factors(self, method: str, rate: int, domain: str) -> Plain:
        """Return the factors that `search` finds for a domain's model alone."""
        recipe = f"recipes/{method}_{rate}.yml"
        parameters: Plain = {"weight": 1.0, "density": _to_density(rate)}
        _write_yaml(recipe, self._make_uniform_recipe(method, list(self._domains), parameters))
        Path("factors").mkdir(exist_ok=True)
        self._run(
            *("search", recipe, "--tasks", self._write_tasks_file([domain], "dev")),
            *("--output", _name_factors_file(method, rate, domain)),
            *("--max-evaluations", str(self.plan.candidates)),
        )
        found = self._read_searched_parameters(method, rate, domain)
        return {name: value for name, value in found.items() if name.startswith("amplify_")}

    def _score_amplified(self, domain: str) -> Plain:
        """Return method and rate -> test scores of the domain's model with the searched factors.

        The plan's other factors of the 90 partition are scored with them.
        """
        folder, names = f"amplified/{domain}", []
        for rate in self.plan.searched:
            for method in AMPLIFIED:
                found = {**self._read_searched_parameters(method, rate, domain), "weight": 1.0}
                names.append(f"{method}_{rate}")
                recipe = self._make_recipe(method, {domain: found})
                _write_yaml(f"{folder}/{names[-1]}.yml", recipe)
            for factor in self.plan.factors:
                given = {"weight": 1.0, "density": _to_density(rate), "amplify_90": factor}
                names.append(f"dppa_{rate}_at_{factor:g}")
                recipe = self._make_recipe("dppa", {domain: given})
                _write_yaml(f"{folder}/{names[-1]}.yml", recipe)
        return self._evaluate([domain], folder, names, use="test")

    def _score_merges(self, domains: Sequence[str]) -> Plain:
        """Return method, rate and way -> test scores of the merges of some domains' models."""
        names = [
            f"{merge.name}_{way}" for merge in self._list_merges(domains) for way in merge.ways
        ]
        return self._evaluate(domains, f"merged/{_join(domains)}", names, use="guarded")

    def _list_merges(self, domains: Sequence[str]) -> Iterator[Merge]:
        """Yield the merges of some domains' models."""
        make: Callable[[], Plain]
        for method, way in self.plan.others:
            if method == "task_arithmetic":
                make = partial(self._make_uniform_recipe, method, domains, {"weight": START})
                yield Merge(method, make, (way,))
                continue
            for rate in self.plan.searched:
                given: Plain = {"weight": START, "density": _to_density(rate)}
                make = partial(self._make_summed_recipe, method, domains, given)
                yield Merge(f"{method}_{rate}", make, (way,))
        # AdaMerging only knows this package's methods; `dp` at 0 % is task arithmetic.
        if "adamerge" in self.plan.ways:
            unpruned: Plain = {"weight": START, "density": 1.0}
            make = partial(self._make_uniform_recipe, "dp", domains, unpruned)
            yield Merge("dp_0", make, ("adamerge",))
        for rate in self.plan.searched:
            given = {"weight": START, "density": _to_density(rate)}
            make = partial(self._make_uniform_recipe, "dare_dpa", domains, given)
            yield Merge(f"dare_{rate}", make, self.plan.ways)
            make = partial(self._make_amplified_recipe, rate, domains)
            yield Merge(f"dppa_{rate}", make, self.plan.ways)

    def _find_weights(self, way: str, merge: Merge, domains: Sequence[str]) -> None:
        """Write the recipe of a merge with the weights that one way finds."""
        together = _join(domains)
        recipe = f"recipes/{together}_{merge.name}.yml"
        output = f"merged/{together}/{merge.name}_{way}.yml"
        _write_yaml(recipe, merge.make_recipe())
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        options: tuple[str, ...]
        if way == "adamerge":
            steps, states = self.plan.steps, self.plan.states
            command = "adamerge"
            options = (
                *("--steps", str(steps), "--every", str(steps // (states - 1))),
                *("--patience", str(states), "--lr", f"{self.plan.learning_rate:g}"),
                *("--granularity", "block"),
            )
        else:
            command = "search"
            options = (
                *("--tune", "weights", *(("--shared",) if way == "shared" else ())),
                *("--max-evaluations", str(self.plan.weighings)),
            )
        tasks = self._write_tasks_file(domains, "dev")
        self._run(command, recipe, "--tasks", tasks, "--output", output, *options)

    def _evaluate(
        self, domains: Sequence[str], folder: str, names: Sequence[str], use: str
    ) -> Plain:
        """Return the scores of the base, and of the recipes of some names in a folder.

        `dense` in the result has the scores of the fine-tuned models.
        """
        recipes = {name: f"{folder}/{name}.yml" for name in names}
        options = [part for path in recipes.values() for part in ("--recipe", path)]
        tasks = self._write_tasks_file(domains, use)
        base = self.subject.base
        self._run("evaluate", base, "--tasks", tasks, "--output", folder, *options)
        evaluation = read_json(Path(folder, "evaluation.json"))
        models = evaluation["models"]
        assert isinstance(models, dict)
        by_name = {name: models[path] for name, path in {"base": base, **recipes}.items()}
        return {**by_name, "dense": evaluation["dense"]}

    def _write_tasks_file(self, domains: Sequence[str], use: str) -> str:
        """Write the tasks file of some domains and return its path.

        Args:
            domains: Their names.
            use: `dev` for choosing, `test` for reporting, `guarded` for reporting the guard's
                tasks as well. Nothing is chosen by the guard: it shows what a choice costs.
        """
        tasks = {
            **self.subject.tasks,
            "domains": {domain: self._domains[domain] for domain in domains},
        }
        tasks["limit"] = self.plan.dev_items if use == "dev" else self.plan.test_items
        if use != "guarded":
            tasks.pop("guard", None)
        path = f"tasks/{_join(domains)}_{use}.yml"
        _write_yaml(path, tasks)
        return path

    def _make_amplified_recipe(self, rate: int, domains: Sequence[str]) -> Plain:
        """Return a DPPA merge of some domains' models, each with the factors found for it alone."""
        found = {domain: self._read_searched_parameters("dppa", rate, domain) for domain in domains}
        given = {domain: {**parameters, "weight": START} for domain, parameters in found.items()}
        return self._make_recipe("dppa", given)

    def _make_summed_recipe(self, method: str, domains: Sequence[str], parameters: Plain) -> Plain:
        """Return a uniform recipe that does not divide by the sum of the weights.

        With that division, a common weight would change nothing.
        """
        shared: Plain = {"normalize": False}
        return {**self._make_uniform_recipe(method, domains, parameters), "parameters": shared}

    def _make_uniform_recipe(self, method: str, domains: Sequence[str], parameters: Plain) -> Plain:
        """Return a merge of some domains' models with the same parameters for each."""
        return self._make_recipe(method, {domain: dict(parameters) for domain in domains})

    def _make_recipe(self, method: str, parameters: Mapping[str, Mapping[str, object]]) -> Plain:
        """Return a merge of some domains' models.

        Args:
            method: The merge method.
            parameters: Domain -> the parameters of its model.
        """
        return {
            "merge_method": method,
            "base_model": self.subject.base,
            "models": [
                {"model": self._domains[domain]["model"], "parameters": dict(given)}
                for domain, given in parameters.items()
            ],
            "dtype": "bfloat16",
        }

    def _read_searched_parameters(self, method: str, rate: int, domain: str) -> Plain:
        """Return the parameters of a domain's model with the factors that were found."""
        recipe = Path(_name_factors_file(method, rate, domain)).read_text(encoding="utf-8")
        models = yaml.safe_load(recipe)["models"]
        by_name: dict[str, Plain] = {
            Path(model["model"]).name: model["parameters"] for model in models
        }
        return by_name[domain]

    def _run(self, *arguments: str) -> None:
        """Run a command on the subject's device, unless it has ended before."""
        device = () if self.subject.device == "cpu" else ("--device", self.subject.device)
        run_once(self.subject.name, *arguments, *device)


def read_json(path: Path) -> Plain:
    """Return the content of a JSON file."""
    content: Plain = json.loads(path.read_text(encoding="utf-8"))
    return content


def _join(domains: Sequence[str]) -> str:
    return "_".join(domains)


def _name_factors_file(method: str, rate: int, domain: str) -> str:
    return f"factors/{method}_{rate}_{domain}.yml"


def _to_density(rate: int) -> float:
    return round(1 - rate / 100, 2)


def _write_yaml(file: str, content: Plain) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), yaml.safe_dump(content, sort_keys=False))


STAGES = (
    Experiment.list_model_parts,
    Experiment.list_factor_parts,
    Experiment.list_weight_parts,
    Experiment.list_final_parts,
)
"""Stages run one after the other; the parts of a stage run side by side."""
