"""One merge as a user runs it: mergekit's own command, in a process of its own."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import page_cache
import yaml
from processes import Measured, measure
from random_models import Family

FLOOR = "floor"
"""No merge: all inputs read twice and one output written, by plain copies."""

START = "start"
"""No merge: mergekit's command with --help, which is what every merge takes before it begins."""

_CACHE_VARIABLE = "DPPA_MERGEKIT_CACHE"
_STATISTICS = re.compile(r"Delta statistics: ([0-9.]+) s")
_DENSITY = {"density": 0.2}
_AMPLIFIED = {**_DENSITY, "amplify_90": 1.5, "amplify_80": 1.2}


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        merge_method: As a recipe names it.
        parameters: Of each fine-tuned model, besides the weight.
        cached: Whether the statistics of an earlier merge are at hand.
    """

    merge_method: str
    parameters: Mapping[str, float] = field(default_factory=dict)
    cached: bool = False


METHODS = {
    "task_arithmetic": Method("task_arithmetic"),
    "dare_linear": Method("dare_linear", _DENSITY),
    "ties": Method("ties", _DENSITY),
    "della_linear": Method("della_linear", _DENSITY),
    "dppa": Method("dppa", _AMPLIFIED),
    "dppa cached": Method("dppa", _AMPLIFIED, cached=True),
    "dppa_ties": Method("dppa_ties", _AMPLIFIED),
    "dare_dpa": Method("dare_dpa", _AMPLIFIED),
}


@dataclass(frozen=True)
class MergeRunner:
    """Runs methods over the models of one family.

    Attributes:
        family: Of the models.
        flags: For mergekit-yaml.
        cold: Whether every run starts with none of the inputs in the page cache.
    """

    family: Family
    flags: Sequence[str] = ()
    cold: bool = False

    def measure(self, name: str) -> Measured:
        """Run a method, the floor or the start, and measure it."""
        output = self.family.path / "merged"
        shutil.rmtree(output, ignore_errors=True)
        environment = user_environment()
        if name == FLOOR:
            command = self._floor(output)
        elif name == START:
            command = [*mergekit_yaml(), "--help"]
        else:
            command = self._merge(METHODS[name], output)
            # A cache that is on would make every round but the first a cached one.
            cached = METHODS[name].cached
            environment[_CACHE_VARIABLE] = str(self._cache.resolve()) if cached else "off"
        if self.cold:
            page_cache.drop(self.family.all_weight_files())
        else:
            os.sync()  # or the run would wait for what others still have to write
        try:
            return measure(command, environment)
        finally:
            shutil.rmtree(output, ignore_errors=True)

    def fill_statistics_cache(self, name: str) -> bool:
        """Run a cached method once, with an empty cache; returns whether it left anything there."""
        shutil.rmtree(self._cache, ignore_errors=True)
        self.measure(name)
        return self._cache.exists() and any(self._cache.iterdir())

    @property
    def _cache(self) -> Path:
        return self.family.path / "statistics_cache"

    def _floor(self, output: Path) -> list[str]:
        folders = [self.family.path / name for name in self.family.names]
        script = Path(__file__).with_name("floor.py")
        return [sys.executable, str(script), str(output), *map(str, folders)]

    def _merge(self, method: Method, output: Path) -> list[str]:
        recipe = self.family.path / "recipe.yml"
        recipe.write_text(yaml.safe_dump(self._recipe(method), sort_keys=False), encoding="utf-8")
        # With -v the time of the statistics is logged.
        return [*mergekit_yaml(), str(recipe), str(output), "-v", *self.flags]

    def _recipe(self, method: Method) -> dict[str, object]:
        base, *tuned = [str((self.family.path / name).resolve()) for name in self.family.names]
        return {
            "merge_method": method.merge_method,
            "base_model": base,
            "models": [
                {"model": model, "parameters": {"weight": 0.3, **method.parameters}}
                for model in tuned
            ],
        }


def mergekit_yaml() -> list[str]:
    """The command beside this interpreter, which may be in an environment not activated."""
    script = Path(sys.executable).with_name("mergekit-yaml")
    if script.exists():
        return [str(script)]
    return [sys.executable, "-m", "mergekit.scripts.run_yaml"]


def user_environment() -> dict[str, str]:
    """The environment variables of this process, less what a user would not have set."""
    dropped = {
        "DPPA_MERGEKIT_AUTOLOAD",  # without the plugin there is nothing to measure
        "PYTHONDONTWRITEBYTECODE",  # or every start would compile the same modules again
    }
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "HF_HUB_OFFLINE": "1"}  # nothing that is timed may wait for a network


def statistics_seconds(measured: Measured) -> float | None:
    """What a run said about the time of its statistics; None where it said nothing."""
    found = _STATISTICS.findall(measured.stderr)
    return sum(map(float, found)) if found else None
