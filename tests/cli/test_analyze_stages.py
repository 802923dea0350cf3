"""`mergekit-dppa analyze` of several recipes: where each analysis is written."""

import json
from pathlib import Path

import yaml
from checkpoints import recipe, save_family
from click.testing import CliRunner

from dppa_mergekit.cli.main import main


def test_stages_of_one_last_name_have_a_folder_each(tmp_path: Path) -> None:
    family = save_family(tmp_path, num_hidden_layers=1)
    documents = [
        {"name": f"{model}/out", **recipe(family, models={model: {"weight": 1.0, "density": 0.2}})}
        for model in ("math", "law")
    ]
    path = tmp_path / "multi.yml"
    path.write_text(yaml.safe_dump_all(documents), encoding="utf-8")
    output = tmp_path / "analysis"
    done = CliRunner().invoke(main, ["-q", "analyze", str(path), f"--output={output}"])
    assert done.exit_code == 0, done.output
    found = {
        folder.name: json.loads((folder / "analysis.json").read_text(encoding="utf-8"))
        for folder in output.iterdir()
    }
    models = {name: Path(one["models"][0]["model"]).name for name, one in found.items()}
    assert models == {"math_out": "math", "law_out": "law"}
