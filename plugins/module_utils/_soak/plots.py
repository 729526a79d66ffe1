# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The plots of a report, drawn by matplotlib, which is imported late: only the HTML wants it."""

from __future__ import annotations

import html
import io
import re

COLORS = {"line": "#1f5fa8", "plan": "#7aa874", "limit": "#b3261e", "second": "#c77700"}


class ReportError(Exception):
    """A report that cannot be made; the text is for an operator."""


def pyplot():
    """matplotlib's pyplot, ready to draw without a screen; ReportError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ReportError(
            "matplotlib is not installed in this Python, and the HTML report draws with it."
            " Install it where the report is made (`pip install matplotlib`; report_python names the Python),"
            " or set report_html to false: JSON and Markdown need nothing."
        ) from None
    matplotlib.use("svg")
    from matplotlib import pyplot as plot

    plot.rcParams.update(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
        }
    )
    return plot


def plots(document):
    """{host: [(caption, svg)]} of a document with curves. Raises ReportError without matplotlib."""
    if not any(one["curves"] for one in document["hosts"]):
        return {}
    plot, drawn, number = pyplot(), {}, 0
    for one in document["hosts"]:
        panels = []
        for caption, name, style in _panels(one):
            number += 1
            figure, axes = plot.subplots(figsize=(4.8, 2.1), layout="constrained")
            _draw(axes, one, name, **style)
            axes.grid(axis="y", color="#e4e4e4", linewidth=0.6)
            axes.set_axisbelow(True)
            buffer = io.StringIO()
            plot.rcParams["svg.hashsalt"] = f"figure{number}"
            figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
            plot.close(figure)
            panels.append((caption, inline(buffer.getvalue(), number, caption)))
        drawn[one["host"]] = panels
    return drawn


def _panels(one):
    """[(caption, name of the curve, how it is drawn)] of the curves that a host has."""
    cards = one["figures"]["gpus"]
    of = {card["index"]: f" of GPU {card['index']}" if len(cards) > 1 else "" for card in cards}
    panels = [
        (
            f"Memory{of[card['index']]} held for the server; green: the plan; dashed: the limit",
            f"gpu{card['index']}_held",
            {"card": card},
        )
        for card in cards
    ]
    if not cards:
        panels.append(("Resident memory of the server's processes, MiB", "rss", {}))
    panels.append(("Milliseconds per token, each chat a dot", "s_per_token", {"factor": 1000, "dots": True}))
    panels.append(("Tokens per second, all conversations", "tokens_per_s", {}))
    warm = {"color": COLORS["second"], "limits": (20, 100)}
    panels += [(f"Temperature{of[card['index']]}, °C", f"gpu{card['index']}_temp", warm) for card in cards]
    return [panel for panel in panels if panel[1] in (one["curves"] or {})]


def _draw(axes, one, name, card=None, factor=1.0, color=COLORS["line"], dots=False, limits=(0, None)):
    """One curve over the time of the run; with *card*, its plan and limit behind it."""
    points, duration = one["curves"][name], one["figures"]["duration_s"]
    unit, width = ("s", 1) if duration <= 180 else ("min", 60) if duration <= 10800 else ("h", 3600)
    style = {"linestyle": "none", "marker": "o", "markersize": 2.4} if dots else {"linewidth": 1.2}
    axes.plot([t / width for t, _v in points], [value * factor for _t, value in points], color=color, **style)
    axes.set_xlim(0, duration / width)
    axes.set_xlabel(unit)
    if card is None:
        axes.set_ylim(*limits)
        return
    if card["planned_mib"] is not None:
        room = (one["limits"] or {}).get("peak_over_plan_mib") or 0
        axes.axhspan(0, card["planned_mib"], color=COLORS["plan"], alpha=0.18, linewidth=0)
        axes.axhline(card["planned_mib"] + room, color=COLORS["limit"], linewidth=0.8, linestyle="--")
    axes.set_ylim(0, max(card["total_mib"] or 0, card["peak_mib"] or 0) * 1.02 or 1)
    axes.set_ylabel("MiB")


def inline(svg, number, caption):
    """A drawing fit to stand in a page beside others.

    No prologue, no metadata, ids of its own, a size that follows the page.
    """
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<style type="text/css">.*?</style>', "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="p{number}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#p{number}-\1)", svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#p{number}-\1"', svg)
    svg = re.sub(r'\sxmlns(?::xlink)?="[^"]*"', "", svg, count=2)
    svg = re.sub(r'^<svg\b([^>]*?)\swidth="[^"]*"', r"<svg\1", svg)
    svg = re.sub(r'^<svg\b([^>]*?)\sheight="[^"]*"', r"<svg\1", svg)
    # Two decimals of a point are finer than any screen.
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(caption)}"', 1)
