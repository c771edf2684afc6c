"""Forecasts on the page: repeats of windows in a run of each histogram alone, and its reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream.errors import InputError
from crisp_stream.forecast.forecast import forecast
from crisp_stream.forecast.result import Forecast
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.report.charts import Axis, Curve, drawings
from crisp_stream.report.colours import Colours
from crisp_stream.report.elements import dot, legend, node_button, safe, section
from crisp_stream.report.map import Tree, visible
from crisp_stream.table import format_bytes

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.histogram import Histogram

_LEAST_SHARE = 1e-4


def forecast_section(forecasts: Mapping[str, Forecast | str], tree: Tree, colours: Colours) -> str:
    """A chart of occurrences, a table, and advice for each run.

    Args:
        forecasts: name of a histogram to its forecast, or the reason why there is none.
        tree: for the terms of clusters.
        colours: of the histograms.
    """
    made = {name: forecast for name, forecast in forecasts.items() if not isinstance(forecast, str)}
    refused = "\n".join(
        f'<p class="warning">{safe(name)}: {safe(reason)}</p>'
        for name, reason in forecasts.items()
        if isinstance(reason, str)
    )
    samples = f", {next(iter(made.values())).samples:,} samples each" if made else ""
    rows = "\n".join(_row(name, forecast, tree, colours) for name, forecast in made.items())
    return section(
        "forecast",
        "What a run would read",
        f"""<p class="note">A run of each histogram alone{samples}. Counted in the order in which the loader would serve
them, so the numbers are those of the run, for the seed of the forecast.</p>
{refused}
{_occurrences(made, colours)}
<div class="scroll" tabindex="0" role="region" aria-label="Forecasts"><table class="stack">
<caption>Requests and bytes of all nodes, with a cache that holds the working set.</caption>
<thead><tr><th scope="col">Histogram</th><th scope="col" class="number">Of the corpus</th>
<th scope="col" class="number">Clusters hit</th><th scope="col" class="number">Times served, mean</th>
<th scope="col" class="number">Read</th><th scope="col" class="number">Requests</th>
<th scope="col" class="number">Mixture error</th><th scope="col">Most repeated cluster</th></tr></thead>
<tbody>
{rows}
</tbody>
</table></div>
{_advice(made)}""",
    )


def _advice(forecasts: Mapping[str, Forecast]) -> str:
    """Warnings before a run, the histograms with the same remedy together."""
    findings: dict[str, list[str]] = {}
    for name, result in forecasts.items():
        for warning in result.warnings:
            finding = f"<li>{safe(name)}: {safe(warning.finding)}</li>"
            findings.setdefault(warning.remedy, []).append(finding)
    if not findings:
        return ""
    parts = (
        f'<p class="remedy">{safe(remedy)}</p>\n<ul class="advice">\n{"".join(listed)}\n</ul>'
        for remedy, listed in findings.items()
    )
    return "<h3>Before you start</h3>\n" + "\n".join(parts)


def _row(name: str, forecast: Forecast, tree: Tree, colours: Colours) -> str:
    cells = {
        "of the corpus": f"{forecast.windows_served / forecast.windows:.1%}",
        "clusters hit": f"{forecast.clusters_hit:,} of {forecast.clusters_reachable:,}",
        "times served, mean": f"{forecast.mean_occurrences:.2f}",
        "read": format_bytes(sum(forecast.reads.bytes_per_node)),
        "requests": f"{forecast.reads.requests:,}",
        "mixture error": f"{forecast.mixture_error:.4f}",
    }
    rest = "".join(f'<td class="number" data-label="{label}">{value}</td>' for label, value in cells.items())
    most = ""
    if forecast.most_repeated:
        worst = forecast.most_repeated[0]
        level = min(forecast.level, tree.levels[-1].level)
        node = worst.cluster // tree.arity ** (forecast.level - level)
        most = f"{worst.epochs:,.1f} times: {node_button(tree, level, node)}"
    label = f'<th scope="row">{dot(colours.tasks[name])}{safe(name)}</th>'
    return f'<tr>{label}{rest}<td class="sample">{most}</td></tr>'


def _occurrences(forecasts: Mapping[str, Forecast], colours: Colours) -> str:
    """Chart the share of the corpus that is served at least so many times."""
    steps = {name: _served_at_least(forecast) for name, forecast in forecasts.items()}
    steps = {name: points for name, points in steps.items() if len(points)}
    if not steps:
        return ""
    most = max(float(points[-1, 0]) for points in steps.values())
    curves = [Curve(points=points, kind=f"curve {colours.tasks[name]}") for name, points in steps.items()]
    high = max(10.0, 10 ** np.ceil(np.log10(most)))
    x_ticks = [float(10**power) for power in range(int(np.log10(high)) + 1)]
    y_ticks = [float(10.0**power) for power in range(int(np.log10(_LEAST_SHARE)), 1)]
    x = Axis(low=1, high=high, ticks=x_ticks, label="times served", logarithmic=True)
    y = Axis(
        low=_LEAST_SHARE,
        high=1,
        ticks=y_ticks,
        label="share of the corpus",
        logarithmic=True,
        write=lambda share: f"{100 * share:g}%",
    )
    ends = "; ".join(f"{visible(name)}: at most {points[-1, 0]:g} times" for name, points in steps.items())
    return f"""<figure>
<figcaption>Share of the corpus served at least so often. Where a curve begins is the share that is served at all; a
long tail to the right are windows that the model would see again and again.</figcaption>
{legend([(colours.tasks[name], name) for name in steps])}
{drawings(curves, x, y, described=f"Occurrences of windows; {ends}.")}
</figure>"""


def _served_at_least(forecast: Forecast) -> NDArray[np.float64]:
    """[num_bins, 2]: a number of times, and the share of the corpus served at least so often."""
    bins = [entry for entry in forecast.distribution if entry.most > 0]
    if not bins:
        return np.empty((0, 2))
    windows = np.array([entry.windows for entry in bins], np.float64)
    shares = np.cumsum(windows[::-1])[::-1] / forecast.windows
    times = np.array([max(entry.least, 1) for entry in bins], np.float64)
    points = np.column_stack([np.append(1, times), np.append(shares[0], shares)])
    return points[points[:, 1] >= _LEAST_SHARE]


def forecast_each(dataset: Dataset, histograms: Mapping[str, Histogram], samples: int) -> dict[str, Forecast | str]:
    """Forecast a run of each histogram alone; the reason stands in its place where it cannot be trained on as it is."""
    forecasts: dict[str, Forecast | str] = {}
    for name, histogram in histograms.items():
        try:
            forecasts[name] = forecast(dataset, Mixture.from_histogram(histogram), samples=samples)
        except InputError as error:
            forecasts[name] = str(error)
    return forecasts
