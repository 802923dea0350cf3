"""The paper's tables with our measurements, in Markdown; the paper's own numbers in brackets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from measurements import LABELS, LADDER, Group, Sample
from plan import LEARNED
from reported import MERGED, OFFSETS, PRUNED
from subject_folder import to_density

from dppa_mergekit.analysis.evidence import noise_of
from dppa_mergekit.report.markdown_tables import table

WAYS: dict[str, str] = {
    "given": "as it starts",
    "shared": "search of one",
    "search": "search",
    **{way: f"AdaMerging, {way}" for way in LEARNED},
}
"""How the weights of a merge are found -> its name in tables."""

MERGED_NOTE = """\
The paper's DARE stands beside DARE on linears alone; `dare_linear` prunes every tensor. AdaMerging
learns weights for what is named or, of merges by inputs, factors. *Scored* are candidates of the
search, or states of AdaMerging; *seconds* those of finding the weights. Factors that DPPA's search
found before, and the observation of inputs, are not in them."""


def format_tables(group: Group) -> str:
    """Return all tables of a group."""
    spread = (
        f"means and standard deviations over {len(group.results)} training seeds"
        if len(group.results) > 1
        else "standard errors are those of the test items"
    )
    quantiles = ", means of their quantiles over seeds" if len(group.results) > 1 else ""
    dare = ("dare", "dare_linears")
    parts = [
        f"# {group.title}",
        f"Domain-Ratios on test items in percent; {spread}. In brackets: the paper.",
        "## Table 1: one model pruned",
        tabulate_single_models(group, (10, 80, 90), ("magnitude", "owl", *dare, "dppa")),
        "## Table 2: magnitude, OWL and DP",
        tabulate_single_models(group, (90,), ("magnitude", "owl", "dp")),
        "## Table 3: DARE with DPA",
        tabulate_single_models(group, (80, 90), (*dare, "dare_dpa", "dppa")),
        "## Where methods cross",
        "The noise of DARE's rescaling, as a share of the weights' deviation (delta's deviation "
        "times the root of rate / density), and what each method keeps.",
        tabulate_noise(group),
        "## Interference",
        "Of the deltas, unpruned and pruned by 80 and 90 %: what both of two models keep, of what "
        "either keeps, and the share of opposite signs in it. The mean angle between the leading "
        "inputs of two models, in degrees, and the cross-talk: what a delta does on the inputs of "
        "another model, relative to what that model's own delta does there.",
        tabulate_interference(group),
        "## Factors that the search found",
        _tabulate_factors(group),
    ]
    for number, domains in enumerate(group.merged_domains):
        parts += [
            f"## Table {5 if len(domains) > 2 else 6}: merges of {' + '.join(domains)}",
            *([MERGED_NOTE] if number == 0 else []),
            tabulate_merges(group, domains),
        ]
    parts += [
        "## Tables 4 and 8: the deltas",
        f"Of all linears{quantiles}, and their deviation relative to the weights'.",
        tabulate_offsets(group),
        "## Appendix A: scores of single tasks by pruning rate",
        tabulate_scores(group),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def tabulate_single_models(group: Group, rates: Sequence[int], methods: Sequence[str]) -> str:
    """Return the Domain-Ratios of single pruned models by domain, rate and method."""
    rows = []
    for domain in group.domains:
        for rate in rates:
            cells = []
            for method in methods:
                name = f"{method}_{rate}"
                section = "amplified" if method in ("dppa", "dare_dpa") else "pruned"
                printed = PRUNED.get(domain, {}).get(name)
                cells.append(group.domain_ratios(section, name, domain).to_cell(printed))
            if any(cells):
                rows.append([domain, f"{rate} %", *cells])
    return table(["domain", "pruned by", *(LABELS[method] for method in methods)], rows, names=2)


def tabulate_noise(group: Group) -> str:
    """Return the noise of DARE's rescaling beside the Domain-Ratios at rates of 80 % and above."""
    rows = []
    methods = ("magnitude", "owl", "dp", "dare_linears", "dare")
    for domain in group.domains:
        relative = mean(
            results["offsets"][domain]["relative"] for results in group.results.values()
        )
        for rate in group.rates:
            if rate >= 80:
                ratios = [
                    group.domain_ratios("pruned", f"{method}_{rate}", domain).to_cell()
                    for method in methods
                ]
                noise = noise_of(relative, to_density(rate))
                rows.append([domain, f"{rate} %", f"{noise:.2f}", *ratios])
    head = [LABELS[method] for method in methods]
    return table(["domain", "pruned by", "noise", *head], rows, names=2)


def tabulate_interference(group: Group) -> str:
    """Return how far the models of every set of domains disturb each other."""
    rows = []
    for domains in group.merged_domains:
        found = [results["interference"]["_".join(domains)] for results in group.results.values()]
        for rate in ("unpruned", "80", "90"):
            cells = [
                Sample([100 * each[kind][rate] for each in found], [0.0]).to_cell()
                for kind in ("shared", "conflict")
            ]
            measured = rate == "unpruned" and "angle" in found[0]
            angle, crosstalk = (
                f"{mean(each[kind] for each in found):.{decimals}f}" if measured else ""
                for kind, decimals in (("angle", 0), ("crosstalk", 2))
            )
            pruned = rate if rate == "unpruned" else f"{rate} %"
            rows.append([" + ".join(domains), pruned, *cells, angle, crosstalk])
    head = ["merge", "pruned by", "shared, %", "opposite, %", "angle", "cross-talk"]
    return table(head, rows, names=2)


