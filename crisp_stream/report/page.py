"""One self-contained HTML page about a dataset, tasks' histograms, training runs and judged models, without network.

It begins with the verdict in words and its figures; the map comes after them. The map is drawn by a small script on a
canvas, because 262,144 rectangles are too many for SVG, and a plotting library weighs more than the data. Everything
else is plain HTML and SVG, there without the script. A content security policy in the page forbids all requests and any
other script, so corpus text could do no harm even if it were not escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from crisp_stream.histograms.component import check_tree
from crisp_stream.inspection.summary import dataset_facts
from crisp_stream.inspection.terms import purity_note
from crisp_stream.report.colours import BASE, Colours, assign_colours
from crisp_stream.report.elements import definitions, section
from crisp_stream.report.evaluation import Evaluation, evaluation_section, score_section
from crisp_stream.report.forecast import forecast_section
from crisp_stream.report.heaviest import heaviest_section, largest_share
from crisp_stream.report.map import (
    MapLevel,
    TaskShares,
    Tree,
    coarser,
    gather_terms,
    levels_of,
    map_payload,
    task_shares,
    visible,
)
from crisp_stream.report.runs import TrainingRun, run_section, served_shares
from crisp_stream.report.scores import ScoreLayer, score_layers
from crisp_stream.report.tasks import histogram_section, specificity_section, transfer, transfer_section
from crisp_stream.report.verdict import verdict_section
from crisp_stream.results.curves import run_identity

if TYPE_CHECKING:
    from crisp_stream.forecast.result import Forecast
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.histogram import Histogram
    from crisp_stream.histograms.window_scores import WindowScores

_SCRIPTS = ("treemap.js", "page.js")


def write_page(path: str | Path, html: str) -> Path:
    """Write the page, replacing an older one only when it is complete. Returns its path."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(html, encoding="utf-8", errors="replace")
    temporary.replace(target)
    return target


def page_html(
    dataset: Dataset,
    histograms: Mapping[str, Histogram],
    runs: Sequence[TrainingRun] = (),
    *,
    forecasts: Mapping[str, Forecast | str] | None = None,
    evaluation: Evaluation | None = None,
    scores: Mapping[str, WindowScores] | None = None,
    max_windows: int = 50_000,
    log: Callable[[str], None] = lambda line: None,
) -> str:
    """Make the page as text.

    Args:
        dataset: the opened dataset.
        histograms: name to histogram, of the dataset's tree, of any levels.
        runs: from `read_run`.
        forecasts: name of a histogram to the forecast of a run of it, or to the reason why there is none.
        evaluation: results of judged models.
        scores: name to scores of the dataset's windows, by whose means the map can be coloured.
        max_windows: about how many windows are read per level for terms and sample text.
        log: takes a line of progress.

    Raises:
        InputError: a histogram of another tree, scores of another dataset, or results without the baseline.
    """
    for name, histogram in histograms.items():
        check_tree(histogram, dataset, what=name)
    manifest = dataset.manifest
    evaluation = evaluation and evaluation.led_by(list(histograms))
    levels = levels_of(dataset)
    tasks = [task_shares(name, histogram, levels) for name, histogram in histograms.items()]
    served = [served_shares(run, levels, manifest.depth, manifest.arity) for run in runs]
    layers = [*tasks, *(shares for shares in served if shares is not None)]
    scored = score_layers(scores or {}, dataset, levels)
    colours = _colours(list(histograms), runs, evaluation)
    of_layers = [colours.tasks[task.name] for task in tasks]
    of_layers += [colours.of_run(run.key) for run, shares in zip(runs, served, strict=True) if shares is not None]
    log(f"terms and text of {sum(len(level.nodes) for level in levels):,} nodes")
    terms = gather_terms(dataset, levels, layers, max_windows=max_windows)
    log(f"{sum(one.num_windows_read for one in terms):,} windows read; the terms of other levels are stored")
    tree = Tree(arity=manifest.arity, levels=levels, terms=terms)
    scale = largest_share([*tasks, *(coarser(shares, 1, tree) for shares in served if shares is not None)], tree)
    parts = {
        "verdict": ("Verdict", verdict_section(evaluation) if runs or evaluation else ""),
        "scores": ("Scores", score_section(evaluation, colours) if evaluation else ""),
        "heaviest": ("Where the task lives", heaviest_section(tasks, tree, colours, scale) if tasks else ""),
        "runs": ("Training runs", run_section(runs, served, tree, colours, scale) if runs else ""),
        "map": ("Map", _map_section(layers, of_layers, scored, _purity_notes(dataset, levels))),
        "histograms": ("Histograms", histogram_section(histograms, tasks, tree, colours, scale) if tasks else ""),
        "specificity": ("Specificity", specificity_section(tasks, tree, colours) if tasks else ""),
        "transfer": ("Transfer", transfer_section(transfer(tasks, tree)) if len(tasks) > 1 else ""),
        "evaluation": ("Evaluation", evaluation_section(evaluation, colours) if evaluation else ""),
        "forecast": ("Forecast", forecast_section(forecasts, tree, colours) if forecasts else ""),
        "dataset": ("Dataset", _dataset_section(dataset, tree)),
    }
    sections = {key: part for key, part in parts.items() if part[1]}
    payload = map_payload(tree, layers, of_layers, scores=[(one.header, one.means) for one in scored])
    name = visible(dataset.root.rstrip("/").rpartition("/")[2]) or "the dataset"
    return _document(name, _summary(dataset, len(tasks), len(runs)), sections, payload)


