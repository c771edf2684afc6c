"""One self-contained HTML page about a dataset, tasks' histograms and training runs: no network, any browser of today.

The map is drawn by a script of our own on a canvas, because 262,144 rectangles are too many for SVG, and a plotting
library weighs more than the data. Everything else is plain HTML and SVG, there without the script. A content security
policy in the page forbids all requests and any other script, so corpus text could do no harm even if it were not
escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from crisp_stream.histograms.mixture import check_tree
from crisp_stream.report.evaluation import Evaluation, evaluation_section
from crisp_stream.report.forecast import forecast_section
from crisp_stream.report.map import TaskShares, gather_terms, levels_of, map_payload, task_shares, visible
from crisp_stream.report.runs import Run, run_section, served_shares
from crisp_stream.report.tasks import Tree, histogram_section, specificity_section, transfer, transfer_section

if TYPE_CHECKING:
    from crisp_stream.forecast.result import Forecast
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.histogram import Histogram

_SCRIPTS = ("treemap.js", "page.js")


def write_page(
    path: str | Path,
    dataset: Dataset,
    histograms: Mapping[str, Histogram],
    runs: Sequence[Run] = (),
    *,
    forecasts: Mapping[str, Forecast | str] | None = None,
    evaluation: Evaluation | None = None,
    max_windows: int = 50_000,
    log: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write the page, replacing an older one only when it is complete.

    Args:
        path: of the HTML file.
        dataset: the opened dataset.
        histograms: name to histogram, of the dataset's tree, of any levels.
        runs: from `read_run`.
        forecasts: name of a histogram to the forecast of a run of it, or to the reason why there is none.
        evaluation: results of judged models.
        max_windows: about how many windows are read per level for terms and sample text.
        log: takes a line of progress.

    Returns:
        The path written.

    Raises:
        InputError: a histogram of another tree, or results without the baseline.
    """
    html = page_html(
        dataset, histograms, runs, forecasts=forecasts, evaluation=evaluation, max_windows=max_windows, log=log
    )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(html, encoding="utf-8", errors="replace")
    temporary.replace(target)
    return target


def page_html(
    dataset: Dataset,
    histograms: Mapping[str, Histogram],
    runs: Sequence[Run] = (),
    *,
    forecasts: Mapping[str, Forecast | str] | None = None,
    evaluation: Evaluation | None = None,
    max_windows: int = 50_000,
    log: Callable[[str], None] = lambda line: None,
) -> str:
    """The page as text; arguments as of `write_page`."""
    for name, histogram in histograms.items():
        check_tree(histogram, dataset, what=name)
    manifest = dataset.manifest
    levels = levels_of(dataset)
    tasks = [task_shares(name, histogram, levels) for name, histogram in histograms.items()]
    served = [served_shares(run, levels, manifest.depth, manifest.arity) for run in runs]
    shown = [*tasks, *(task for task in served if task is not None)]
    log(f"reading windows for terms and text of {sum(len(level.nodes) for level in levels):,} nodes")
    terms = gather_terms(dataset, levels, shown, max_windows=max_windows)
    log(f"{sum(found.num_windows_read for found in terms):,} windows read")
    tree = Tree(arity=manifest.arity, levels=levels, terms=terms)
    sections = {"map": ("Map", _map_section(shown))}
    if tasks:
        sections["histograms"] = ("Histograms", histogram_section(histograms, tasks, tree))
        sections["specificity"] = ("Specificity", specificity_section(tasks, tree))
    if len(tasks) > 1:
        sections["transfer"] = ("Transfer", transfer_section(transfer(tasks, tree)))
    if forecasts:
        sections["forecast"] = ("Forecast", forecast_section(forecasts, tree))
    if runs:
        sections["runs"] = ("Runs", run_section(runs, served, tree))
    if evaluation is not None:
        sections["evaluation"] = ("Evaluation", evaluation_section(evaluation))
    sections["dataset"] = ("Dataset", _dataset_section(dataset, tree))
    payload = map_payload(levels, shown, terms, arity=manifest.arity)
    return _document(_name(dataset), _summary(dataset, len(tasks), len(runs)), sections, payload)


