"""Strategies and contests against landscapes whose best is known, without any model."""

import math
from collections.abc import Iterator, Mapping, Sequence
from random import Random
from typing import Any

import pytest
from landscape import Landscape, TeachingLandscape, hill

from dppa_mergekit.errors import DppaError, ParameterError
from dppa_mergekit.scoring.objectives import DomainObjective, MergeObjective
from dppa_mergekit.scoring.ratios import Items, Score, Scores
from dppa_mergekit.scoring.tasks import TasksError
from dppa_mergekit.search.candidate_search import CandidateSearch
from dppa_mergekit.search.candidates import Proposal, weight_candidates
from dppa_mergekit.search.options import Options
from dppa_mergekit.search.racing import Contest, choosing_folds, deal
from dppa_mergekit.search.results import SearchResult
from dppa_mergekit.search.strategies import Space, _tune


def run(trials: Landscape, **options: object) -> SearchResult:
    items = {"a": len(trials.thresholds)}
    return CandidateSearch("math", "./math", items, trials, Options(**options)).run()


def dipped(a: float, b: float) -> float:
    """A hill with a dip beside 1, where the first step does not improve."""
    return hill(2.2, 1.8)(a, b) - (0.6 if 1.0 < a < 1.5 else 0)


@pytest.mark.parametrize("strategy", ["paper", "joint", "distill"])
def test_finds_the_top_of_a_hill(strategy: str) -> None:
    found = run(TeachingLandscape(hill(1.7, 1.3)), strategy=strategy)
    assert found.factors == pytest.approx({"amplify_90": 1.7, "amplify_80": 1.3}, abs=0.1001)
    assert found.after.value > found.before.value


def test_a_strategy_that_needs_a_teacher_is_refused_before_any_evaluation() -> None:
    class NoScores(Landscape):
        def score_fine_tuned(self, items: Items) -> Scores:
            raise AssertionError

    with pytest.raises(DppaError, match="Strategy distill needs a teacher"):
        run(NoScores(hill(1.7, 1.3)), strategy="distill")


def test_joint_finds_what_the_climb_misses() -> None:
    climbed = run(Landscape(dipped), strategy="paper")
    joint = run(Landscape(dipped), strategy="joint", max_evaluations=200)
    assert climbed.factors["amplify_90"] == 1.0
    assert joint.factors == pytest.approx({"amplify_90": 2.2, "amplify_80": 1.8}, abs=0.1001)


WEIGHTS = ("math", "finance", "law")


def weighed(
    trials: Landscape, start: Sequence[float], evaluations: int, relative: bool = False
) -> SearchResult:
    items = {"a": len(trials.thresholds)}
    options = Options(strategy="weights", low=0.0, high=1.5, max_evaluations=evaluations)
    make = weight_candidates(start, relative)
    return CandidateSearch("all", "", items, trials, options, make_candidates=make).run()


@pytest.mark.parametrize("best", [(0.9, 0.4, 0.2), (0.1, 1.4, 0.7), (0.5, 0.5, 0.5)])
def test_weights_of_their_own(best: tuple[float, ...]) -> None:
    found = weighed(Landscape(hill(*best), WEIGHTS), (0.3, 0.3, 0.3), 60)
    assert found.factors == pytest.approx(dict(zip(WEIGHTS, best, strict=True)), abs=0.1001)


def test_weights_of_their_own_come_early() -> None:
    trials = Landscape(hill(0.9, 0.4, 0.2), WEIGHTS)
    few = weighed(trials, (0.3, 0.3, 0.3), 12)
    shared = max(trials.quality(weight, weight, weight) for weight in (0.1 * n for n in range(16)))
    assert trials.quality(*few.factors.values()) > shared
    assert few.evaluations <= 12


def test_common_weights_are_not_tried_where_only_ratios_count() -> None:
    def ratio(math: float, finance: float) -> float:
        return hill(0.5, 1.0)(math / max(finance, 0.1), 1.0)

    found, common = {}, {}
    for relative in (True, False):
        trials = Landscape(ratio, WEIGHTS[:2])
        math, finance = weighed(trials, (1.0, 1.0), 24, relative).factors.values()
        assert math / finance == pytest.approx(0.5, abs=0.1)
        found[relative] = {weights for weights, _ in trials.calls}
        common[relative] = {weights for weights in found[relative] if len(set(weights)) == 1}
    assert len(common[True]) < len(common[False])
    assert len(found[True]) < len(found[False])


