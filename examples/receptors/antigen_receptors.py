"""Merge fine-tunes that others have made, and score them on data that others have made.

    python examples/receptors/antigen_receptors.py FOLDER

ANARCII's models number the residues of antigen receptors by IMGT's scheme. The base numbers
antibodies; one fine-tune numbers T-cell receptors (TCRs), the other the receptors of sharks
(VNARs). This merges the two by methods of this package and of mergekit, in memory, and scores every
merge on germline genes of TCRs and of antibodies, whose numbering IMGT gives. Weights are chosen on
dev genes, and the tables on stdout show test genes.

No package index has VNARs. With `--vnars FILE`, a FASTA file such as ANARCII's repository has in
`notebook/example_data`, merges are scored on these, too, by the share that they number exactly as
the fine-tune for sharks does.

Models and germline genes come from PyPI's anarcii and anarci, unless they are installed. Finished
rows are kept in FOLDER, so the same command resumes.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

import click
import torch
import yaml
from receptor_domains import (
    CHAINS,
    Domain,
    Part,
    compare,
    draw,
    list_domains,
    read_fasta,
    read_germlines,
)
from receptor_merges import (
    EXPERTS,
    RANDOM,
    Row,
    Settings,
    Weights,
    changed_share,
    choose,
    merge,
    parameters,
    refine,
    rows,
)
from receptor_models import Anarcii, Numbering, align_vocabularies, find_package
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from dppa_mergekit.report.markdown_tables import table

DENSITIES = (0.2, 0.1)
DRAWN: Mapping[Part, int] = {"dev": 32, "test": 100}
"""Domains of each kind at most."""

BY_RESIDUE = 40
"""Test domains of each kind of which all residues are decoded, which takes longest."""

SEEDS = (0, 1, 2)
"""Seeds of random methods; their weights are chosen with the first, and those of each expert are
tested with it alone."""

EXPERT_FOR = {"TCR": "tcr", "VNAR": "shark", "antibody": "shark"}
"""Kind -> the fine-tuned model to which merges are compared; the fine-tune for sharks still numbers
antibodies as the base does."""

Scores: TypeAlias = dict[str, float]
"""Kind -> percentage."""

Record: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Bench:
    """The models, and the domains that merges of them are scored on.

    Attributes:
        anarcii: The package of the models.
        germlines: The path of the module of germline genes.
        vnars: A FASTA file of VNARs; None for none.
    """

    anarcii: Anarcii
    germlines: Path
    vnars: Path | None

    @cached_property
    def aligned(self) -> tuple[dict[str, Weights], Numbering]:
        """The models with the same target words, and how these number."""
        weights, words = align_vocabularies(self.anarcii.weights(), self.anarcii.words())
        return weights, Numbering(self.anarcii, words)

    @cached_property
    def _domains(self) -> dict[Part, dict[str, list[Domain]]]:
        germlines = read_germlines(self.germlines)
        kinds = {kind: list(list_domains(germlines, own)) for kind, own in CHAINS.items()}
        if self.vnars is not None:
            kinds["VNAR"] = self._number_vnars(read_fasta(self.vnars))
        return {
            part: {kind: draw(domains, part, number) for kind, domains in kinds.items()}
            for part, number in DRAWN.items()
        }

    def _number_vnars(self, domains: Sequence[Domain]) -> list[Domain]:
        """Return domains with the numbers that the fine-tune for sharks gives them, as shipped."""
        own = Numbering(self.anarcii, self.anarcii.words()["shark"])
        _, numbers = own.number(self.anarcii.weights()["shark"], domains)
        return [
            replace(domain, numbers=tuple(found))
            for domain, found in zip(domains, numbers, strict=True)
        ]

    def score(self, weights: Weights, part: Part, numbering: Numbering | None = None) -> Scores:
        """Return the share of domains that a model numbers rightly as a whole.

        Args:
            weights: Its tensors.
            part: The part of the domains.
            numbering: How it numbers, if it has target words of its own.
        """
        numbering = numbering or self.aligned[1]
        return {
            kind: compare(domains, numbering.number(weights, domains, give_up=True)[1])[0]
            for kind, domains in self._domains[part].items()
        }

    def score_residues(self, weights: Weights) -> Scores:
        """Return the share of residues of the first test domains that a model numbers rightly."""
        first = {kind: domains[:BY_RESIDUE] for kind, domains in self._domains["test"].items()}
        return {
            kind: compare(domains, self.aligned[1].number(weights, domains)[1])[1]
            for kind, domains in first.items()
        }

    @cache  # noqa: B019  # there is one bench
    def shipped(self, part: Part) -> dict[str, Scores]:
        """Return model -> its scores with the tensors and target words that it is shipped with."""
        words = self.anarcii.words()
        return {
            name: self.score(weights, part, Numbering(self.anarcii, words[name]))
            for name, weights in self.anarcii.weights().items()
        }

    def ratio(self, scores: Scores, part: Part) -> float:
        """Return the mean over kinds of wholly right domains, in percent of the expert's."""
        own = {kind: self.shipped(part)[EXPERT_FOR[kind]][kind] for kind in scores}
        return mean(100 * scores[kind] / own[kind] for kind in scores)

    def test(self, row: Row, settings: Settings, seeds: Sequence[int]) -> list[Record]:
        """Merge with each seed, and return what is found on test."""
        found = []
        for seed in seeds:
            scores = self.score(self.merge(row, settings, seed), "test")
            found.append({"domains": scores, "ratio": self.ratio(scores, "test")})
        return found

    def merge(self, row: Row, settings: Settings, seed: int = SEEDS[0]) -> Weights:
        """Merge the experts with target words that all have."""
        return merge(self.aligned[0], row, settings, seed)

    def measure(self, row: Row, kept: Path) -> None:
        """Choose and test a row's numbers, shared and then for each expert; add both to a file."""

        @cache
        def score(settings: Settings) -> float:
            return self.ratio(self.score(self.merge(row, settings), "dev"), "dev")

        settings, tried = choose(row, score)
        finer, more = refine(settings, score)
        record: Record = {"key": row.key}
        seeds = SEEDS if row.method in RANDOM else SEEDS[:1]
        for name, chosen, number, own_seeds in (
            ("shared", settings, tried, seeds),
            ("each", finer, tried + more, SEEDS[:1]),
        ):
            record[name] = {
                "settings": asdict(chosen),
                "tried": number,
                "dev": score(chosen),
                "test": self.test(row, chosen, own_seeds),
            }
        merged = self.merge(row, settings)
        record["shared"]["residues"] = self.score_residues(merged)
        record["shared"]["changed"] = changed_share(self.aligned[0]["base"], merged)
        kept.write_text(json.dumps([*read(kept), record], indent=1) + "\n", encoding="utf-8")


