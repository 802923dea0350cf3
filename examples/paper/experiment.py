"""The paper's measurements of a base model and its fine-tuned models, by the public commands.

In:  a subject: its models in a folder, and the tasks of their domains.
Out: `results.json` in that folder. Every command runs there as a user would type it. When it has
     ended, it is written to `commands.txt`, with a digest of the files that it was given: while
     these are the same, it is not run again.
"""

from __future__ import annotations

import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TypeAlias

import click
import yaml

from dppa_mergekit.storage.output_files import write_whole

Plain: TypeAlias = "dict[str, object]"
"""Content of a YAML or JSON file."""

Part: TypeAlias = Callable[[], object]
"""Of an experiment: some commands, one after the other."""

PRUNINGS: dict[str, tuple[str, Plain]] = {
    "magnitude": ("dp", {"max_fluctuation": 0.0}),
    "owl": ("owl", {}),
    "dp": ("dp", {}),
    "dare": ("dare_linear", {}),
    "dare_linears": ("dare_dpa", {}),
}
"""Pruning without factors -> merge method and its parameters. `dare` prunes every tensor, as
mergekit does; `dare_linears` prunes what DP prunes."""

TABLES = {"analyze": "analysis.json", "evaluate": "evaluation.json"}
"""What a command writes that is given a folder."""

AMPLIFIED = ("dppa", "dare_dpa")
"""Merge methods with factors."""

START = 0.3
"""Weight of each model before weights are found."""


@dataclass(frozen=True)
class Plan:
    """What is measured, and how much of it.

    Attributes:
        rates: Pruning rates, in percent, of single models without factors.
        beyond: More of them, past the paper's highest, to see where methods fail.
        searched: Those at which factors are searched, and merges are made.
        sets: Domains that are merged.
        ways: How weights of merges are found: `adamerge`, `search` for each model, or one `shared`
            by all of them.
        others: mergekit's methods that merges are compared with, and how their weights are found.
        factors: Of the 90 partition, for curves of score against factor, beside 1, which is DP;
            none for no curves.
        candidates: Of a search of factors, for each domain.
        weighings: Candidates of a search of weights.
        steps: Of AdaMerging.
        states: Of AdaMerging that are scored; the best is taken.
        learning_rate: Of AdaMerging: a weight's largest move in a step.
        dev_items: Of each dev task.
        test_items: Of each test task; None for all.
    """

    rates: tuple[int, ...]
    beyond: tuple[int, ...]
    searched: tuple[int, ...]
    sets: tuple[tuple[str, ...], ...]
    ways: tuple[str, ...]
    others: tuple[tuple[str, str], ...]
    factors: tuple[float, ...]
    candidates: int
    weighings: int
    steps: int
    states: int
    learning_rate: float
    dev_items: int
    test_items: int | None = None


@dataclass(frozen=True)
class Subject:
    """A base model and its fine-tuned models, which lie in the subject's folder.

    Attributes:
        name: Of the subject.
        folder: Where everything about it is kept.
        base: The base model, counted from that folder.
        tasks: Content of the tasks file; a domain's model is named as the domain.
        made: How the models come about.
        device: Where models live: cpu, cuda, ...
    """

    name: str
    folder: Path
    base: str
    tasks: Plain
    made: Plain
    device: str = "cpu"


