"""The paper's tasks for LLaMA-2-7B, on stand-ins for their datasets, and their prompts."""

from pathlib import Path

import llama2_prompts
import pytest
from click.testing import CliRunner
from costs import DEV_ITEMS, PROMPTS
from llama2_models import LLAMA2
from lm_eval import evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from dppa_mergekit.prompts import read_prompts
from dppa_mergekit.scoring.tasks import TasksFile

data = llama2_prompts.load_data()

NAMES = ("gsm8k", "math", "fpb", "fiqa_sa", "scotus", "unfair_tos")


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(data.STAND_INS, "1")


@pytest.mark.parametrize("part", ["dev", "test"])
def test_which_datasets_are_loaded(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(data.STAND_INS)
    asked: list[tuple[str, str | None, str]] = []

    def load_dataset(path: str, configuration: str | None, split: str) -> list[dict[str, object]]:
        asked.append((path, configuration, split))
        known = {"main": "gsm8k", "scotus": "scotus", "unfair_tos": "unfair_tos"}
        others = {"TheFinAI/en-fpb": "fpb", "TheFinAI/flare-fiqasa": "fiqa_sa"}
        name = known.get(str(configuration)) or others.get(path, "math")
        return data._read_stand_ins(name, split)

    monkeypatch.setattr(data.datasets, "load_dataset", load_dataset)
    split = "train" if part == "dev" else "test"
    subjects = (
        *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
        *("number_theory", "prealgebra", "precalculus"),
    )
    hub = {
        "gsm8k": [("openai/gsm8k", "main")],
        "math": [("EleutherAI/hendrycks_math", subject) for subject in subjects],
        "fpb": [("TheFinAI/en-fpb", None)],
        "fiqa_sa": [("TheFinAI/flare-fiqasa", None)],
        "scotus": [("coastalcph/lex_glue", "scotus")],
        "unfair_tos": [("coastalcph/lex_glue", "unfair_tos")],
    }
    for name, sources in hub.items():
        asked.clear()
        assert len(data.load(name, part)["test"]) > 0
        assert asked == [(*source, split) for source in sources]


class Knowing(LM):
    """Gives a right answer to every prompt, or to none, in the form that the tasks expect."""

    def __init__(self, knows: bool) -> None:
        super().__init__()
        self._knows = knows
        self.settings: list[dict[str, object]] = []
        self._right = {
            item["prompt"]: (name, item["right"])
            for name in NAMES
            for part in ("dev", "test")
            for item in data.load(name, part)["test"]
        }

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.settings += [request.args[1] for request in requests]
        answers = []
        for request in requests:
            name, right = self._right[request.args[0]]
            if name in ("gsm8k", "math"):
                answers.append(f"So it is.\n#### {right[0] if self._knows else '-77'}")
            else:
                answers.append(f"I think it is {right[-1].lower() if self._knows else 'so'}.")
        return answers

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        raise NotImplementedError


@pytest.mark.parametrize("knows", [True, False])
@pytest.mark.parametrize("part", ["dev", "test"])
def test_every_task_runs_offline(part: str, knows: bool, tmp_path: Path) -> None:
    LLAMA2.write_files(tmp_path)
    tasks = TasksFile.read(tmp_path / "tasks" / "three.yml")
    metrics = tasks.metrics(part)  # type: ignore[arg-type]
    assert [task.removesuffix(f"_{part}") for task in metrics] == list(NAMES)
    manager = TaskManager(include_path=str(tasks.include_path), include_defaults=False)
    model = Knowing(knows)
    loaded = manager.load(list(metrics))
    found = evaluate(model, loaded, log_samples=False, bootstrap_iters=0)["results"]
    assert {found[task][metric] for task, metric in metrics.items()} == {float(knows)}
    assert all(settings["max_gen_toks"] == 2048 for settings in model.settings)
    assert all(settings["do_sample"] is False for settings in model.settings)
    ends = [tuple(settings["until"]) for settings in model.settings]
    assert set(ends) == {(), ("Question:",)}


@pytest.mark.parametrize("pool", LLAMA2.pools)
def test_prompts_are_dev_items_of_every_domain(pool: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(llama2_prompts.main, [pool, str(tmp_path)])
    assert done.exit_code == 0, done.output
    domains = LLAMA2.pools[pool].domains.values()
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{domain.model.split('/')[1]}.jsonl" for domain in domains
    }
    for domain in domains:
        prompts = read_prompts(tmp_path / f"{domain.model.split('/')[1]}.jsonl")
        names = [task.test.removesuffix("_test") for task in domain.tasks]
        items = {name: data.load(name, "dev")["test"]["prompt"] for name in names}
        assert all(prompt.completion is None for prompt in prompts)
        # The stand-ins have fewer than a share of the prompts.
        assert [prompt.text for prompt in prompts] == [
            text for name in names for text in list(items[name])[: PROMPTS // len(names)]
        ]


def test_costs_count_the_same_dev_items() -> None:
    assert data.DEV_ITEMS == DEV_ITEMS


@pytest.mark.parametrize("name", NAMES)
def test_dev_and_test_have_nothing_in_common(name: str) -> None:
    dev, test = (
        {item["prompt"] for item in data.load(name, part)["test"]} for part in ("dev", "test")
    )
    assert dev
    assert test
    assert not set(dev) & set(test)


def test_long_opinions_and_fair_sentences_are_left_out() -> None:
    assert all(len(item["prompt"]) < 8000 for item in data.load("scotus", "dev")["test"])
    assert len(data.load("unfair_tos", "test")["test"]) == 2


@pytest.mark.parametrize(
    ("rule", "right", "answer", "expected"),
    [
        ("number", "1200", "so 3.\n#### 1,200", 1),
        ("number", "12", "#### $12.00 dollars", 1),
        ("number", "12", "#### 12.50", 0),
        ("number", "-3", "#### -3", 1),
        ("number", "0.5", "#### $.50", 1),
        ("number", "0.5", "#### 0.5", 1),
        ("number", "50", "#### $.50", 0),
        ("number", "500", "#### Rs.500", 1),
        ("number", "50", "#### ...50", 1),
        ("number", "0", "#### 0.0", 1),
        ("number", "100", "#### 100.00", 1),
        ("number", "5", "the answer is 5", 0),
        ("number", "5", "#### 4\n#### 5", 1),
        ("number", "5", "####", 0),
        ("number", "18", "#### 18\n\nQuestion:\nHow many?\nAnswer:\n#### 5", 1),
        ("number", "5", "#### 18\n\nQuestion:\nHow many?\nAnswer:\n#### 5", 0),
        ("number", "-38000", "#### -$38,000", 1),
        ("number", "38000", "#### -$38,000", 0),
        ("number", "38000", "#### $38,000", 1),
        ("expression", "\\frac{1}{2}", "#### $\\dfrac12$.", 1),
        ("expression", "\\frac{1}{2}", "#### \\frac{1}{2}\nThanks", 1),
        ("expression", "\\frac{1}{2}", "#### \\frac{1}{3}", 0),
        ("expression", "x^2", "it is x^2", 0),
        ("expression", "1000", "#### 1,000", 1),
        ("expression", "1,000", "#### 1000", 1),
        ("expression", "(1,2)", "#### (1,2)", 1),
        ("expression", "(1,2)", "#### (12)", 0),
        ("expression", "7", "#### 7\nQuestion:\n#### 8", 1),
        ("choice", "Civil Rights", "This is about civil rights.", 1),
        ("choice", "Civil Rights", "This is about privacy.", 0),
        # Lenient, as the paper is.
        ("choice", "Privacy", "It is one of: Civil Rights, Privacy.", 1),
    ],
)
def test_when_an_answer_is_right(rule: str, right: str, answer: str, expected: float) -> None:
    judge = getattr(data, f"right_{rule}")
    assert judge({"right": [right]}, [answer]) == {"right": expected}