def _tabulate_factors(group: Group) -> str:
    rows = []
    for name in group.first["factors"]:
        method, _, rate = name.rpartition("_")
        for domain in group.domains:
            searches = [results["factors"][name][domain] for results in group.results.values()]
            by_subject = [found["factors"] for found in searches]
            texts = [
                f"{partition.removeprefix('amplify_')}: "
                + ", ".join(f"{factors.get(partition, 1.0):.2f}" for factors in by_subject)
                for partition in by_subject[0]
            ]
            costs = [
                f"{mean(found[cost] for found in searches):.0f}"
                for cost in ("candidates", "seconds")
            ]
            rows.append([domain, f"{rate} %", LABELS[method], "; ".join(texts), *costs])
    head = ["domain", "pruned by", "method", "partition: factors", "candidates", "seconds"]
    return table(head, rows, names=4)


def tabulate_merges(group: Group, domains: tuple[str, ...]) -> str:
    """Return the Domain-Ratios of all merges of some domains, and their scores on the guard."""
    section = "_".join(domains)
    merges = group.first["merged"][section]
    rows = []
    for name in merges:
        if name == "dense":
            continue
        method, rate, way = (name, "", "") if name == "base" else name.rsplit("_", maxsplit=2)
        in_paper = f"{'dare' if method == 'dare_dpa' else method}_{rate}"
        printed = MERGED.get(domains, {}).get(in_paper, {})
        ratios = [
            group.domain_ratios(section, name, domain).to_cell(printed.get(domain))
            for domain in domains
        ]
        rows.append(
            [
                _name_merge(method, rate),
                f"{rate} %" if rate != "0" and rate else "",
                WAYS.get(way, ""),
                *ratios,
                _mean_ratios(group, section, name).to_cell(),
                *_guard_cells(group, section, name),
                *_cost_cells(group, section, name),
            ]
        )
    guard = [task.removesuffix("_test") for task in _guard_tasks(merges)]
    head = ["merge", "pruned by", "weights by", *domains, "mean", *guard, "scored", "seconds"]
    return table(head, rows, names=3)


def _name_merge(method: str, rate: str) -> str:
    """Return the name of a method among merges, where factors of `dare_dpa` are not searched."""
    if rate == "0":
        return LABELS["task_arithmetic"]
    return LABELS["dare_linears" if method == "dare_dpa" else method]


def _cost_cells(group: Group, section: str, name: str) -> list[str]:
    """What was scored to find the weights of a merge, and how long that took; means."""
    merges = [results["merged"][section][name] for results in group.results.values()]
    if "seconds" not in merges[0]:
        return ["", ""]
    return [f"{mean(merge[cost] for merge in merges):.0f}" for cost in ("candidates", "seconds")]


def _mean_ratios(group: Group, section: str, name: str) -> Sample:
    """The mean Domain-Ratio over domains of a merge, as `evaluate` gives it for each subject."""
    ratios = [results["merged"][section][name]["mean_ratio"] for results in group.results.values()]
    return Sample([ratio["value"] for ratio in ratios], [ratio["error"] for ratio in ratios])


def _guard_tasks(merges: Mapping[str, Any]) -> list[str]:
    """The tasks that belong to no domain."""
    return [task for task in merges["base"]["scores"] if task not in merges["dense"]]


def _guard_cells(group: Group, section: str, name: str) -> list[str]:
    """The scores on the guard's tasks in percent."""
    by_subject = [results["merged"][section] for results in group.results.values()]
    cells = []
    for task in _guard_tasks(by_subject[0]):
        scores = [merges[name]["scores"][task] for merges in by_subject]
        values = [100 * score["value"] for score in scores]
        errors = [100 * (score["error"] or 0.0) for score in scores]
        cells.append(Sample(values, errors).to_cell())
    return cells


def tabulate_offsets(group: Group) -> str:
    """Return the quantiles of every model's deltas, beside the paper's."""
    rows = []
    for domain in group.domains:
        by_subject = [results["offsets"][domain] for results in group.results.values()]
        quantiles = [
            [offsets["minimum"], *offsets["deciles"], offsets["maximum"]] for offsets in by_subject
        ]
        means = [mean(column) for column in zip(*quantiles, strict=True)]
        relative = mean(offsets["relative"] for offsets in by_subject)
        rows.append([domain, *(f"{value:.4f}" for value in means), f"{relative:.3f}"])
        if domain in OFFSETS:
            rows.append([f"{domain} (paper)", *(f"{value:.4f}" for value in OFFSETS[domain]), ""])
    deciles = [f"{percent} %" for percent in range(10, 100, 10)]
    return table(["model", "min", *deciles, "max", "relative"], rows)


def tabulate_scores(group: Group) -> str:
    """Return the scores of every task by pruning rate and method, means over the subjects."""
    rows = []
    for domain in group.domains:
        by_subject = [results["pruned"][domain] for results in group.results.values()]
        for task in group.first["pruned"][domain]["dense"]:
            unpruned = mean(100 * models["dense"][task]["value"] for models in by_subject)
            for rate in group.rates:
                cells = [
                    mean(
                        100 * models[f"{method}_{rate}"]["scores"][task]["value"]
                        for models in by_subject
                    )
                    for method in LADDER
                ]
                head = [task.removesuffix("_test"), f"{rate} %"]
                rows.append([*head, *(f"{cell:.1f}" for cell in cells), f"{unpruned:.1f}"])
    head = ["task", "pruned by", *(LABELS[method] for method in LADDER), "not pruned"]
    return table(head, rows, names=2)