def test_weights_that_are_right_stay() -> None:
    right = (0.85, 0.4, 0.2)
    found = weighed(Landscape(hill(*right), WEIGHTS), right, 60)
    assert found.factors == dict(zip(WEIGHTS, right, strict=True))


def test_patience_steps_over_a_dip() -> None:
    found = run(Landscape(dipped), strategy="paper", patience=5)
    assert found.factors["amplify_90"] == pytest.approx(2.2, abs=0.1001)


def test_the_papers_climb_step_by_step() -> None:
    trials = Landscape(lambda a, b: 0.9 - 5 * (a - 1.2) ** 2 - 5 * (b - 1.1) ** 2 * (b > 0))
    run(trials, strategy="paper")
    tried = list(dict.fromkeys(values for values, _ in trials.calls))
    assert tried == [
        (1.0, 1.0),
        # Method 1: the 80 partition is absent while that of 90 is tuned.
        (1.0, 0.0), (1.1, 0.0), (1.2, 0.0), (1.3, 0.0),
        (1.2, 1.0), (1.2, 1.1), (1.2, 1.2),
        # Method 2: it is there, at factor 1.
        (1.1, 1.0), (1.3, 1.0),
    ]  # fmt: skip


def test_random_partitions_are_climbed_downwards() -> None:
    trials = Landscape(hill(0.7, 0.8))
    found = run(trials, strategy="paper", low=0.1, high=1.0, downwards=True)
    assert found.factors == pytest.approx({"amplify_90": 0.7, "amplify_80": 0.8}, abs=0.1001)
    assert max(max(values) for values, _ in trials.calls) == 1.0


@pytest.mark.parametrize("strategy", ["paper", "joint", "distill"])
@pytest.mark.parametrize("seed", range(8))
def test_never_below_the_start(strategy: str, seed: int) -> None:
    # Nothing is better than 1, and all differences are noise.
    flat = TeachingLandscape(lambda *factors: 0.5, items=60, noise=0.2)
    found = run(flat, strategy=strategy, seed=seed)
    assert found.after.value >= found.before.value
    assert found.confirmed is not None
    assert found.confirmed[1].value >= found.confirmed[0].value


@pytest.mark.parametrize("seed", range(8))
def test_what_was_reported_last_is_the_result(seed: int) -> None:
    # By chance, what chose is often not what the other items confirm.
    trials = Landscape(hill(1.2, 1.1), items=60, noise=0.3)
    reported: list[Mapping[str, object]] = []
    options = Options(seed=seed, max_evaluations=30)
    items = {"a": len(trials.thresholds)}
    search = CandidateSearch("math", "./math", items, trials, options, best_so_far=reported.append)
    assert search.run().factors == reported[-1]


def test_a_plateau_is_resolved_by_its_middle() -> None:
    def quality(a: float, b: float) -> float:
        return 0.8 if 1.35 < a < 2.25 else 0.3

    found = run(Landscape(quality), strategy="joint")
    assert found.factors == pytest.approx({"amplify_90": 1.8, "amplify_80": 1.0}, abs=0.101)


def test_a_plateau_beside_the_grid() -> None:
    # 1.5 is not on the grid, and as good as all from 2.6 on.
    def score(wanted: Sequence[tuple[tuple[int, ...], int]]) -> Iterator[Scores]:
        for (first, second), _ in wanted:
            assert first == 100
            right = second == 150 or second >= 260
            yield {"a": Score.of([0.5, float(right)])}

    contest = Contest(score, 1, DomainObjective({"a": 1.0}), 60, (100, 100))
    assert _tune(contest, Space((100, 100), 20, 300), (100, 150), [1]) == (100, 150)


def test_a_tie_goes_to_factors_of_1() -> None:
    found = run(Landscape(lambda *factors: 0.5), strategy="joint")
    assert found.factors == {"amplify_90": 1.0, "amplify_80": 1.0}


