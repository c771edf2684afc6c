"""How each kind of figure is written: by the commands and on the page alike, so that both show the same digits.

Who computes a figure returns a number; who shows it takes the function of its kind here. Figures with intervals have
`figure_cell` (results/tables.py), which uses these decimals, and bytes `format_bytes` (table.py). The page's script has
functions of the same names for shares and weights.
"""

from __future__ import annotations

PERPLEXITY_DECIMALS = 2
RATIO_DECIMALS = 4
JUDGED = "computed in float32"
"""What is judged (held-out text, question sets, in training and by eval) is computed so, whatever the training does."""


def share(value: float) -> str:
    """Share of a cluster in a histogram, in what a run was served, or in the corpus: `12.50%`."""
    return f"{value:.2%}"


def weight(value: float) -> str:
    """Importance weight w(c) = P(c | D^s) / P(c | D^g): `1,234.50`."""
    return f"{value:,.2f}"


def effective(value: float) -> str:
    """Effective clusters, exp of the entropy: `17.3`."""
    return f"{value:,.1f}"


def part(value: float) -> str:
    """Part of a whole, such as windows of a corpus that are served, or total variation from the corpus: `87.2%`."""
    return f"{value:.1%}"


def largest_weight(value: float) -> str:
    """Largest w(c) of random windows, a mean over draws: `9.1`."""
    return f"{value:,.1f}"


def times(value: float) -> str:
    """How often a window is served, a mean: `2.94`."""
    return f"{value:,.2f}"


def mixture_error(value: float) -> str:
    """Total variation between the proportions asked for and those served: `0.00012`."""
    return f"{value:.5f}"


def loss(value: float) -> str:
    """Training loss in nats per token: `3.5675`."""
    return f"{value:.4f}"


def perplexity(value: float) -> str:
    """Perplexity without its interval: `1,234.50`."""
    return f"{value:,.{PERPLEXITY_DECIMALS}f}"


def ratio(value: float) -> str:
    """Ratio of two perplexities, or of bits per byte, without its interval: `0.7821`."""
    return f"{value:.{RATIO_DECIMALS}f}"


def seconds(value: float) -> str:
    """Duration: `1,234.5 s`."""
    return f"{value:,.1f} s"
