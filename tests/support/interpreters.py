"""Fresh interpreters that have the autoload files of this checkout on their path."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METHODS = [
    "dare_dpa",
    "dare_regmean",
    "dp",
    "dppa",
    "dppa_regmean",
    "dppa_ties",
    "owl",
]
STUB = Path(__file__).parents[2] / "dppa_mergekit" / "autoload"


# Runs before every script: collects what the plugin says and which methods are registered.
# `answer` ends a step of the script; its last line of output holds the answers of all steps.
PRELUDE = """
import importlib, json, logging, os, sys, warnings
from pathlib import Path

MERGE = "dppa_mergekit.merging.delta_pruning_merge"
said, answers = [], {}


def notice(message, category, filename, *rest):
    if "dppa" in str(message) or "dppa_mergekit" in Path(filename).parts:
        said.append(str(message))


class Notices(logging.Handler):
    def emit(self, record):
        if record.name.startswith("dppa_mergekit"):
            said.append(record.getMessage())


warnings.simplefilter("always")
warnings.showwarning = notice
logging.getLogger().addHandler(Notices())


def registered():
    module = sys.modules.get("mergekit.merge_methods")
    methods = module.registered_methods() if module else ()
    return sorted(m.spec.name for m in methods if type(m).__module__ == MERGE)


def forget(*names):
    for name in list(sys.modules):
        if any(name == top or name.startswith(top + ".") for top in names):
            del sys.modules[name]


def answer(step="", **values):
    answers[step] = {"registered": registered(), "said": list(said), "values": values}
    said.clear()
    print(json.dumps(answers))
"""


@dataclass(frozen=True)
class Answer:
    """What a script reported at the end of a step."""

    registered: list[str]
    said: list[str]
    values: Mapping[str, Any]


def python(
    *arguments: str, path: Sequence[Path] = (), autoload: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run this interpreter on the stub of this checkout, away from the checkout's folder."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("DPPA_MERGEKIT_AUTOLOAD", "PYTHONWARNINGS", "PYTHONSTARTUP")
    }
    environment["PYTHONPATH"] = os.pathsep.join(str(folder) for folder in (*path, STUB))
    if autoload:
        environment["DPPA_MERGEKIT_AUTOLOAD"] = autoload
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=Path(sys.executable).parent,
        timeout=300,
        check=False,
    )


def ask_all(script: str, autoload: str = "") -> dict[str, Answer]:
    """Run a script in which each step ends in answer(its name, ...)."""
    done = python("-c", PRELUDE + script, autoload=autoload)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    return {step: Answer(**answer) for step, answer in answers.items()}


def ask(script: str) -> Answer:
    """Run a script of one step, which ends in answer(...)."""
    return ask_all(script)[""]


def package(folder: Path, files: Mapping[str, str]) -> Path:
    """Write a fake package under a folder for PYTHONPATH."""
    for name, text in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    return folder


FAKES = {
    "mergekit/__init__.py": "",
    "mergekit/merge_methods/__init__.py": "",
    "mergekit/plan.py": "",
    "dppa_mergekit/__init__.py": "",
    "dppa_mergekit/methods.py": "print('registered')\ndef register_methods(): print('again')\n",
}