def test_nothing_is_scored_twice_and_bad_candidates_are_given_up() -> None:
    trials = Landscape(hill(1.7, 1.3), noise=0.02)
    found = run(trials, strategy="joint")
    per_fold = len(trials.thresholds) / 6
    of_candidate = [values for values, _ in trials.calls]
    assert max(of_candidate.count(values) for values in of_candidate) <= 6
    assert len(trials.calls) * per_fold < 0.7 * found.evaluations * len(trials.thresholds)


def test_the_budget_holds() -> None:
    trials = Landscape(hill(1.7, 1.3))
    found = run(trials, strategy="joint", max_evaluations=7)
    assert found.evaluations == len({values for values, _ in trials.calls}) == 7


def test_a_search_ends_where_nothing_can_be_gained() -> None:
    # From 1.4 on, every item is right.
    def best_from(factor: float, best: float) -> Landscape:
        return Landscape(lambda *factors: best if min(factors) >= factor else 0.5)

    result = run(best_from(1.4, 1.01))
    assert result.after.value == 100
    assert min(result.factors.values()) >= 1.4
    assert result.evaluations < run(best_from(1.4, 0.95)).evaluations / 2
    result = run(Landscape(lambda *factors: 1.01))
    assert (result.evaluations, set(result.factors.values())) == (1, {1.0})


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"max_evaluations": 0}, "max_evaluations is 0; allowed is 1 or more"),
        ({"patience": 0}, "patience is 0; allowed is 1 or more"),
        ({"strategy": "jont"}, "strategy is 'jont'; allowed are paper, joint, distill, weights"),
        ({"low": 2.0, "high": 1.0}, "low is 2 and high is 1; allowed is a range from less to"),
        ({"high": math.nan}, "low is 0.2 and high is nan; allowed is a range from less to"),
    ],
)
def test_options_that_are_not_allowed(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParameterError, match=sentence):
        Options(**given)


def test_a_dense_score_of_zero_names_the_task() -> None:
    class Nothing(Landscape):
        def score_fine_tuned(self, items: Items) -> Scores:
            return {task: Score.of([0.0] * len(chosen)) for task, chosen in items.items()}

    with pytest.raises(TasksError, match="Task a: the model before merging scores 0"):
        run(Nothing(hill(1.0, 1.0)))


def test_a_metric_that_is_no_mean_of_items_is_taken_of_all_of_them() -> None:
    class Correlation(Landscape):
        def score_fine_tuned(self, items: Items) -> Scores:
            return {task: Score(1.0) for task in items}

        def score(self, settings: Mapping[str, float], items: Items) -> Scores:
            return {
                task: Score(score.value) for task, score in super().score(settings, items).items()
            }

    trials = Correlation(hill(1.7, 1.3))
    found = run(trials)
    assert {number for _, number in trials.calls} == {len(trials.thresholds)}
    assert found.factors == pytest.approx({"amplify_90": 1.7, "amplify_80": 1.3}, abs=0.1001)
    assert found.confirmed is None


def test_factors_for_each_block_stay_in_their_range() -> None:
    class Blocks(TeachingLandscape):
        def score(self, settings: Mapping[str, Any], items: Items) -> Scores:
            self.tried += [value for values in settings.values() for value in values]
            return super().score({name: sum(factors) for name, factors in settings.items()}, items)

        def propose(self, items: Items, low: float, high: float, seed: int) -> Proposal:
            return {name: [low, 0.6, high] for name in self.names}

    trials = Blocks(lambda a, b: 0.9 - (a + b) / 20)
    trials.tried = []
    run(trials, strategy="distill", per_block=True, low=0.1, high=1.0)
    assert min(trials.tried) == 0.1
    assert max(trials.tried) == 1.0


def test_items_are_dealt_out_once() -> None:
    folds = deal({"a": 250, "b": 61}, seed=3)
    assert len(folds) == 6
    for task, number in (("a", 250), ("b", 61)):
        assert sorted(item for fold in folds for item in fold[task]) == list(range(number))
    assert len(deal({"a": 250, "b": 5}, seed=3)) == 1
    # A fold fills a batch, unless too few were left to choose and to confirm.
    assert len(deal({"a": 250, "b": 61}, seed=3, batch=64)) == 4
    assert len(deal({"a": 50, "b": 50}, seed=3, batch=64)) == 3
    # Where one batch has room for all that choose, none is given up before it is scored on them.
    chosen, confirming = deal({"a": 48, "b": 48}, seed=3, batch=64)
    thirds = deal({"a": 48, "b": 48}, seed=3, batch=63)
    assert chosen == {task: sorted(thirds[0][task] + thirds[1][task]) for task in "ab"}
    assert confirming == thirds[2]
    assert [list(choosing_folds(number)) for number in (1, 2, 3, 6)] == [
        [0],
        [0],
        [0, 1],
        [0, 1, 2, 3],
    ]
    assert len(deal({"a": 23, "b": 50}, seed=3)) == 1
    assert len(deal({"a": 50, "b": 10}, seed=3, batch=64)) == 1


