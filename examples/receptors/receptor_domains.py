"""Variable domains of antigen receptors whose numbering by IMGT is known.

The package anarci on PyPI has IMGT's reference alignments of germline genes: a V allele and a J
allele are strings of 128 columns, one a position of IMGT's numbering, with a hyphen where the
allele has no residue. An allele of V followed by one of J is a domain whose numbering the columns
give. Where the two meet, in positions 105 to 117, IMGT numbers a receptor's third loop as a whole,
and so does this module: its residues fill it from both ends, with the gap in the middle.
"""

from __future__ import annotations

import runpy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, TypeAlias

Part: TypeAlias = Literal["dev", "test"]

Alleles: TypeAlias = Mapping[str, str]
"""Allele -> its columns."""

Germlines: TypeAlias = Mapping[str, Mapping[str, Mapping[str, Alleles]]]
"""`V` or `J` -> chain -> species -> alleles."""

CHAINS = {"TCR": "ABGD", "antibody": "HKL"}
"""Kind of receptor -> its chains, as IMGT's letters."""

COLUMNS = 128
GAP = "-"
THIRD_LOOP = range(105, 118)
CYSTEINES = (23, 104)
"""Positions of the two cysteines that hold a domain together; an allele without them is no whole V
gene."""


@dataclass(frozen=True)
class Domain:
    """A variable domain.

    Attributes:
        name: Its V allele or its name in a file.
        chain: The letter of its chain; empty if unknown.
        residues: Its amino acids, one letter each.
        numbers: The position of each residue; None where none is known.
    """

    name: str
    chain: str
    residues: str
    numbers: tuple[int | None, ...]

    @property
    def gene(self) -> str:
        """The gene that an allele belongs to."""
        return self.name.split("*")[0]


def read_germlines(path: Path) -> Germlines:
    """Return the alignments in anarci's module of germline genes."""
    germlines: Germlines = runpy.run_path(str(path))["all_germlines"]
    return germlines


def join(name: str, chain: str, v_columns: str, j_columns: str) -> Domain:
    """Return the domain of a V and a J allele.

    Raises:
        ValueError: An allele has not 128 columns, or both have a residue in one column.
    """
    if len(v_columns) != COLUMNS or len(j_columns) != COLUMNS:
        raise ValueError(f"{name} or its J allele does not have {COLUMNS} columns.")
    residues, numbers = [], []
    for position, (of_v, of_j) in enumerate(zip(v_columns, j_columns, strict=True), start=1):
        if GAP not in (of_v, of_j):
            raise ValueError(f"{name} and its J allele both have a residue at {position}.")
        residue = of_j if of_v == GAP else of_v
        if residue != GAP:
            residues.append(residue)
            numbers.append(position)
    return Domain(name, chain, "".join(residues), tuple(_fill_loop(numbers)))


def _fill_loop(numbers: Sequence[int]) -> list[int]:
    """Number the residues of the third loop from both ends of it; a middle one counts as early."""
    inside = sum(number in THIRD_LOOP for number in numbers)
    late = inside // 2
    early = inside - late
    filled = [*THIRD_LOOP[:early], *THIRD_LOOP[len(THIRD_LOOP) - late :]]
    outside = [number for number in numbers if number not in THIRD_LOOP]
    return sorted([*outside, *filled])


def list_domains(germlines: Germlines, chains: Iterable[str]) -> Iterator[Domain]:
    """Yield a domain for each V allele that is whole, of all species that have a J allele.

    The J alleles of a chain and species take turns. A V gene of two chains comes once for each.
    """
    for chain in chains:
        for species, v_alleles in germlines["V"][chain].items():
            j_alleles = sorted(germlines["J"][chain].get(species, {}).items())
            if not j_alleles:
                continue
            for turn, (name, columns) in enumerate(sorted(v_alleles.items())):
                if all(columns[position - 1] == "C" for position in CYSTEINES):
                    yield join(name, chain, columns, j_alleles[turn % len(j_alleles)][1])


def part_of(gene: str) -> Part:
    """Return the part of a gene: of every species, and with all its alleles."""
    return "dev" if _digest(gene) % 2 else "test"


def draw(domains: Iterable[Domain], part: Part, number: int) -> list[Domain]:
    """Return up to `number` domains of a part, in an order that looks random but never changes."""
    own = (domain for domain in domains if part_of(domain.gene) == part)
    return sorted(own, key=lambda domain: _digest(f"{domain.chain} {domain.residues}"))[:number]


def read_fasta(path: Path) -> list[Domain]:
    """Return the sequences of a FASTA file as domains without a known numbering."""
    entries: list[tuple[str, list[str]]] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith(">"):
            entries.append((line[1:].strip(), []))
        elif line.strip() and entries:
            entries[-1][1].append(line.strip())
    texts = [(name, "".join(lines)) for name, lines in entries]
    return [Domain(name, "", text, (None,) * len(text)) for name, text in texts]


def compare(
    domains: Sequence[Domain], found: Sequence[Sequence[int | None]]
) -> tuple[float, float]:
    """Return the percentages of domains numbered rightly as a whole, and of residues.

    Args:
        domains: Domains; a residue without a position counts as right if none is found.
        found: For each domain, the position found for each residue; None where there is none.
    """
    rights = [
        [number == position for number, position in zip(domain.numbers, positions, strict=True)]
        for domain, positions in zip(domains, found, strict=True)
    ]
    residues = [right for of_domain in rights for right in of_domain]
    return 100 * sum(map(all, rights)) / len(rights), 100 * sum(residues) / len(residues)


def _digest(text: str) -> int:
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big")
