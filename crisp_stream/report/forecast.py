"""Forecasts on the page: repeats of windows in a run of each histogram alone, and its reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crisp_stream import digits
from crisp_stream.errors import InputError
from crisp_stream.forecast.forecast import forecast
from crisp_stream.forecast.result import Forecast
from crisp_stream.histograms.mixture import Mixture
from crisp_stream.report.charts import Axis, Curve, percent
from crisp_stream.report.colours import Colours
from crisp_stream.report.elements import Cells, figure, named, node_button, safe, section, table
from crisp_stream.report.map import Tree
from crisp_stream.table import format_bytes

if TYPE_CHECKING:
    from crisp_stream.format.dataset import Dataset
    from crisp_stream.histograms.histogram import Histogram

_SHARE_TICKS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def forecast_section(forecasts: Mapping[str, Forecast | str], tree: Tree, colours: Colours) -> str:
    """A chart of occurrences, a table, and advice for each histogram, or the reason why it has no forecast."""
    made = {name: forecast for name, forecast in forecasts.items() if not isinstance(forecast, str)}
    refused = "\n".join(
        f'<p class="warning">{safe(name)}: {safe(reason)}</p>'
        for name, reason in forecasts.items()
        if isinstance(reason, str)
    )
    samples = f", {next(iter(made.values())).samples:,} samples each" if made else ""
    rows = [_row(name, forecast, tree, colours) for name, forecast in made.items()]
    caption = "Requests and bytes of all nodes, with a cache that holds the working set."
    return section(
        "forecast",
        "What a run would read",
        f"""<p class="note">A run of each histogram alone{samples}. Counted in the order in which the loader would serve
them, so the numbers are those of the run, for the seed of the forecast.</p>
{refused}
{_occurrences(made, colours)}
{table({"": rows}, title="Forecasts", caption=caption, kinds={"Most repeated cluster": "sample"})}
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


def _row(name: str, forecast: Forecast, tree: Tree, colours: Colours) -> Cells:
    most, [corpus] = "", forecast.sources
    if forecast.most_repeated:
        worst = forecast.most_repeated[0]
        level = min(worst.level, tree.levels[-1].level)
        node = worst.cluster // tree.arity ** (worst.level - level)
        most = f"{digits.times(worst.epochs)} times: {node_button(tree, level, node)}"
    return {
        "Histogram": named(name, colours.tasks[name]),
        "Of the corpus": digits.part(forecast.windows_served / forecast.windows),
        "Clusters hit": f"{corpus.clusters_hit:,} of {corpus.clusters_reachable:,}",
        "Times served, mean": digits.times(forecast.mean_occurrences),
        "Read": format_bytes(sum(forecast.reads.bytes_per_node)),
        "Requests": f"{forecast.reads.requests:,}",
        "Mixture error": digits.mixture_error(forecast.mixture_error),
        "Most repeated cluster": most,
    }


def _occurrences(forecasts: Mapping[str, Forecast], colours: Colours) -> str:
    """Chart the share of the corpus that is served at least so many times."""
    curves = []
    for name, of_run in forecasts.items():
        points = _served_at_least(of_run)
        if len(points):
            label = f"{name}: at most {points[-1, 0]:g} times"
            curves.append(Curve(points=points, colour=colours.tasks[name], label=label))
    if not curves:
        return ""
    powers = max(1, math.ceil(math.log10(max(curve.points[-1, 0] for curve in curves))))
    x_ticks = [10.0**power for power in range(powers + 1)]
    x = Axis(low=1, high=x_ticks[-1], ticks=x_ticks, label="times served", logarithmic=True)
    y = Axis(
        low=_SHARE_TICKS[0], high=1, ticks=_SHARE_TICKS, label="share of the corpus", logarithmic=True, write=percent
    )
    caption = (
        "Share of the corpus served at least so often. Where a curve begins is the share that is served at all; a long "
        "tail to the right are windows that the model would see again and again."
    )
    return figure(curves, x, y, caption=caption)


def _served_at_least(forecast: Forecast) -> NDArray[np.float64]:
    """[num_bins, 2]: a number of times, and the share of the corpus served at least so often."""
    bins = [entry for entry in forecast.distribution if entry.most > 0]
    if not bins:
        return np.empty((0, 2))
    windows = np.array([entry.windows for entry in bins], np.float64)
    shares = np.cumsum(windows[::-1])[::-1] / forecast.windows
    times = np.array([max(entry.least, 1) for entry in bins], np.float64)
    points = np.column_stack([np.append(1, times), np.append(shares[0], shares)])
    return points[points[:, 1] >= _SHARE_TICKS[0]]


def forecast_each(dataset: Dataset, histograms: Mapping[str, Histogram], samples: int) -> dict[str, Forecast | str]:
    """Forecast a run of each histogram alone; the reason stands in its place where it cannot be trained on as it is."""
    forecasts: dict[str, Forecast | str] = {}
    for name, histogram in histograms.items():
        try:
            forecasts[name] = forecast(dataset, Mixture.from_histogram(histogram), samples=samples)
        except InputError as error:
            forecasts[name] = str(error)
    return forecasts
