"""The paper's measurements of a base model and its fine-tuned models, by the public commands.

In:  a subject: its models, and the tasks of their domains.
Out: `results.json` in its folder. Every command runs there as a user would type it, and only once
     (see `command_log.py`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

from merges import Merges
from plan import Domains, Plain, Plan, Subject
from single_models import AMPLIFIED, SingleModels
from subject_folder import SubjectFolder, join

from dppa_mergekit.storage.output_files import write_whole

Part: TypeAlias = Callable[[], object]
"""A part of an experiment: some commands, one after the other."""


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
        yield self._merges.observe
        yield from self._single_models.list_searches()
        for domain in self._folder.domains:
            yield partial(self._single_models.score_pruned, domain)
        yield self._single_models.measure_offsets
        for domains in self.plan.mergings:
            yield partial(self._merges.score_base, domains)

    def list_factor_parts(self) -> Iterator[Part]:
        """Yield the parts that need factors: weights of merges, scores of amplified models."""
        for domains in self.plan.mergings:
            yield from self._merges.list_weighings(domains)
        for domain in self._folder.domains:
            yield partial(self._single_models.score_amplified, domain)

    def list_weight_parts(self) -> Iterator[Part]:
        """Yield the parts that need weights: scores of merges."""
        for domains in self.plan.mergings:
            for group in self._merges.list_groups(domains):
                yield partial(self._merges.score, group, domains)

    def list_final_parts(self) -> Iterator[Part]:
        """Yield the part that writes the results of all other parts."""
        yield self._write_results

    def _write_results(self) -> None:
        single, domains = self._single_models, list(self._folder.domains)
        results = {
            "offsets": single.measure_offsets(),
            "observing_seconds": self._merges.observe(),
            "pruned": {domain: single.score_pruned(domain) for domain in domains},
            "factors": {
                f"{method}_{rate}": {
                    domain: single.search_factors(method, rate, domain) for domain in domains
                }
                for rate in self.plan.searched
                for method in AMPLIFIED
            },
            "amplified": {domain: single.score_amplified(domain) for domain in domains},
            "interference": {
                join(merged): self._merges.measure_interference(merged)
                for merged in self.plan.mergings
            },
            "merged": {join(merged): self._score_merges(merged) for merged in self.plan.mergings},
        }
        write_whole(Path("results.json"), json.dumps(results, indent=1) + "\n")

    def _score_merges(self, domains: Domains) -> Plain:
        """Return the scores of the merges of some domains' models, by all methods."""
        scores = self._merges.score_base(domains)
        for group in self._merges.list_groups(domains):
            scores |= self._merges.score(group, domains)
        return scores

    @property
    def _folder(self) -> SubjectFolder:
        return SubjectFolder(self.subject, self.plan)

    @property
    def _single_models(self) -> SingleModels:
        return SingleModels(self._folder)

    @property
    def _merges(self) -> Merges:
        return Merges(self._folder)


STAGES = (
    Experiment.list_model_parts,
    Experiment.list_factor_parts,
    Experiment.list_weight_parts,
    Experiment.list_final_parts,
)
"""Stages run one after the other; the parts of a stage run side by side."""
