"""What was measured as the paper's tables and figures, its own numbers beside.

In:  the results of subjects, in groups: seeds of one training, or each setting of it.
Out: `results.json`, `tables.md` and `figures/` in a folder.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reported import MERGED, OFFSETS, PRUNED, appendix_a

from dppa_mergekit.report.markdown_tables import table
from dppa_mergekit.report.plot_style import PANEL, color_of

LABELS = {
    "magnitude": "Magnitude",
    "owl": "OWL",
    "dp": "DP",
    "dare": "DARE",
    "dare_linears": "DARE, linears alone",
    "dare_dpa": "DARE + DPA",
    "dppa": "DPPA",
    "dare_linear": "`dare_linear`",
    "ties": "TIES, summed",
    "task_arithmetic": "task arithmetic",
    "base": "base",
}
WAYS = {"adamerge": "AdaMerging", "search": "search", "shared": "search of one"}
LADDER = ("magnitude", "owl", "dp", "dare", "dare_linears")
"""Methods of Appendix A, and DARE on what the others prune."""

KEPT = (90, 50, 20, 10, 5, 2)
"""Shares of the deltas, in percent, that are marked on the ladder's axis."""

Found = Mapping[str, Any]
"""What was measured of one subject, as in its `results.json`."""


@dataclass(frozen=True)
class Group:
    """Subjects whose numbers are averaged.

    Attributes:
        title: Of its part of the report.
        found: Subject -> its results.
    """

    title: str
    found: Mapping[str, Found]

    @property
    def slug(self) -> str:
        """The title as part of a file's name."""
        return self.title.lower().replace(" ", "_")

    @property
    def domains(self) -> list[str]:
        """In order."""
        return list(next(iter(self.found.values()))["pruned"])


def write_report(folder: Path, groups: Sequence[Group]) -> None:
    """Write results, tables and figures of all groups; subjects lie in folders of their names."""
    results = {
        group.title: {"subjects": dict(group.found), "means": means(group)} for group in groups
    }
    text = json.dumps(results, indent=1) + "\n"
    (folder / "results.json").write_text(text, encoding="utf-8")
    figures = folder / "figures"
    figures.mkdir(exist_ok=True)
    parts = []
    for group in groups:
        first = folder / next(iter(group.found)) / "analysis"
        for name in ("density", "structure", "offsets"):
            shutil.copy(first / f"{name}.png", figures / f"{group.slug}_{name}.png")
        draw_ladder(group, figures / f"{group.slug}_ladder.png")
        if any("_at_" in name for name in _names(group, "amplified")):
            draw_factors(group, figures / f"{group.slug}_factors.png")
        parts.append(tables(group))
    (folder / "tables.md").write_text("\n".join(parts), encoding="utf-8")


def means(group: Group) -> dict[str, dict[str, dict[str, dict[str, float | None]]]]:
    """Place -> recipe -> domain -> mean Domain-Ratio and standard deviation over the subjects."""
    first = next(iter(group.found.values()))
    places = [(place, [domain]) for place in ("pruned", "amplified") for domain in group.domains]
    places += [("_".join(domains), list(domains)) for domains in _sets(group)]
    found: dict[str, dict[str, dict[str, dict[str, float | None]]]] = {}
    for place, domains in places:
        models = first[place][domains[0]] if place in first else first["merged"][place]
        for name in models:
            if name == "dense":
                continue
            of_name = found.setdefault(place, {}).setdefault(name, {})
            for domain in domains:
                values, _ = _ratio(group, place, name, domain)
                deviation = stdev(values) if len(values) > 1 else None
                of_name[domain] = {"mean": mean(values), "deviation": deviation}
    return found


