"""The tables of the paper's experiments: averages, the paper's numbers, and scores of merges."""

from measurements import Group
from report_tables import (
    tabulate_merges,
    tabulate_noise,
    tabulate_offsets,
    tabulate_scores,
    tabulate_single_models,
)


def models(value: float, error: float) -> dict[str, object]:
    row = {
        "domain_ratios": {"math": {"value": value, "error": error}},
        "scores": {"adding_test": {"value": value / 100, "error": 0.0}},
    }
    names = ("magnitude_90", "owl_90", "dp_90", "dare_90", "dare_linears_90")
    return {**dict.fromkeys(names, row), "dense": {"adding_test": {"value": 0.5}}}


def test_cells_are_means_over_seeds_beside_the_paper() -> None:
    found = {
        f"seed_{number}": {
            "pruned": {"math": models(value, 3.0)},
            "amplified": {"math": {}},
            "offsets": {"math": {"relative": 0.1}},
        }
        for number, value in enumerate((40.0, 50.0, 60.0))
    }
    lines = tabulate_single_models(Group("Some", found), (90,), ("magnitude",)).splitlines()
    assert lines[2] == "| math   | 90 %      | 50.0 ± 10.0 (53.41) |"
    # At 90 %, kept elements are multiplied by ten: the noise deviates by three times the delta.
    lines = tabulate_noise(Group("Some", found)).splitlines()
    assert lines[2].startswith("| math   | 90 %      |  0.30 | 50.0 ± 10.0 |")
    one = Group("One", {"seed_0": found["seed_0"]})
    single = tabulate_single_models(one, (90,), ("magnitude",))
    assert "40.0 ± 3.0 (53.41)" in single
    scores = tabulate_scores(Group("Some", found))
    assert "| adding | 90 %      |      50.0 |" in scores


def test_deltas_stand_beside_the_paper_where_it_has_the_domain() -> None:
    offsets = {"minimum": -1.0, "deciles": [0.0] * 9, "maximum": 1.0, "relative": 0.1}
    found = {
        "seed_0": {
            "pruned": {"math": {}, "adding": {}},
            "offsets": {"math": offsets, "adding": offsets},
        }
    }
    lines = tabulate_offsets(Group("Some", found)).splitlines()
    names = [line.split("|")[1].strip() for line in lines[2:]]
    assert names == ["math", "math (paper)", "adding"]


def test_merges_have_the_mean_over_domains() -> None:
    ratios = {"math": {"value": 20.0, "error": 3.0}, "law": {"value": 60.0, "error": 4.0}}
    scores = {"repeat_test": {"value": 0.9, "error": 0.01}}
    mean = {"value": 40.0, "error": 2.5}  # as `evaluate` gives it: sqrt(3 ** 2 + 4 ** 2) / 2
    base = {"domain_ratios": ratios, "mean_ratio": mean, "scores": scores}
    merge = {**base, "candidates": 16, "seconds": 61.4}
    merges = {"base": base, "dare_dpa_90_search": merge, "dense": {}}
    found = {"seed_0": {"pruned": {}, "merged": {"math_law": merges}}}
    lines = tabulate_merges(Group("One", found), ("math", "law")).splitlines()
    head, _, _, row = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert dict(zip(head, row, strict=True)) == {
        "merge": "DARE, linears alone",
        "pruned by": "90 %",
        "weights by": "search",
        "math": "20.0 ± 3.0",
        "law": "60.0 ± 4.0",
        "mean": "40.0 ± 2.5",
        "repeat": "90.0 ± 1.0",
        "scored": "16",
        "seconds": "61",
    }