def _document(name: str, summary: str, sections: Mapping[str, tuple[str, str]], payload: str) -> str:
    script = "\n".join(_asset(file) for file in _SCRIPTS)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{key}">{title}</a>' for key, (title, _) in sections.items())
    body = "\n".join(html for _, html in sections.values())
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{escape(name)}: clusters and tasks</title>
<style>
{_asset("demo_page.css")}{_asset("page.css")}</style>
</head>
<body>
<main class="page">
<header>
<h1><bdi>{escape(name)}</bdi></h1>
<p class="verdict">{summary}</p>
<nav class="contents" aria-label="Contents">{links}</nav>
</header>
{body}
</main>
<script type="application/octet-stream" id="payload">{payload}</script>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return resources.files("crisp_stream.report").joinpath(name).read_text(encoding="utf-8")


def _name(dataset: Dataset) -> str:
    return visible(dataset.root.rstrip("/").rpartition("/")[2]) or "Dataset"


def _summary(dataset: Dataset, num_tasks: int, num_runs: int) -> str:
    manifest = dataset.manifest
    parts = [
        f"{manifest.num_windows:,} windows of {manifest.window_tokens:,} tokens in {manifest.num_leaves:,} clusters",
        *([f"{num_tasks} histogram{'s' * (num_tasks > 1)}"] if num_tasks else []),
        *([f"{num_runs} run{'s' * (num_runs > 1)}"] if num_runs else []),
    ]
    return ", ".join(parts) + "."


def _map_section(shown: Sequence[TaskShares]) -> str:
    """The frame that the script fills."""
    options = "".join(
        f'<option value="{number}">{escape(visible(task.name))}</option>' for number, task in enumerate(shown)
    )
    chooser = f'<label>Colour by <select id="task">{options}</select></label>' if shown else ""
    about = (
        "coloured by importance weight w(c): how much more often the task falls in it than the corpus does"
        if shown
        else "without histograms there is nothing to colour by"
    )
    return f"""<section aria-labelledby="map" class="explorer">
<h2 id="map">The tree as a map</h2>
<p class="note">A rectangle is a cluster, sized by its windows, {about}. Point at it to see what it is about, press it
to go inside. With the keyboard: arrows move, Enter goes in, Escape goes out.</p>
<noscript><p class="warning">The map needs JavaScript; the rest of the page does not.</p></noscript>
<p class="warning" id="trouble" role="alert" hidden></p>
<div class="controls">{chooser}
<label class="search">Search <input id="search" type="search" placeholder="term, text, or path such as 37/5"
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
<p id="announced" class="unseen" aria-live="polite"></p>
</section>"""


def _dataset_section(dataset: Dataset, tree: Tree) -> str:
    manifest = dataset.manifest
    kind = f"{manifest.token_dtype}, {manifest.packing}"
    facts = {
        "Root": dataset.root,
        "Windows": f"{manifest.num_windows:,} of {manifest.window_tokens:,} tokens ({kind})",
        "Tokens": f"{manifest.num_windows * manifest.window_tokens:,}",
        "Shards": f"{manifest.num_shards:,}",
        "Tree": f"arity {manifest.arity}, depth {manifest.depth}, {manifest.num_leaves:,} leaves with windows",
        "Encoder": manifest.encoder.name,
        "Vocabulary": f"{manifest.tokenizer.vocab_size:,} ids",
        **({"Generation": f"{manifest.generation}"} if manifest.generation else {}),
        "Fingerprint": manifest.fingerprint[:16],
        "Read for this page": f"{sum(found.num_windows_read for found in tree.terms):,} windows",
    }
    listed = "\n".join(
        f"<div><dt>{name}</dt><dd><bdi>{escape(visible(value))}</bdi></dd></div>" for name, value in facts.items()
    )
    note = ""
    if tree.levels[-1].level < manifest.depth:
        note = f'<p class="note">The map ends at level {tree.levels[-1].level}; the tree has {manifest.depth}.</p>'
    return f"""<section aria-labelledby="dataset">
<h2 id="dataset">The dataset</h2>
{note}
<dl>
{listed}
</dl>
<p class="note">Terms are class TF-IDF: frequency in the cluster times log(1 + mean words per cluster / frequency over
all clusters), from a sample of windows. The text is the beginning of that window, of those read, which holds most of
the cluster's terms.</p>
</section>"""