def tables(group: Group) -> str:
    """All tables of a group in Markdown."""
    spread = (
        f"means and standard deviations over {len(group.found)} training seeds"
        if len(group.found) > 1
        else "standard errors are those of the test items"
    )
    quantiles = ", means of their quantiles over seeds" if len(group.found) > 1 else ""
    merged = [
        f"Merges of {' + '.join(domains)} ({'Table 5' if len(domains) > 2 else 'Table 6'}); DARE "
        "prunes linears alone here, beside the paper's numbers; AdaMerging does not know "
        "mergekit's `dare_linear`, which prunes every tensor. DP at 0 % is task arithmetic.\n\n"
        f"{_merged(group, domains)}"
        for domains in _sets(group)
    ]
    parts = [
        f"## {group.title}",
        f"Domain-Ratios on test items in percent; {spread}. In brackets: the paper.",
        "One model pruned (Table 1).",
        _single(group, (10, 80, 90), ("magnitude", "owl", "dare", "dare_linears", "dppa")),
        "Magnitude, OWL and DP (Table 2).",
        _single(group, (90,), ("magnitude", "owl", "dp")),
        "Where methods cross: the noise of DARE's rescaling, as a share of the weights' deviation "
        "(delta's deviation times the root of rate / density), and what each method keeps.",
        _crossing(group),
        "DARE with DPA (Table 3).",
        _single(group, (80, 90), ("dare", "dare_linears", "dare_dpa", "dppa")),
        "Factors that the search found.",
        _factors(group),
        *merged,
        f"Deltas of all linears{quantiles} (Tables 4 and 8), and their deviation relative to the "
        "weights'.",
        _offsets(group),
        "Scores of single tasks by pruning rate (Appendix A).",
        _scores(group),
    ]
    if {20, 30, 40} <= set(_rates(group)):
        parts += ["The paper's, of LLaMA-2-7B's fine-tuned models.", _printed_scores()]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _names(group: Group, place: str) -> list[str]:
    """Names of recipes of one model: those of `pruned` or `amplified`."""
    return list(next(iter(group.found.values()))[place][group.domains[0]])


def _rates(group: Group) -> list[int]:
    """Pruning rates of models without factors."""
    ends = {name.rpartition("_")[2] for name in _names(group, "pruned")}
    return sorted(int(end) for end in ends if end.isdecimal())


def _sets(group: Group) -> list[tuple[str, ...]]:
    """Domains that were merged."""
    found = next(iter(group.found.values()))["merged"]
    return [tuple(name.split("_")) for name in found]


def _ratio(group: Group, place: str, name: str, domain: str) -> tuple[list[float], list[float]]:
    """Domain-Ratios of all subjects, and their standard errors; empty where not measured.

    Args:
        group: Of the subjects.
        place: `pruned`, `amplified`, or domains merged.
        name: Of the recipe.
        domain: By whose tasks.
    """
    values, errors = [], []
    for found in group.found.values():
        models = found[place][domain] if place in found else found["merged"][place]
        if name in models:
            ratio = models[name]["domain_ratios"][domain]
            values.append(ratio["value"])
            errors.append(ratio["error"])
    return values, errors


def _cell(measured: tuple[list[float], list[float]], printed: float | None = None) -> str:
    values, _ = measured
    if not values:
        return ""
    spread = _spread(measured)
    beside = "" if printed is None else f" ({printed:.2f})"
    return f"{mean(values):.1f} ± {spread:.1f}{beside}"


def _spread(measured: tuple[list[float], list[float]]) -> float:
    """The standard deviation over the subjects, or the error of the only one."""
    values, errors = measured
    return stdev(values) if len(values) > 1 else errors[0]


def _single(group: Group, rates: Sequence[int], methods: Sequence[str]) -> str:
    rows = []
    for domain in group.domains:
        for rate in rates:
            cells = []
            for method in methods:
                name = f"{method}_{rate}"
                place = "amplified" if method in ("dppa", "dare_dpa") else "pruned"
                printed = PRUNED.get(domain, {}).get(name)
                cells.append(_cell(_ratio(group, place, name, domain), printed))
            if any(cells):
                rows.append([domain, f"{rate} %", *cells])
    return table(["domain", "pruned by", *(LABELS[each] for each in methods)], rows, names=2)


