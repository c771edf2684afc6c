"""One self-contained HTML page about a comparison of two runs: no network, no script, a few dozen kB.

Tables, bars in table cells and inline SVG, rather than a plotting library's page: that weighs 4 MB, needs a script to
show anything, and cannot be read aloud or printed. All text is escaped: sample text comes from a corpus.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path

import numpy as np

from crisp_stream.inspection.summary import NodeSummary
from crisp_stream.report.charts import Curve, line_chart, linear_axis, smoothed, thinned
from crisp_stream.table import format_bytes


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What one training run came to."""

    name: str
    """As the reader should call it: base, CRISP."""
    specialist_perplexity: float
    """On held-out documents of the task."""
    generalist_perplexity: float
    """On held-out documents of the corpus."""
    losses: Sequence[tuple[int, float]]
    """Training loss in nats per token after each batch: (batch, loss)."""
    num_tokens: int
    """Tokens trained on."""
    bytes_read: int
    """Read from the dataset."""
    mixture_error: float
    """Total variation between the proportions asked for and those served, in [0, 1]."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs on one dataset for one task: what the page and the printed table say."""

    task: str
    """Name of the task."""
    base: RunResult
    """Trained on the corpus as it is."""
    crisp: RunResult
    """Trained on the corpus with the task's cluster frequencies."""
    clusters: Sequence[NodeSummary]
    """The task's heaviest clusters, heaviest first."""
    facts: Mapping[str, str]
    """About dataset, task and runs: label and value."""

    @property
    def specialist_ratio(self) -> float:
        """Perplexity of CRISP over that of base on the task; below 1 is better."""
        return self.crisp.specialist_perplexity / self.base.specialist_perplexity

    @property
    def generalist_ratio(self) -> float:
        """Perplexity of CRISP over that of base on the corpus; above 1 is the price of specialising."""
        return self.crisp.generalist_perplexity / self.base.generalist_perplexity

    @property
    def verdict(self) -> str:
        """The outcome in a sentence, whichever it is."""
        change = abs(1 - self.specialist_ratio)
        if self.specialist_ratio >= 1:
            return f"CRISP did not beat base on {self.task}: its held-out perplexity is {change:.0%} higher."
        cost = self.generalist_ratio - 1
        price = f"and {cost:.0%} higher" if cost >= 0 else f"and {-cost:.0%} lower too"
        return f"CRISP's held-out perplexity is {change:.0%} lower than base's on {self.task}, {price} on the corpus."


def write_report(path: str | Path, comparison: Comparison) -> Path:
    """Write the page, replacing an older one only when it is complete.

    Returns:
        The path written.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(target.name + ".tmp")
    temporary.write_text(report_html(comparison), encoding="utf-8")
    temporary.replace(target)
    return target


def report_html(comparison: Comparison) -> str:
    """The page as text."""
    style = resources.files("crisp_stream.report").joinpath("demo_page.css").read_text(encoding="utf-8")
    title = f"CRISP and base on {comparison.task}"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>
{style}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
<p class="verdict">{escape(comparison.verdict)}</p>
</header>
{_perplexity_section(comparison)}
{_loss_section(comparison)}
{_cluster_section(comparison)}
{_reading_section(comparison)}
{_facts_section(comparison)}
</main>
</body>
</html>
"""


def _perplexity_section(comparison: Comparison) -> str:
    base, crisp = comparison.base, comparison.crisp
    most = max(run.specialist_perplexity for run in (base, crisp))
    most = max(most, *(run.generalist_perplexity for run in (base, crisp)))
    rows = [
        (comparison.task, base.specialist_perplexity, crisp.specialist_perplexity, comparison.specialist_ratio),
        ("corpus", base.generalist_perplexity, crisp.generalist_perplexity, comparison.generalist_ratio),
    ]
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>{_bar(first, most, "base")}{_bar(second, most, "crisp")}'
        f'<td class="number" data-label="CRISP : base">{ratio:.2f}</td></tr>'
        for name, first, second, ratio in rows
    )
    return f"""<section aria-labelledby="perplexity">
<h2 id="perplexity">Held-out perplexity</h2>
<table class="stack">
<caption>Perplexity of held-out documents, lower is better: mean over documents of the mean loss per token, then exp.
Both runs saw the same number of tokens.</caption>
<thead><tr><th scope="col">Text</th><th scope="col">{escape(base.name)}</th><th scope="col">{escape(crisp.name)}</th>
<th scope="col" class="number">{escape(crisp.name)} : {escape(base.name)}</th></tr></thead>
<tbody>
{body}
</tbody>
</table>
</section>"""