def test_one_item_of_a_guard_gives_nothing_up() -> None:
    items = {"a": 96, "g": 96}
    folds = deal(items, seed=0)
    unlucky = folds[0]["g"][:1]
    rates = {(50,): (0.3, []), (90,): (0.6, unlucky), (120,): (0.9, range(12))}

    def score(wanted: Sequence[tuple[tuple[int, ...], int]]) -> Iterator[Scores]:
        for candidate, fold in wanted:
            rate, lost = rates[candidate]
            yield {
                "a": Score.of([float(item % 10 < 10 * rate) for item in folds[fold]["a"]]),
                "g": Score.of([float(item not in lost) for item in folds[fold]["g"]]),
            }

    guarded = MergeObjective({"first": DomainObjective({"a": 1.0})}, guard={"g": 1.0}, loss=0.05)
    contest = Contest(score, len(folds), guarded, 10, (50,))
    contest.race(list(rates))
    # Of the guard's items, the second loses one in the first fold, and 1 % of all; the third 12 %.
    assert contest.confirmed() == (90,)


@pytest.mark.parametrize("items", [100, 400])
def test_a_start_that_breaks_the_guard(items: int) -> None:
    # With larger weights the domain gains, and the guard loses: 8 % at the start, 2 % at 0.4.
    def broke(seed: int) -> bool:
        rng = Random(seed)
        drawn = {task: [rng.random() for _ in range(items)] for task in "ag"}

        class Trade(Landscape):
            def score_fine_tuned(self, items: Items) -> Scores:
                guard = [float(drawn["g"][item] < 0.95) for item in items["g"]]
                return {"a": Score.of([1.0] * len(items["a"])), "g": Score.of(guard)}

            def score(self, settings: Mapping[str, float], items: Items) -> Scores:
                weight = sum(settings.values()) / len(settings)
                right = {"a": 0.25 + 0.5 * weight, "g": 0.95 - 0.126 * weight**2}
                luck = Random(f"{seed} {settings} {items}")
                return {
                    task: Score.of(
                        [float(drawn[task][x] + luck.gauss(0, 0.06) < right[task]) for x in chosen]
                    )
                    for task, chosen in items.items()
                }

        found = CandidateSearch(
            "merge",
            "",
            {"a": items, "g": items},
            Trade(hill(0.0, 0.0), ("first", "second")),
            Options(strategy="weights", low=0.0, high=1.5, max_evaluations=24),
            objective=lambda dense: MergeObjective(
                {"first": DomainObjective({"a": 1.0})}, guard={"g": dense["g"]}, loss=0.05
            ),
            make_candidates=weight_candidates([0.8, 0.8]),
        ).run()
        return found.lost > 0

    assert sum(map(broke, range(8))) <= 1


def test_a_race_keeps_what_chance_may_explain() -> None:
    rng = Random(0)
    luck = [rng.random() for _ in range(300)]
    rates = {(100,): 0.60, (110,): 0.61, (200,): 0.30}

    def score(wanted: Sequence[tuple[tuple[int, ...], int]]) -> Iterator[Scores]:
        for candidate, fold in wanted:
            scored.append((candidate, fold))
            part = luck[fold * 50 : fold * 50 + 50]
            yield {"a": Score.of([float(threshold < rates[candidate]) for threshold in part])}

    scored: list[tuple[tuple[int, ...], int]] = []
    contest = Contest(score, 6, DomainObjective({"a": 1.0}), 10, (100,))
    assert (200,) not in contest.race(list(rates))
    assert [fold for candidate, fold in scored if candidate == (200,)] == [0]
    assert [fold for candidate, fold in scored if candidate == (110,)] == [0, 1, 2, 3]