def _crossing(group: Group) -> str:
    rows = []
    methods = ("magnitude", "dp", "dare_linears", "dare")
    for domain in group.domains:
        relative = mean(found["offsets"][domain]["relative"] for found in group.found.values())
        for rate in _rates(group):
            if rate >= 80:
                ratios = [
                    _cell(_ratio(group, "pruned", f"{name}_{rate}", domain)) for name in methods
                ]
                noise = relative * (rate / (100 - rate)) ** 0.5
                rows.append([domain, f"{rate} %", f"{noise:.2f}", *ratios])
    head = [LABELS[method] for method in methods]
    return table(["domain", "pruned by", "noise", *head], rows, names=2)


def _factors(group: Group) -> str:
    rows = []
    for name in next(iter(group.found.values()))["factors"]:
        method, _, rate = name.rpartition("_")
        for domain in group.domains:
            factors = [found["factors"][name][domain] for found in group.found.values()]
            texts = [
                f"{partition.removeprefix('amplify_')}: "
                + ", ".join(f"{each.get(partition, 1.0):.2f}" for each in factors)
                for partition in factors[0]
            ]
            rows.append([domain, f"{rate} %", LABELS[method], "; ".join(texts)])
    return table(["domain", "pruned by", "method", "partition: factors"], rows, names=4)


def _merged(group: Group, domains: tuple[str, ...]) -> str:
    place = "_".join(domains)
    found = next(iter(group.found.values()))["merged"][place]
    rows = []
    for name in found:
        if name == "dense":
            continue
        label, _, way = name.rpartition("_") if name != "base" else ("base", "", "")
        method, _, rate = label.rpartition("_")
        pruned = rate.isdecimal()
        printed = MERGED.get(domains, {}).get(label, {})
        rows.append(
            [
                LABELS[method if pruned else label],
                f"{rate} %" if pruned else "",
                WAYS.get(way, ""),
                *(_cell(_ratio(group, place, name, each), printed.get(each)) for each in domains),
                _cell(_over_domains(group, place, name)),
                *_guard(group, place, name),
            ]
        )
    guard = [task.removesuffix("_test") for task in _guard_tasks(found)]
    return table(["merge", "pruned by", "weights by", *domains, "mean", *guard], rows, names=3)


def _over_domains(group: Group, place: str, name: str) -> tuple[list[float], list[float]]:
    """Every subject's mean Domain-Ratio of a merge, and its standard error, as evaluated."""
    ratios = [found["merged"][place][name]["mean_ratio"] for found in group.found.values()]
    return [each["value"] for each in ratios], [each["error"] for each in ratios]


def _guard_tasks(models: Mapping[str, Any]) -> list[str]:
    """Tasks of no domain."""
    return [task for task in models["base"]["scores"] if task not in models["dense"]]


def _guard(group: Group, place: str, name: str) -> list[str]:
    """Scores on the guard's tasks in percent."""
    every = [found["merged"][place] for found in group.found.values()]
    cells = []
    for task in _guard_tasks(every[0]):
        scores = [models[name]["scores"][task] for models in every]
        values = [100 * each["value"] for each in scores]
        cells.append(_cell((values, [100 * (each["error"] or 0.0) for each in scores])))
    return cells


def _offsets(group: Group) -> str:
    rows = []
    for domain in group.domains:
        every = [found["offsets"][domain] for found in group.found.values()]
        quantiles = [[each["minimum"], *each["deciles"], each["maximum"]] for each in every]
        means = [mean(column) for column in zip(*quantiles, strict=True)]
        relative = mean(each["relative"] for each in every)
        rows.append([domain, *(f"{value:.4f}" for value in means), f"{relative:.3f}"])
        rows.append([f"{domain} (paper)", *(f"{value:.4f}" for value in OFFSETS[domain]), ""])
    deciles = [f"{each} %" for each in range(10, 100, 10)]
    return table(["model", "min", *deciles, "max", "relative"], rows)


