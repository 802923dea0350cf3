"""The contest of merges that examples hold, on tiny models."""

from pathlib import Path

import pytest
import six_experts
import smollm2_by_inputs
import torch
from activation_files import draw_moments, write_moments
from checkpoints import save_family, tensors_of
from contest import (
    Contest,
    Learning,
    Part,
    Result,
    Row,
    Weights,
    labelled,
    measure_missing,
    read_results,
)

ROWS = [
    Row("task_arithmetic"),
    Row("ties", 0.2),
    Row("dppa", 0.2),
    Row("dppa", 0.1),
    Row("dppa_regmean", 0.2, 5),
    Row("dppa_regmean", 0.2),
    Row("dppa_regmean", 0.2, amplify="none"),
]


def test_rows_have_keys_of_their_own() -> None:
    for rows in (six_experts.ROWS, smollm2_by_inputs.ROWS):
        assert len({row.key for row in rows}) == len(rows)
    assert dict(labelled(ROWS, (0.2, 0.1)))["dppa"] == ["", *(row.key for row in ROWS[2:4])]


def test_rows_choose_on_dev_and_are_kept(tmp_path: Path) -> None:
    family = save_family(tmp_path)
    models = {name: dict(tensors_of(family / name)) for name in ("base", "math", "law")}
    name = "model.layers.0.self_attn.q_proj.weight"
    origin = models["base"][name].float()
    asked: list[int] = []
    judged: list[Part] = []

    def observe(number: int) -> dict[str, str]:
        asked.append(number)
        return {
            model: write_moments(
                tmp_path / f"{model}.safetensors", family, model, draw_moments(family, model, 0)
            )
            for model in ("math", "law")
        }

    def judge(weights: Weights, part: Part) -> tuple[float, Result]:
        judged.append(part)
        moved = float((weights[name].float() - origin).norm())
        return (moved if part == "dev" else -moved), {"moved": moved}

    contest = Contest(models, observe, judge, (0.2, 0.9, 0.5), (1.0,))
    kept = tmp_path / "results.json"
    measure_missing(contest, ROWS[:3], kept, "tiny")
    assert judged == ["dev", "dev", "dev", "test"] * 3
    results = read_results(kept)
    # The larger the weight, the farther the merge; test items do not choose.
    assert [result["chosen"] for result in results.values()] == [0.9] * 3
    del judged[:]
    measure_missing(contest, ROWS, kept, "tiny")
    # With one candidate there is nothing to choose.
    assert judged == ["dev", "dev", "dev", "test", "test", "test", "test"]
    assert asked == [5]
    results = read_results(kept)
    assert list(results) == [row.key for row in ROWS]
    free, plain = (results[row.key]["moved"] for row in ROWS[-2:])
    assert free != plain
    assert all(
        torch.equal(models["base"][key], tensors_of(family / "base")[key]) for key in models["base"]
    )


def test_learned_rows_are_judged_on_test_alone(tmp_path: Path) -> None:
    judged: list[tuple[float, Part]] = []

    def judge(weights: Weights, part: Part) -> tuple[float, Result]:
        judged.append((float(weights["w"]), part))
        return 0.0, {"w": float(weights["w"])}

    def learn(row: Row) -> Weights:
        return {"w": torch.tensor(row.density)}

    row = Row("dppa_regmean", 0.25, 5, learned=Learning())
    finer = Row("dppa", 0.2, learned=Learning("linear", "hidden"))
    assert finer.key == "dppa, AdaMerging, linear, hidden, density 0.2"
    contest = Contest({}, lambda _: {}, judge, (0.2, 0.9), (1.0,), learn)
    measure_missing(contest, [row], tmp_path / "results.json", "tiny")
    assert judged == [(0.25, "test")]
    assert read_results(tmp_path / "results.json") == {
        "dppa_regmean, 5 prompts, AdaMerging, density 0.25": {"chosen": "learned", "w": 0.25}
    }


def test_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "seed_0").mkdir()
    row = six_experts.ROWS[0]
    (tmp_path / "seed_0" / "six_experts.json").write_text(
        f'{{"{row.key}": {{"chosen": 0.3, "ratios": {{"a": 50, "b": 70}}}}}}', encoding="utf-8"
    )
    six_experts.print_table(tmp_path)
    assert "60.0" in capsys.readouterr().out
    row = smollm2_by_inputs.ROWS[-1]
    kept = tmp_path / "kept.json"
    kept.write_text(
        f'{{"{row.key}": {{"chosen": 1.0, "mean": [80.0, 2.5], "math": [70.0, 3.0],'
        f' "law": [90.0, null], "guard knowledge_test": 0.5}}}}',
        encoding="utf-8",
    )
    smollm2_by_inputs.print_table(kept, ("math", "law"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if row.label in line]
    assert [cell.strip() for cell in line.strip("|").split("|")][1:3] == ["0.2", "1.0"]
    assert "80.0 ± 2.5" in line
    assert line.rstrip(" |").endswith("50")
