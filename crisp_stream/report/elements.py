"""Pieces of HTML that several sections use: names, bars, legends, buttons of clusters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from crisp_stream.report.colours import BASE
from crisp_stream.report.map import Tree, visible


def safe(name: str) -> str:
    """Escape a name or text of somebody else, and keep its writing direction from spreading."""
    return f"<bdi>{escape(visible(name))}</bdi>"


def section(key: str, title: str, body: str, *, kind: str = "") -> str:
    """A section with its heading."""
    kinds = f' class="{kind}"' if kind else ""
    return f'<section aria-labelledby="{key}"{kinds}>\n<h2 id="{key}">{title}</h2>\n{body}\n</section>'


def dot(colour: str | None) -> str:
    """A dot in the colour of a task or run; nothing without a colour."""
    return "" if colour is None else f'<span class="dot {colour}" aria-hidden="true"></span>'


def bar(share: float, colour: str) -> str:
    """A bar that fills a share of its track."""
    width = f"{100 * min(1.0, share):.1f}%"
    return f'<span class="track" aria-hidden="true"><span class="fill {colour}" style="width:{width}"></span></span>'


def against_corpus(share: float, corpus: float, scale: float, colour: str) -> str:
    """Two bars on one scale: a share of a task or run, and below it that of the corpus."""
    return f'<span class="pairs">{bar(share / scale, colour)}{bar(corpus / scale, BASE)}</span>'


def legend(entries: Sequence[tuple[str, str]]) -> str:
    """A legend: class of each colour, and text."""
    keys = " ".join(
        f'<span class="key"><span class="swatch {colour}" aria-hidden="true"></span>{safe(text)}</span>'
        for colour, text in entries
    )
    return f'<p class="legend">{keys}</p>'


def definitions(facts: Mapping[str, str], *, kind: str = "") -> str:
    """A list of names and values."""
    kinds = f' class="{kind}"' if kind else ""
    listed = "".join(f"<div><dt>{safe(name)}</dt><dd>{safe(value)}</dd></div>" for name, value in facts.items())
    return f"<dl{kinds}>{listed}</dl>"


def node_button(tree: Tree, level: int, node: int) -> str:
    """A node's path and terms; with the script a press shows it on the map."""
    return (
        f'<button type="button" class="node" data-level="{level}" data-node="{node}">'
        f'<span class="path">{tree.path(level, node)}</span> {safe(tree.terms_of(level, node))}</button>'
    )