@dataclass(frozen=True)
class Experiment:
    """All measurements of one subject; the working directory is its folder meanwhile."""

    subject: Subject
    plan: Plan

    def run(self, part: Part) -> None:
        """Measure a part, as far as that is not done yet."""
        here = Path.cwd()
        os.chdir(self.subject.folder)
        try:
            part()
        finally:
            os.chdir(here)

    def of_models(self) -> Iterator[Part]:
        """What needs the models alone: what pruning does to each, and the search of factors."""
        for domain in self._domains:
            for rate in self.plan.searched:
                for method in AMPLIFIED:
                    yield partial(self._factors, method, rate, domain)
        for domain in self._domains:
            yield partial(self._pruned, domain)
        yield self._offsets

    def of_factors(self) -> Iterator[Part]:
        """What needs factors: how they serve each model, and the weights of merges."""
        for domains in self.plan.sets:
            for name, recipe, ways in self._merges(domains):
                for way in ways:
                    yield partial(self._weigh, way, name, recipe, domains)
        for domain in self._domains:
            yield partial(self._amplified, domain)

    def of_weights(self) -> Iterator[Part]:
        """What needs the weights: how merges serve all domains."""
        for domains in self.plan.sets:
            yield partial(self._merged, domains)

    def of_all(self) -> Iterator[Part]:
        """The results, when everything is measured."""
        yield self._write_results

    def _write_results(self) -> None:
        found = {
            "offsets": self._offsets(),
            "pruned": {domain: self._pruned(domain) for domain in self._domains},
            "factors": {
                f"{method}_{rate}": {
                    domain: self._factors(method, rate, domain) for domain in self._domains
                }
                for rate in self.plan.searched
                for method in AMPLIFIED
            },
            "amplified": {domain: self._amplified(domain) for domain in self._domains},
            "merged": {_together(domains): self._merged(domains) for domains in self.plan.sets},
        }
        write_whole(Path("results.json"), json.dumps(found, indent=1) + "\n")

    @property
    def _domains(self) -> dict[str, Plain]:
        found: dict[str, Plain] = self.subject.tasks["domains"]  # type: ignore[assignment]
        return found

    def _offsets(self) -> Plain:
        """Domain -> what `analyze` says of the deltas; pictures stay in the folder."""
        recipe = self._alike("dppa", list(self._domains), {"weight": 1.0, "density": 0.2})
        _write_yaml("recipes/all.yml", recipe)
        self._command("analyze", "recipes/all.yml", "--output", "analysis")
        models = read_json(Path("analysis/analysis.json"))["models"]
        assert isinstance(models, list)
        return {Path(each["model"]).name: each["offsets"] for each in models}

    def _pruned(self, domain: str) -> Plain:
        """Method and rate -> test scores of the domain's model pruned alone, without factors."""
        found: Plain = {}
        for place, rates in (("pruned", self.plan.rates), ("beyond", self.plan.beyond)):
            names = []
            for rate in rates:
                for name, (method, shared) in PRUNINGS.items():
                    parameters: Plain = {"weight": 1.0, "density": _density(rate)}
                    recipe = {**self._recipe(method, {domain: parameters}), "parameters": shared}
                    names.append(f"{name}_{rate}")
                    _write_yaml(f"{place}/{domain}/{names[-1]}.yml", recipe)
            if names:
                found |= self._scores([domain], f"{place}/{domain}", names, use="test")
        return found

    def _factors(self, method: str, rate: int, domain: str) -> Plain:
        """Factors that `search` finds for a domain's model alone."""
        given = f"recipes/{method}_{rate}.yml"
        parameters: Plain = {"weight": 1.0, "density": _density(rate)}
        _write_yaml(given, self._alike(method, list(self._domains), parameters))
        Path("factors").mkdir(exist_ok=True)
        self._command(
            *("search", given, "--tasks", self._tasks_file([domain], "dev")),
            *("--output", _found(method, rate, domain)),
            *("--max-evaluations", str(self.plan.candidates)),
        )
        found = self._searched(method, rate, domain)
        return {name: value for name, value in found.items() if name.startswith("amplify_")}

    def _amplified(self, domain: str) -> Plain:
        """Method and rate -> test scores of the domain's model with the factors that were found.

        With them, at 90 and 80 %, those with other factors of the 90 partition.
        """
        folder, names = f"amplified/{domain}", []
        for rate in self.plan.searched:
            for method in AMPLIFIED:
                found = {**self._searched(method, rate, domain), "weight": 1.0}
                names.append(f"{method}_{rate}")
                _write_yaml(f"{folder}/{names[-1]}.yml", self._recipe(method, {domain: found}))
            for factor in self.plan.factors:
                given = {"weight": 1.0, "density": _density(rate), "amplify_90": factor}
                names.append(f"dppa_{rate}_at_{factor:g}")
                _write_yaml(f"{folder}/{names[-1]}.yml", self._recipe("dppa", {domain: given}))
        return self._scores([domain], folder, names, use="test")

    def _merged(self, domains: Sequence[str]) -> Plain:
        """Method, rate and way to weights -> test scores of the merge of some domains' models."""
        names = [f"{name}_{way}" for name, _, ways in self._merges(domains) for way in ways]
        return self._scores(domains, f"merged/{_together(domains)}", names, use="guarded")

    def _merges(
        self, domains: Sequence[str]
    ) -> Iterator[tuple[str, Callable[[], Plain], Sequence[str]]]:
        """Name, what gives the recipe before weights are found, and the ways to find them."""
        for method, way in self.plan.others:
            if method == "task_arithmetic":
                yield method, partial(self._alike, method, domains, {"weight": START}), (way,)
                continue
            for rate in self.plan.searched:
                given: Plain = {"weight": START, "density": _density(rate)}
                yield f"{method}_{rate}", partial(self._summed, method, domains, given), (way,)
        if "adamerge" in self.plan.ways:  # which knows our methods alone: DP at 0 % is the sum
            unpruned: Plain = {"weight": START, "density": 1.0}
            yield "dp_0", partial(self._alike, "dp", domains, unpruned), ("adamerge",)
        for rate in self.plan.searched:
            given = {"weight": START, "density": _density(rate)}
            yield f"dare_{rate}", partial(self._alike, "dare_dpa", domains, given), self.plan.ways
            yield f"dppa_{rate}", partial(self._dppa, rate, domains), self.plan.ways

    def _dppa(self, rate: int, domains: Sequence[str]) -> Plain:
        """A merge of some domains' models with the factors that were found for each alone."""
        found = {domain: self._searched("dppa", rate, domain) for domain in domains}
        given = {domain: {**parameters, "weight": START} for domain, parameters in found.items()}
        return self._recipe("dppa", given)

    def _weigh(
        self, way: str, name: str, recipe: Callable[[], Plain], domains: Sequence[str]
    ) -> None:
        """Find the weights of a merge."""
        together = _together(domains)
        given, output = f"recipes/{together}_{name}.yml", f"merged/{together}/{name}_{way}.yml"
        _write_yaml(given, recipe())
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        options: tuple[str, ...]
        if way == "adamerge":
            steps, states = self.plan.steps, self.plan.states
            command = "adamerge"
            options = (
                *("--steps", str(steps), "--every", str(steps // (states - 1))),
                *("--patience", str(states), "--lr", f"{self.plan.learning_rate:g}"),
            )
        else:
            command = "search"
            options = (
                *("--tune", "weights", *(("--shared",) if way == "shared" else ())),
                *("--max-evaluations", str(self.plan.weighings)),
            )
        tasks = self._tasks_file(domains, "dev")
        self._command(command, given, "--tasks", tasks, "--output", output, *options)

    def _scores(self, domains: Sequence[str], folder: str, names: Sequence[str], use: str) -> Plain:
        """Name -> what `evaluate` says of the recipe of that name in a folder; and of the base."""
        recipes = {name: f"{folder}/{name}.yml" for name in names}
        options = [part for path in recipes.values() for part in ("--recipe", path)]
        tasks = self._tasks_file(domains, use)
        base = self.subject.base
        self._command("evaluate", base, "--tasks", tasks, "--output", folder, *options)
        found = read_json(Path(folder, "evaluation.json"))
        models = found["models"]
        assert isinstance(models, dict)
        of_name = {name: models[path] for name, path in {"base": base, **recipes}.items()}
        return {**of_name, "dense": found["dense"]}

    def _tasks_file(self, domains: Sequence[str], use: str) -> str:
        """A tasks file of some domains.

        Args:
            domains: Their names.
            use: `dev`, to choose by; `test`, to report; `guarded`, to report the guard's tasks,
                too. Nothing is chosen by those: they show what a choice costs.
        """
        tasks = {
            **self.subject.tasks,
            "domains": {domain: self._domains[domain] for domain in domains},
        }
        tasks["limit"] = self.plan.dev_items if use == "dev" else self.plan.test_items
        if use != "guarded":
            tasks.pop("guard", None)
        path = f"tasks/{_together(domains)}_{use}.yml"
        _write_yaml(path, tasks)
        return path

    def _summed(self, method: str, domains: Sequence[str], parameters: Plain) -> Plain:
        """The same without a division by the sum of weights, in which a common weight is lost."""
        shared: Plain = {"normalize": False}
        return {**self._alike(method, domains, parameters), "parameters": shared}

    def _alike(self, method: str, domains: Sequence[str], parameters: Plain) -> Plain:
        """A merge of some domains' models with the same parameters for each."""
        return self._recipe(method, {domain: dict(parameters) for domain in domains})

    def _recipe(self, method: str, parameters: Mapping[str, Mapping[str, object]]) -> Plain:
        """A merge of some domains' models, by domain."""
        return {
            "merge_method": method,
            "base_model": self.subject.base,
            "models": [
                {"model": self._domains[domain]["model"], "parameters": dict(given)}
                for domain, given in parameters.items()
            ],
            "dtype": "bfloat16",
        }

    def _searched(self, method: str, rate: int, domain: str) -> Plain:
        """Parameters of a domain's model, with the factors that were found."""
        recipe = Path(_found(method, rate, domain)).read_text(encoding="utf-8")
        models = yaml.safe_load(recipe)["models"]
        of_name: dict[str, Plain] = {
            Path(each["model"]).name: each["parameters"] for each in models
        }
        return of_name[domain]

    def _command(self, *arguments: str) -> None:
        """Run a command of `mergekit-dppa`, unless it has ended here before with the same files."""
        from dppa_mergekit.cli.main import main

        if self.subject.device != "cpu":
            arguments = (*arguments, "--device", self.subject.device)
        typed = " ".join(["mergekit-dppa", *arguments])
        output = arguments[arguments.index("--output") + 1]
        digest = _digest(each for each in arguments if each != output)
        listed = Path("commands.txt")
        lines = listed.read_text(encoding="utf-8").splitlines() if listed.exists() else []
        ended = dict(line.split("  # ") for line in lines)  # of one that ran twice, the last
        if ended.get(typed) == digest and Path(output, TABLES.get(arguments[0], "")).exists():
            return
        if typed in ended:
            Path(f"{output}.journal.jsonl").unlink(missing_ok=True)  # of another recipe
        began = time.monotonic()
        logging.getLogger().handlers.clear()  # the last command's writes to a file that is closed
        with (
            Path("log.txt").open("a", encoding="utf-8") as log,
            redirect_stdout(log),
            redirect_stderr(log),
        ):
            try:
                main.main(list(arguments), "mergekit-dppa", standalone_mode=False)
            except click.Abort:
                raise
            except Exception as error:
                traceback.print_exc()
                raise click.ClickException(f"{typed}: {told(error)}") from error
        with listed.open("a", encoding="utf-8") as file:
            file.write(f"{typed}  # {digest}\n")
        seconds = time.monotonic() - began
        click.echo(f"{self.subject.name}: {typed:.100} ({seconds:.0f} s)", err=True)


def told(error: BaseException) -> str:
    """An error as people read it."""
    return error.message if isinstance(error, click.ClickException) else repr(error)


def _digest(arguments: Iterable[str]) -> str:
    """Of the recipes and tasks files among a command's arguments."""
    digest = sha256()
    for each in arguments:
        if each.endswith(".yml"):
            digest.update(Path(each).read_bytes())
    return digest.hexdigest()[:12]


def _together(domains: Sequence[str]) -> str:
    return "_".join(domains)


def _found(method: str, rate: int, domain: str) -> str:
    return f"factors/{method}_{rate}_{domain}.yml"


def _density(rate: int) -> float:
    return round(1 - rate / 100, 2)


def _write_yaml(file: str, content: Plain) -> None:
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), yaml.safe_dump(content, sort_keys=False))


def read_json(path: Path) -> Plain:
    """Content of a JSON file."""
    found: Plain = json.loads(path.read_text(encoding="utf-8"))
    return found


STAGES = (Experiment.of_models, Experiment.of_factors, Experiment.of_weights, Experiment.of_all)
"""One after the other; the parts of one, side by side."""