def _scores(group: Group) -> str:
    first = next(iter(group.found.values()))["pruned"]
    rows = []
    for domain in group.domains:
        every = [found["pruned"][domain] for found in group.found.values()]
        for task in first[domain]["dense"]:
            dense = mean(100 * models["dense"][task]["value"] for models in every)
            for rate in _rates(group):
                cells = [
                    mean(
                        100 * models[f"{method}_{rate}"]["scores"][task]["value"]
                        for models in every
                    )
                    for method in LADDER
                ]
                head = [task.removesuffix("_test"), f"{rate} %"]
                rows.append([*head, *(f"{cell:.1f}" for cell in cells), f"{dense:.1f}"])
    head = ["task", "pruned by", *(LABELS[method] for method in LADDER), "not pruned"]
    return table(head, rows, names=2)


def _printed_scores() -> str:
    rows = [[task, f"{rate} %", *scores] for task, rate, *scores in appendix_a()]
    head = [LABELS[method] for method in ("magnitude", "owl", "dp", "dare")]
    return table(["task", "pruned by", *head], rows, names=2)


def draw_ladder(group: Group, path: Path) -> None:
    """Write a PNG: Domain-Ratio against what is kept, for each method (Appendix A)."""
    curves = [
        (LABELS[method], {100.0 - rate: (place, f"{method}_{rate}") for rate in _rates(group)})
        for place, methods in (("pruned", LADDER), ("amplified", ("dare_dpa", "dppa")))
        for method in methods
    ]
    _draw(group, path, "kept, %", curves, halving=True)


def draw_factors(group: Group, path: Path) -> None:
    """Write a PNG: Domain-Ratio against the factor of the 90 partition (Fig. 2); 1 is DP."""
    curves = []
    for rate, beside in ((90, " alone"), (80, ", the 80 partition at 1")):
        start = f"dppa_{rate}_at_"
        points = {
            float(name.removeprefix(start)): ("amplified", name)
            for name in _names(group, "amplified")
            if name.startswith(start)
        }
        ordered = sorted({1.0: ("pruned", f"dp_{rate}"), **points}.items())
        curves.append((f"pruned by {rate} %{beside}", dict(ordered)))
    _draw(group, path, "factor of the 90 partition", curves)


def _draw(
    group: Group,
    path: Path,
    below: str,
    curves: Sequence[tuple[str, Mapping[float, tuple[str, str]]]],
    halving: bool = False,
) -> None:
    """Write a PNG with a panel for each domain: means, and their spread.

    Args:
        group: Of the subjects.
        path: Of the PNG.
        below: What the horizontal axis shows.
        curves: Label, and where on that axis -> place (`pruned` or `amplified`) and recipe;
            those that were not measured are left out.
        halving: The axis falls, by halves.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    figure = Figure(figsize=(PANEL[0] * len(group.domains), PANEL[1]), layout="constrained")
    panels = figure.subplots(1, len(group.domains), squeeze=False, sharey=True)[0]
    for panel, domain in zip(panels, group.domains, strict=True):
        for number, (label, points) in enumerate(curves):
            measured = {
                where: _ratio(group, place, name, domain)
                for where, (place, name) in points.items()
                if name in _names(group, place)
            }
            panel.errorbar(
                list(measured),
                [mean(values) for values, _ in measured.values()],
                yerr=[_spread(each) for each in measured.values()],
                color=color_of(number),
                marker="o",
                markersize=3,
                linewidth=1,
                elinewidth=0.5,
                label=label,
            )
        if halving:
            panel.set_xscale("log")
            panel.invert_xaxis()
            panel.set_xticks(KEPT, [str(each) for each in KEPT])
            panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(domain)
        panel.set_xlabel(below)
    panels[0].set_ylabel("test Domain-Ratio, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.savefig(path, dpi=100)