def _colours(tasks: Sequence[str], runs: Sequence[TrainingRun], evaluation: Evaluation | None) -> Colours:
    """Colours of tasks, runs and judged models; a model has that of its run."""
    keys = [(run.key, run.histograms) for run in runs]
    for results in evaluation.results if evaluation else []:
        keys.append((run_identity(results), results.model.get("histograms") or []))
    return assign_colours(tasks, keys)


def _document(name: str, summary: str, sections: Mapping[str, tuple[str, str]], payload: str) -> str:
    script = "\n".join(_asset(file) for file in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items() if key != "verdict")
    contents = f'<nav class="contents" aria-label="Contents">{links}</nav>'
    verdict = sections["verdict"][1] if "verdict" in sections else ""
    body = "\n".join(html for key, (_, html) in sections.items() if key != "verdict")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>Report on {escape(name)}</title>
<style>
{_asset("page.css")}</style>
</head>
<body>
<main>
<header>
<h1>Report on <bdi>{escape(name)}</bdi></h1>
<p class="summary">{summary}</p>
</header>
{verdict}
{contents}
{body}
</main>
<script type="application/octet-stream" id="payload">{payload}</script>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return resources.files("crisp_stream.report").joinpath(name).read_text(encoding="utf-8")


def _summary(dataset: Dataset, num_tasks: int, num_runs: int) -> str:
    manifest = dataset.manifest
    parts = [
        f"{manifest.num_windows:,} windows of {manifest.window_tokens:,} tokens in {manifest.num_leaves:,} clusters",
        *([f"{num_tasks} histogram{'s' * (num_tasks > 1)}"] if num_tasks else []),
        *([f"{num_runs} run{'s' * (num_runs > 1)}"] if num_runs else []),
    ]
    return ", ".join(parts) + "."


def _purity_notes(dataset: Dataset, levels: Sequence[MapLevel]) -> str:
    """A note for each level whose clusters are of style as much as of topic."""
    notes = ((level.level, purity_note(dataset, level.level)) for level in levels)
    return "".join(f'<p class="note">Level {level}: {escape(note)}</p>\n' for level, note in notes if note)


def _map_section(layers: Sequence[TaskShares], colours: Sequence[str], scores: Sequence[ScoreLayer], notes: str) -> str:
    """The frame that the script fills. `layers`: tasks, and what runs were served; the map is coloured by them, or by
    scores."""
    names = [*(visible(layer.name) for layer in layers), *(f"{visible(score.name)} (score)" for score in scores)]
    options = "".join(f'<option value="{number}">{escape(name)}</option>' for number, name in enumerate(names))
    chooser = (
        f'<label><span id="chosen" class="dot {colours[0] if layers else BASE}" aria-hidden="true"></span>Colour by '
        f'<select id="task">{options}</select></label>\n'
        '<button type="button" id="heaviest-cluster">Go to its heaviest cluster</button>'
        if names
        else ""
    )
    by_score = "by a score, blue where its mean is below that of all windows, and orange where it is above"
    about = (
        "coloured by w: how much more often the chosen task falls in it than the corpus does. The map opens at the "
        "heaviest cluster of the first task; <i>All clusters</i> leads to the whole"
        if layers
        else "without histograms and scores there is nothing to colour by"
    )
    if scores:
        about = f"{about}; or {by_score}" if layers else f"coloured {by_score}"
    body = f"""<p class="note">A rectangle is a cluster, sized by its windows, {about}. Point at it to see what it is
about, press it to go inside. With the keyboard: arrows move, Enter goes in, Escape goes out, Home leads to the
whole.</p>
{notes}<noscript><p class="warning">The map needs JavaScript; the rest of the page does not.</p></noscript>
<p class="warning" id="trouble" role="alert" hidden></p>
<div class="controls">{chooser}
<label class="search">Search <input id="search" type="search" placeholder="word or path"
title="words of terms or text, or a path such as 37/5"
autocomplete="off" spellcheck="false"></label>
<div class="scale" id="scale" role="img"
aria-label="Colours: importance weight from at most 1/32 to at least 32"></div></div>
<div id="results" class="results" hidden><p id="found" aria-live="polite"></p><ol id="hits"></ol></div>
<nav id="breadcrumb" class="breadcrumb" aria-label="Place in the tree"></nav>
<div class="stage">
<div class="frame"><canvas id="treemap" tabindex="0" role="application" aria-roledescription="map of clusters"
aria-label="Clusters of the corpus" aria-describedby="announced"></canvas></div>
<aside id="panel" class="panel" aria-label="Cluster"></aside>
</div>
<p id="announced" class="unseen" aria-live="polite"></p>"""
    return section("map", "The tree as a map", body)


def _dataset_section(dataset: Dataset, tree: Tree) -> str:
    windows_read = sum(one.num_windows_read for one in tree.terms)
    facts = {
        "root": dataset.root,
        **dataset_facts(dataset),
        "read for this page": f"{windows_read:,} windows" if windows_read else "none; terms and text are stored",
    }
    note = ""
    if tree.levels[-1].level < dataset.manifest.depth:
        note = (
            f'<p class="note">The map ends at level {tree.levels[-1].level}; the tree has {dataset.manifest.depth}.</p>'
        )
    return section(
        "dataset",
        "The dataset",
        f"""{note}
{definitions(facts)}
<p class="note">Terms are class TF-IDF: frequency in the cluster times log(1 + mean words per cluster / frequency over
all clusters), from a sample of windows. The text is the beginning of that window, of those read, which holds most of
the cluster's terms.</p>""",
    )