def read(path: Path) -> list[Record]:
    """Return the records of a file of results."""
    records: list[Record] = []
    if path.exists():
        records = json.loads(path.read_text(encoding="utf-8"))
    return records


def count_unequal(folder: Path, models: Mapping[str, Weights], row: Row, settings: Settings) -> int:
    """Merge by `mergekit-pytorch`, too, and return the tensors that differ from memory's merge.

    Args:
        folder: Where checkpoints, recipe and merge are written.
        models: `base` and the experts.
        row: A row that renames nothing and draws nothing.
        settings: Its numbers.

    Raises:
        click.ClickException: The command fails.
    """
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name, weights in models.items():
        save_file(weights, folder / f"{name}.safetensors")
    given = parameters(row, settings, SEEDS[0])
    own = {name: value for name, value in given.items() if isinstance(value, dict)}
    recipe = {
        "merge_method": row.method,
        "base_model": str(folder / "base.safetensors"),
        "models": [
            {
                "model": str(folder / f"{expert}.safetensors"),
                "parameters": {name: value[expert] for name, value in own.items()},
            }
            for expert in EXPERTS
        ],
        "parameters": {name: value for name, value in given.items() if name not in own},
    }
    (folder / "recipe.yml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    command = Path(sys.executable).with_name("mergekit-pytorch")
    done = subprocess.run(
        [command, "recipe.yml", "merged"], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise click.ClickException(f"mergekit-pytorch failed: {done.stderr.strip()[-500:]}")
    written = load_file(folder / "merged" / "model.safetensors")
    expected = merge(models, row, settings, SEEDS[0])
    return sum(not torch.equal(written[name], tensor) for name, tensor in expected.items())


def _cell(values: Sequence[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def _describe(record: Record, name: str) -> list[str]:
    """Return the cells of a row's numbers."""
    settings = record[name]["settings"]
    numbers = [f"{weight:g}" for weight in settings["weights"]]
    numbers += [f"factor {settings['factor']:g}"] * (settings["factor"] != 1)
    numbers += [f"lambda {settings['scale']:g}"] * ("regmean" in record["key"])
    return [record["key"], ", ".join(numbers), str(record[name]["tried"])]


def _domain_cells(tests: Sequence[Record]) -> list[str]:
    kinds = tests[0]["domains"]
    cells = [_cell([test["domains"][kind] for test in tests]) for kind in kinds]
    return [*cells, _cell([test["ratio"] for test in tests])]


def print_tables(bench: Bench, records: Sequence[Record]) -> None:
    """Print the models, and a table each of shared and of own weights."""
    shipped = bench.shipped("test")
    kinds = list(shipped["base"])
    residues = [f"{kind} residues" for kind in kinds]
    lines = []
    for name, weights in bench.aligned[0].items():
        scores = bench.score(weights, "test")
        found = [*scores.values(), *bench.score_residues(weights).values()]
        lines.append([name, *(f"{value:.1f}" for value in [*shipped[name].values(), *found])])
    with_all = [f"{kind}, all words" for kind in kinds]
    click.echo(table(["model", *kinds, *with_all, *residues], lines))
    lines = [
        [
            *_describe(record, "shared"),
            *_domain_cells(record["shared"]["test"]),
            *(f"{record['shared']['residues'][kind]:.1f}" for kind in kinds),
            f"{record['shared']['changed']:.0f}",
        ]
        for record in records
    ]
    head = ["tcr, shark", "tried", *kinds, "ratio"]
    click.echo(table(["merge, one weight", *head, *residues, "changed"], lines))
    lines = [
        [*_describe(record, "each"), *_domain_cells(record["each"]["test"])] for record in records
    ]
    click.echo(table(["merge, a weight each", *head], lines))


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--vnars",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="FASTA file of VNARs, to score merges on these, too.",
)
def main(folder: Path, vnars: Path | None) -> None:
    """Merge ANARCII's fine-tunes by every method, and print their scores."""
    torch.set_num_threads(1)
    packages = folder.resolve() / "packages"
    anarcii = Anarcii(find_package("anarcii", packages))
    germlines = find_package("anarci", packages) / "germlines.py"
    bench = Bench(anarcii, germlines, vnars)
    kept = folder / ("results_with_vnars.json" if vnars else "results.json")
    folder.mkdir(parents=True, exist_ok=True)
    wanted = rows(DENSITIES)
    done = {record["key"] for record in read(kept)}
    for row in tqdm([row for row in wanted if row.key not in done], desc="merges"):
        bench.measure(row, kept)
    measured = {record["key"]: record for record in read(kept)}
    print_tables(bench, [measured[row.key] for row in wanted])
    row = Row("dppa", DENSITIES[0], amplified=True)
    found = measured[row.key]["each"]["settings"]
    settings = Settings(**{**found, "weights": tuple(found["weights"])})
    unequal = count_unequal(folder / "by_command", bench.aligned[0], row, settings)
    click.echo(f"Tensors of {row.key} that mergekit-pytorch writes otherwise: {unequal}.")


if __name__ == "__main__":
    main()
