"""Merges of ANARCII's models: their words, the domains, the decoding, and the choice of weights."""

from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from random import Random
from typing import Any

import antigen_receptors
import click
import pytest
import receptor_models
import torch
from antigen_receptors import Bench
from click.testing import CliRunner
from receptor_domains import (
    CHAINS,
    COLUMNS,
    Domain,
    compare,
    draw,
    join,
    list_domains,
    part_of,
    read_fasta,
    read_germlines,
)
from receptor_merges import (
    FACTORS,
    SHARED,
    STEPS,
    Row,
    Settings,
    changed_share,
    choose,
    merge,
    parameters,
    refine,
    rows,
)
from receptor_models import BY_WORD, Anarcii, Numbering, align_vocabularies, decode, find_package

WORDS = {"base": [1, "X", "H"], "tcr": [1, "X", "A", "B"], "shark": [1, "X", "H", "B"]}
HAS_PACKAGES = all(find_spec(name) is not None for name in ("anarcii", "anarci", "gemmi"))


def made_up(words: dict[str, list[Any]]) -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    return {
        name: {
            "block.weight": torch.randn(4, 4),
            **{key: torch.randn(len(own), *[4] * ("bias" not in key)) for key in BY_WORD},
        }
        for name, own in words.items()
    }


def test_every_model_gets_the_rows_of_all_words() -> None:
    models = made_up(WORDS)
    aligned, words = align_vocabularies(models, WORDS)
    assert words == [1, "X", "H", "A", "B"]
    for name, key, word in product(models, BY_WORD, words):
        lender = next(model for model in (name, "base", "tcr", "shark") if word in WORDS[model])
        wanted = models[lender][key][WORDS[lender].index(word)]
        assert torch.equal(aligned[name][key][words.index(word)], wanted)
    for name, key in product(("tcr", "shark"), BY_WORD):
        delta = aligned[name][key] - aligned["base"][key]
        own = [word for row, word in zip(delta, words, strict=True) if row.abs().max() > 0]
        # B is the base's by tcr, so that tcr has no delta there.
        assert own == ([1, "X"] if name == "tcr" else [1, "X", "H", "B"])
        assert aligned[name]["block.weight"] is models[name]["block.weight"]


def columns(positions: dict[int, str]) -> str:
    return "".join(positions.get(position, "-") for position in range(1, COLUMNS + 1))


V = {1: "Q", 23: "C", 103: "Y", 104: "C", 105: "A", 106: "R"}
J = {115: "F", 116: "D", 117: "L", 118: "W", 128: "S"}


def test_columns_are_positions_and_the_third_loop_is_filled_from_both_ends() -> None:
    domain = join("IGHV1*01", "H", columns(V), columns(J))
    assert domain.residues == "QCYCARFDLWS"
    assert domain.numbers == (1, 23, 103, 104, 105, 106, 107, 116, 117, 118, 128)
    assert domain.gene == "IGHV1"
    even = join("IGHV1*01", "H", columns(V), columns({115: "F", 116: "D", 118: "W"}))
    assert even.numbers[4:8] == (105, 106, 116, 117)
    empty = join("IGHV1*01", "H", columns({104: "C"}), columns({118: "W"}))
    assert empty.numbers == (104, 118)