def _bar(value: float, most: float, run: str) -> str:
    label = {"base": "base", "crisp": "CRISP"}[run]
    width = 100 * value / most if most else 0
    return (
        f'<td class="bar" data-label="{label}"><span class="value">{value:,.1f}</span>'
        f'<span class="track"><span class="fill {run}" style="width:{width:.1f}%"></span></span></td>'
    )


def _loss_section(comparison: Comparison) -> str:
    runs = [(comparison.base, "base"), (comparison.crisp, "crisp")]
    if any(len(run.losses) < 2 for run, _ in runs):
        return ""
    legend = " ".join(
        f'<span class="key"><span class="swatch {kind}"></span>{escape(run.name)}</span>' for run, kind in runs
    )
    ends = ", ".join(f"{run.name} {smoothed(run.losses)[-1][1]:.2f}" for run, _ in runs)
    wide = _loss_chart(runs, width=720, height=300, described=f"Training loss by batch; at the end: {ends}.")
    narrow = _loss_chart(runs, width=360, height=260, described="")
    return f"""<section aria-labelledby="loss">
<h2 id="loss">Training loss</h2>
<figure>
<figcaption>Loss on each run's own mixture, in nats per token, averaged over neighbouring batches; faint: every batch.
CRISP's mixture is the narrower one, so the curves do not say which run is better: the table above does.</figcaption>
<p class="legend">{legend}</p>
{wide}
{narrow}
</figure>
</section>"""


def _loss_chart(runs: Sequence[tuple[RunResult, str]], *, width: int, height: int, described: str) -> str:
    losses = [(np.asarray(run.losses, np.float64), kind) for run, kind in runs]
    curves = [Curve(points=thinned(raw), kind=f"raw {kind}") for raw, kind in losses]
    curves += [Curve(points=thinned(smoothed(raw)), kind=f"curve {kind}") for raw, kind in losses]
    every = np.concatenate([raw for raw, _ in losses])
    x = linear_axis([0.0, every[:, 0].max()], count=4 if width < 500 else 8, label="batch")
    y = linear_axis(every[:, 1], count=5, margin=0.04)
    return line_chart(curves, x, y, width=width, height=height, described=described)


def _cluster_section(comparison: Comparison) -> str:
    rows = "\n".join(
        f'<tr><th scope="row" class="number" data-label="cluster">{row.node}</th>'
        f'<td class="number" data-label="of the task">{row.share:.1%}</td>'
        f'<td class="number" data-label="of the corpus">{row.generalist_share:.1%}</td>'
        f'<td class="number" data-label="weight">{row.weight:.1f}</td>'
        f'<td class="sample"><q>{escape(row.text)}</q></td></tr>'
        for row in comparison.clusters
    )
    return f"""<section aria-labelledby="clusters">
<h2 id="clusters">Where the task lives</h2>
<table class="stack">
<caption>The task's heaviest clusters. Importance weight w(c) = share of the task / share of the corpus: how much more
often CRISP draws the cluster than base does. The text is the beginning of one window of the corpus.</caption>
<thead><tr><th scope="col" class="number">Cluster</th><th scope="col" class="number">Of the task</th>
<th scope="col" class="number">Of the corpus</th><th scope="col" class="number">w(c)</th>
<th scope="col">A window of it</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</section>"""


def _reading_section(comparison: Comparison) -> str:
    rows = "\n".join(
        f'<tr><th scope="row">{escape(run.name)}</th>'
        f'<td class="number" data-label="tokens">{run.num_tokens:,}</td>'
        f'<td class="number" data-label="bytes read">{format_bytes(run.bytes_read)}</td>'
        f'<td class="number" data-label="mixture error">{run.mixture_error:.4f}</td></tr>'
        for run in (comparison.base, comparison.crisp)
    )
    return f"""<section aria-labelledby="reading">
<h2 id="reading">What each run was served</h2>
<table class="stack">
<caption>Mixture error: total variation between the cluster proportions asked for and those served over the whole run;
0 is exact, 1 is disjoint.</caption>
<thead><tr><th scope="col">Run</th><th scope="col" class="number">Tokens</th>
<th scope="col" class="number">Bytes read</th><th scope="col" class="number">Mixture error</th></tr></thead>
<tbody>
{rows}
</tbody>
</table>
</section>"""


def _facts_section(comparison: Comparison) -> str:
    facts = "\n".join(
        f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in comparison.facts.items()
    )
    return f"""<section aria-labelledby="facts">
<h2 id="facts">Dataset, task and runs</h2>
<dl>
{facts}
</dl>
</section>"""
