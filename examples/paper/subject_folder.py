"""The folder of a subject's measurements: its recipes, its tasks files, and its commands.

In:  a subject, and how much of it is measured.
Out: recipes and tasks files in the subject's folder, and what public commands write there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from command_log import run_once
from plan import Plain, Plan, Subject

from dppa_mergekit.storage.output_files import write_whole
from dppa_mergekit.storage.run_record import FILE as RECORD_FILE


@dataclass(frozen=True)
class SubjectFolder:
    """The folder of a subject, which is the working directory whenever this is used."""

    subject: Subject
    plan: Plan

    @property
    def domains(self) -> dict[str, Plain]:
        """Domain -> its part of the tasks file."""
        domains: dict[str, Plain] = self.subject.tasks["domains"]  # type: ignore[assignment]
        return domains

    def run(self, *arguments: str) -> float:
        """Run a command on the subject's device, unless it has ended; return its seconds."""
        device = () if self.subject.device == "cpu" else ("--device", self.subject.device)
        return run_once(self.subject.name, *arguments, *device)

    def evaluate(
        self,
        domains: Sequence[str],
        folder: str,
        names: Sequence[str],
        use: str,
        models: Sequence[str] = (),
    ) -> Plain:
        """Return the scores of models, and of the recipes of some names in a folder.

        `dense` in the result has the scores of the fine-tuned models.
        """
        recipes = {name: f"{folder}/{name}.yml" for name in names}
        options = [part for path in recipes.values() for part in ("--recipe", path)]
        tasks = self.write_tasks_file(domains, use)
        self.run("evaluate", *models, "--tasks", tasks, "--output", folder, *options)
        evaluation = read_json(Path(folder, "evaluation.json"))
        scores = evaluation["models"]
        assert isinstance(scores, dict)
        return {
            **{name: scores[path] for name, path in recipes.items()},
            **{name: scores[name] for name in models},
            "dense": evaluation["dense"],
        }

    def write_tasks_file(self, domains: Sequence[str], use: str) -> str:
        """Write the tasks file of some domains and return its path.

        Args:
            domains: Their names.
            use: `dev` for choosing, `test` for reporting, `guarded` for reporting the guard's
                tasks as well. Nothing is chosen by the guard: it shows what a choice costs.
        """
        tasks = {
            **self.subject.tasks,
            "domains": {domain: self.domains[domain] for domain in domains},
        }
        tasks["limit"] = self.plan.dev_items if use == "dev" else self.plan.test_items
        if use != "guarded":
            tasks.pop("guard", None)
        path = f"tasks/{join(domains)}_{use}.yml"
        write_yaml(path, tasks)
        return path

    def write_recipe(
        self, path: str, method: str, parameters: Mapping[str, Plain], shared: Plain | None = None
    ) -> None:
        """Write a merge of some domains' models.

        Args:
            path: The file.
            method: The merge method.
            parameters: Domain -> the parameters of its model.
            shared: Parameters of the merge.
        """
        recipe: Plain = {
            "merge_method": method,
            "base_model": self.subject.base,
            "models": [
                {"model": self.domains[domain]["model"], "parameters": given}
                for domain, given in parameters.items()
            ],
            **({"parameters": shared} if shared else {}),
            "dtype": "bfloat16",
        }
        write_yaml(path, recipe)


def count_candidates(recipe: str) -> int:
    """Return the number of candidates, or of states, that were scored for a recipe."""
    path = Path(recipe)
    record = read_json(path.with_name(RECORD_FILE))[path.name]
    assert isinstance(record, dict)
    results = record["results"]
    if record["command"] == "search":
        return sum(found["evaluations"] for found in results)
    return len(results)


def read_parameters(recipe: str) -> dict[str, Plain]:
    """Return domain -> the parameters of its model in a recipe."""
    models = yaml.safe_load(Path(recipe).read_text(encoding="utf-8"))["models"]
    return {Path(model["model"]).name: model["parameters"] for model in models}


def read_json(path: Path) -> Plain:
    """Return the content of a JSON file."""
    content: Plain = json.loads(path.read_text(encoding="utf-8"))
    return content


def join(domains: Sequence[str]) -> str:
    """Return the name of a set of domains."""
    return "_".join(domains)


def to_density(rate: int) -> float:
    """Return the density that a pruning rate in percent leaves."""
    return round(1 - rate / 100, 2)


def write_yaml(file: str, content: Plain) -> None:
    """Write a YAML file, and the folders above it."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_whole(Path(file), yaml.safe_dump(content, sort_keys=False))