@pytest.mark.parametrize(
    ("v_columns", "j_columns", "message"),
    [
        (columns(V)[:-1], columns(J), "does not have 128 columns"),
        (columns(V), columns(J | {106: "G"}), "both have a residue at 106"),
    ],
)
def test_alleles_that_do_not_fit_are_refused(v_columns: str, j_columns: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join("IGHV1*01", "H", v_columns, j_columns)


def germlines(genes: int) -> dict[str, dict[str, dict[str, dict[str, str]]]]:
    random = Random(0)
    alleles = {
        f"IGHV{gene}*0{allele}": columns(V | {30 + random.randrange(60): random.choice("AGLV")})
        for gene in range(genes)
        for allele in (1, 2)
    }
    broken = columns(V | {104: "Y"})
    return {
        "V": {"H": {"human": {**alleles, "IGHV99*01": broken}, "rat": alleles, "cow": alleles}},
        "J": {"H": {"human": {"J*01": columns(J)}, "cow": {"J*02": columns(J | {128: "A"})}}},
    }


def test_no_gene_is_in_both_parts() -> None:
    domains = list(list_domains(germlines(50), "H"))
    assert len(domains) == 200  # two species with J alleles; the broken allele is left out
    parts = {part: draw(domains, part, 1000) for part in ("dev", "test")}  # type: ignore[arg-type]
    genes = {part: {domain.gene for domain in own} for part, own in parts.items()}
    assert not genes["dev"] & genes["test"]
    assert min(len(own) for own in genes.values()) > 10
    assert sum(map(len, parts.values())) == 200
    assert draw(domains, "dev", 7) == parts["dev"][:7]
    assert part_of("IGHV1-18") == part_of("IGHV1-18")


def test_domains_and_residues_are_compared(tmp_path: Path) -> None:
    first = Domain("a", "H", "QCW", (1, 23, None))
    second = Domain("b", "H", "QW", (1, 118))
    assert compare([first, second], [[1, 23, None], [1, 118]]) == (100, 100)
    assert compare([first, second], [[1, 23, None], [1, None]]) == (50, 80)
    path = tmp_path / "some.fasta"
    path.write_text(">one\nARV\nDQ\n\n>two\nCW\n", encoding="utf-8")
    one, two = read_fasta(path)
    assert (one.name, one.residues, two.residues) == ("one", "ARVDQ", "CW")
    assert one.numbers == (None,) * 5


class Rule:
    """A made-up network whose next word follows from the word before it and the letter."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.table = torch.rand(count, count, count, generator=generator)

    def make_src_mask(self, source: torch.Tensor) -> torch.Tensor:
        return source == 0

    def encoder(self, source: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return source

    def make_trg_mask(self, words: torch.Tensor) -> tuple[torch.Tensor, None]:
        return words == 0, None

    def decoder(
        self, words: torch.Tensor, encoded: torch.Tensor, *masks: Any
    ) -> tuple[torch.Tensor, int]:
        start = masks[3] if len(masks) > 3 and masks[3] else 0
        letters = encoded[:, start : start + words.shape[1]]
        return self.table[words, letters], start + words.shape[1]


@pytest.mark.parametrize("passes", [0, 1, 3, 100])
def test_decoding_by_correction_is_greedy_decoding(
    passes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receptor_models, "PASSES", passes)
    torch.manual_seed(1)
    count, end = 9, 2
    model, source = Rule(count), torch.randint(3, count, (40, 12))
    lengths = torch.randint(4, 13, (40,))
    guess = torch.randint(0, count, (40, 13))
    guess[:, 0] = 1
    wanted = torch.full_like(guess, -1)
    wanted[20:, 5] = 3
    found = decode(model, source, guess, lengths, end, wanted)
    for row, (letters, length) in enumerate(zip(source.tolist(), lengths.tolist(), strict=True)):
        word = 1
        for place in range(length):
            word = int(model.table[word, letters[place]].argmax())
            assert found[row, place + 1] == word
            if word == end or wanted[row, place + 1] not in (-1, word):
                break


def test_rows_have_keys_and_candidates() -> None:
    all_rows = rows((0.2, 0.1))
    assert len({row.key for row in all_rows}) == len(all_rows)
    assert choose(Row("ties", 0.2), lambda found: -abs(found.weights[0] - 0.7)) == (
        Settings((0.6, 0.6)),
        len(SHARED),
    )
    by_inputs, _ = choose(Row("dppa_regmean", 0.2), lambda found: found.scale)
    assert by_inputs == Settings((1.0, 1.0), scale=SHARED[-1])
    amplified, tried = choose(Row("dppa", 0.2, amplified=True), lambda found: found.factor)
    assert (amplified.factor, tried) == (FACTORS[-1], len(SHARED) + len(FACTORS))
    given = parameters(Row("dppa", 0.2, amplified=True), amplified, 0)
    assert {name for name in given if "amplify" in name} == {"amplify_90", "amplify_80"}
    finer, more = refine(Settings((0.4, 0.4)), lambda found: found.weights[0] - found.weights[1])
    assert (finer.weights, more) == ((STEPS[-1] * 0.4, STEPS[0] * 0.4), 2 * len(STEPS))


SHAPES = {
    "encoder.layers.0.attention.in_proj_weight": (96, 32),
    "encoder.layers.0.fc.weight": (64, 32),
    "encoder.layers.0.fc.bias": (64,),
    "fc_out.weight": (20, 32),
}


def draw_models() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    base = {name: torch.randn(shape) for name, shape in SHAPES.items()}
    return {
        name: {key: tensor + share * torch.randn_like(tensor) for key, tensor in base.items()}
        for name, share in (("base", 0.0), ("tcr", 0.1), ("shark", 0.1))
    }


def test_the_command_writes_what_is_merged_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    row, settings = Row("dppa", 0.2, amplified=True), Settings((0.5, 0.7), factor=1.5)
    assert antigen_receptors.count_unequal(Path("out"), draw_models(), row, settings) == 0


@pytest.mark.parametrize("row", rows((0.2,)), ids=lambda row: row.key)
def test_every_row_merges(row: Row) -> None:
    models = draw_models()
    base = models["base"]
    merged = merge(models, row, Settings((0.5, 0.5)), seed=0)
    assert {name: tuple(tensor.shape) for name, tensor in merged.items()} == SHAPES
    assert changed_share(base, base) == 0 < changed_share(base, merged) <= 100
    if row.method == "dp":
        name = "encoder.layers.0.attention.in_proj_weight"
        assert (merged[name] != base[name]).float().mean() < 0.6
    again = merge(models, row, Settings((0.5, 0.5)), seed=0)
    assert all(torch.equal(tensor, again[name]) for name, tensor in merged.items())


def test_a_missing_package_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receptor_models, "find_spec", lambda name: None)
    monkeypatch.setattr(receptor_models.sys, "executable", "false")
    with pytest.raises(click.ClickException, match=r"needs anarcii==.* and anarci==") as caught:
        find_package("anarcii", tmp_path)
    assert caught.value.message.count(". ") == 0
    result = CliRunner().invoke(antigen_receptors.main, [str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "Traceback" not in result.output


@pytest.mark.skipif(not HAS_PACKAGES, reason="needs anarcii with its dependencies, and anarci")
def test_numbering_agrees_with_the_package(tmp_path: Path) -> None:
    package = Anarcii(find_package("anarcii", tmp_path))
    from anarcii import Anarcii as Pipeline

    path = find_package("anarci", tmp_path) / "germlines.py"
    domains = draw(list_domains(read_germlines(path), CHAINS["TCR"]), "test", 40)
    words = package.words()["tcr"]
    chains, numbers = Numbering(package, words).number(package.weights()["tcr"], domains)
    # A useless guess changes nothing.
    blind = [replace(domain, numbers=(None,) * len(domain.residues)) for domain in domains]
    assert Numbering(package, words).number(package.weights()["tcr"], blind) == (chains, numbers)
    pipeline = Pipeline(seq_type="tcr", cpu=True, ncpu=1)
    results = pipeline.number({str(place): one.residues for place, one in enumerate(domains)})
    compared = 0
    for result, chain, own in zip(results.values(), chains, numbers, strict=True):
        if result["numbering"] is None or None in own:
            continue  # rejected for its low score, or with words that the pipeline interprets
        compared += 1
        theirs = [number for (number, _), residue in result["numbering"] if residue != "-"]
        assert (result["chain_type"], theirs) == (chain, own)
    assert compared > 30


class MadeUpBench(Bench):
    """A bench on which the first number of a merge says how good it is for TCRs."""

    @property
    def aligned(self) -> Any:
        return {name: {"w": torch.zeros(2)} for name in ("base", "tcr", "shark")}, None

    def merge(self, row: Row, settings: Settings, seed: int = 0) -> dict[str, torch.Tensor]:
        return {"w": torch.tensor([settings.weights[0] + seed, settings.weights[1]])}

    def score(self, weights: Any, part: Any, numbering: Any = None) -> dict[str, float]:
        return {"TCR": float(weights["w"][0]), "antibody": -float(weights["w"][1])}

    def score_residues(self, weights: Any) -> dict[str, float]:
        return {"TCR": 99.0, "antibody": 98.0}

    def shipped(self, part: Any) -> Any:
        return {name: {"TCR": 2.0, "antibody": 4.0} for name in ("base", "tcr", "shark")}


def test_rows_are_chosen_on_dev_kept_and_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = MadeUpBench(Anarcii(tmp_path), tmp_path, None)
    kept = tmp_path / "results.json"
    for row in (Row("task_arithmetic"), Row("dare_linear", 0.2)):
        bench.measure(row, kept)
    plain, random = antigen_receptors.read(kept)
    # TCRs count for more: 100 x (w / 2 - w / 4) / 2 grows with a shared weight.
    assert plain["shared"]["settings"]["weights"] == [SHARED[-1]] * 2
    assert plain["shared"]["test"][0]["ratio"] == pytest.approx(100 * (1.2 / 2 - 1.2 / 4) / 2)
    assert plain["each"]["settings"]["weights"] == pytest.approx([1.8, 0.6])
    assert [test["domains"]["TCR"] for test in random["shared"]["test"]] == pytest.approx(
        [1.2, 2.2, 3.2]
    )
    assert len(random["each"]["test"]) == 1
    antigen_receptors.print_tables(bench, [plain, random])
    printed = capsys.readouterr().out
    assert printed.count("| dare_linear, density 0.2") == 2
    assert "2.2 ± 1.0" in printed
