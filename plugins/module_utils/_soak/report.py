# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One report, three forms: JSON for programs, Markdown for a ticket, one HTML file for people.

A *document* (docs/guides/soak.md, "The report's JSON")::

    {"schema": 1, "kind": "soak" | "compare" | "verify", "title": str, "at": wall clock, "verdict": "pass" | "fail",
     "hosts": [{"host": str, "verdict", "verdicts": [{"name", "state", "found", "wanted", "text"}],
                "facts": {label: text}, "figures": {…} | None, "limits": {…} | None, "curves": {name: [[t, value], …]} | None}]}

Pure, but for matplotlib, which draws: it is imported late, and only the HTML wants it.
"""

from __future__ import annotations

import html
import io
import re
import time
from typing import Any

from . import verdicts as soak_verdicts

SCHEMA = 1
#: Points of a curve, for one host and for many: a page of eight hours stays below 2 MB.
POINTS = {1: 600, 8: 300}
POINTS_OF_MANY = 150
MARKS = {"pass": "ok", "fail": "FAIL", "unknown": "not known", "off": "told only"}
COLOURS = {"line": "#1f5fa8", "plan": "#7aa874", "limit": "#b3261e", "second": "#c77700"}


class ReportError(Exception):
    """A report that cannot be made; the text is for an operator."""


# --- documents ------------------------------------------------------------------------------------------------------


def soak_document(runs, limits=None, kind="soak", title="", now=None) -> dict[str, Any]:
    """The document of runs of soak_verdicts.parse(): [(name, run)]. For a comparison the names are those of the settings."""
    most = next((points for count, points in sorted(POINTS.items()) if len(runs) <= count), POINTS_OF_MANY)
    hosts = []
    for name, run in runs:
        judged = soak_verdicts.judge(run, limits)
        hosts.append({"host": name, **judged, "facts": facts(run), "curves": soak_verdicts.curves(run, most)})
    return _document(kind, title or "Soak test", hosts, now)


def verify_document(looks, title="", now=None) -> dict[str, Any]:
    """The document of a fleet's verification: [{host, verdict, verdicts, facts}]."""
    hosts = [{"host": one["host"], "verdict": one["verdict"], "verdicts": one["verdicts"], "facts": one.get("facts", {})} for one in looks]
    return _document("verify", title or "Fleet verification", [{**one, "figures": None, "limits": None, "curves": None} for one in hosts], now)


def _document(kind, title, hosts, now):
    deciding = hosts[-1:] if kind == "compare" else hosts  # the other settings are there to be compared with
    verdict = "pass" if deciding and all(host["verdict"] == "pass" for host in deciding) else "fail"
    return {"schema": SCHEMA, "kind": kind, "title": title, "at": round(time.time() if now is None else now), "verdict": verdict, "hosts": hosts}


def facts(run):
    """What a reader has to know of a run to make it again: {label: text}."""
    start, load = run["start"], run["start"]["load"]
    bounds = [f"{load['rounds']} rounds"] if load.get("rounds") else []
    bounds += [f"{load['duration_s']:,} s"] if load.get("duration_s") else []
    models = ", ".join(f"{one['name']} {one['total_mib']:,} MiB" for one in (start.get("plan") or {}).get("models", ()))
    versions = start["versions"]
    return {
        "model": f"{start['model']}, digest {(versions.get('digest') or 'unknown')[:12]}",
        "load": f"{load['preset']}: {load.get('conversations')} conversations, {' or '.join(bounds)}, about {load.get('input_tokens', 0):,} tokens in,"
        f" seed {load.get('seed')}",
        "asked": f"{start['target']['kind']} at {start['target']['url']}",
        "cards": ", ".join(f"{card['index']}: {card['name']}, {card['total_mib'] or 0:,} MiB" for card in start["gpus"]) or f"none ({start['nvml']['state']})",
        "plan": models or "none",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value and name != "digest"),
        "begun": _clock(start["at"]),
        "measured": f"every {start['interval_s']:g} s",
    }


def _clock(seconds):
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


# --- tables ---------------------------------------------------------------------------------------------------------


def _mib(value):
    return "–" if value is None else f"{value:,}"


def summary(document):
    """(head, rows) of the table that has a row for each host: what the article's table has, measured."""
    if document["kind"] == "verify":
        return ["host", "verdict", "what is wrong"], [[one["host"], MARKS[one["verdict"]], wrong(one)] for one in document["hosts"]]
    first = "setting" if document["kind"] == "compare" else "host"
    memory, time_ = ["start MiB", "peak MiB", "plan MiB", "MiB/h"], ["ms/token", "p95", "first token s", "stable", "of"]
    head = [first, "verdict", *memory, "reloads", "offload s", "errors", *time_]
    return head, [_summary_row(one) for one in document["hosts"]]


def _summary_row(one):
    seen, asked = one["figures"], one["figures"]["requests"]
    cards = seen["gpus"]

    def total(key):
        values = [card[key] for card in cards if card[key] is not None]
        return _mib(sum(values)) if values else "–"

    slopes = [card["slope"]["slope"] for card in cards if card["slope"]]
    return [
        one["host"],
        MARKS[one["verdict"]],
        total("start_mib"),
        total("peak_mib"),
        total("planned_mib"),
        f"{sum(slopes):,.1f}" if slopes else "–",
        str(seen["reloads"]["count"]),
        "–" if seen["offload_s"] is None else f"{seen['offload_s']:,.0f}",
        str(asked["errors"]),
        _times(asked["s_per_token_p50"], 1000, 1),
        _times(asked["s_per_token_p95"], 1000, 1),
        _times(asked["ttft_p50_s"], 1, 2),
        span(seen["stable_s"]),
        span(seen["duration_s"]),
    ]


def _times(value, factor, digits):
    return "–" if value is None else f"{value * factor:,.{digits}f}"


def span(seconds):
    """'45 s', '12 min', '8.0 h'."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def wrong(one):
    """The failed verdicts of a host in a line; 'nothing' where there are none."""
    failed = [f"{verdict['name']}: {verdict['found']}" for verdict in one["verdicts"] if verdict["state"] == "fail"]
    return "; ".join(failed) or "nothing"


def terminal(document):
    """Lines for a terminal: the verdict, the table, and each failed verdict with its sentence."""
    head, rows = summary(document)
    lines = [f"{document['title']}: {'everything is as it should be' if document['verdict'] == 'pass' else 'NOT as it should be'}", ""]
    if document["kind"] == "verify":
        head, rows = head[:2], [row[:2] for row in rows]
    else:  # what a row of a terminal has no room for is in the files
        keep = [column for column, title in enumerate(head) if title not in ("p95", "first token s")]
        head, rows = [head[column] for column in keep], [[row[column] for column in keep] for row in rows]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines += ["  ".join(cell.ljust(size) for cell, size in zip(row, widths)).rstrip() for row in [head, *rows]]
    for one in document["hosts"]:
        for verdict in one["verdicts"]:
            if verdict["state"] == "fail":
                lines += ["", f"{one['host']}: {verdict['name']}: {verdict['found']} (wanted: {verdict['wanted']})", f"  {verdict['text']}"]
    return lines


# --- Markdown -------------------------------------------------------------------------------------------------------


def markdown(document):
    """The report as Markdown, for a ticket."""
    head, rows = summary(document)
    lines = [f"# {_md(document['title'])}", "", f"**{MARKS[document['verdict']]}** · {_clock(document['at'])}", "", *_md_table(head, rows)]
    for one in document["hosts"]:
        lines += ["", f"## {_md(one['host'])}: {MARKS[one['verdict']]}", ""]
        lines += _md_table(
            ["", "state", "found", "wanted", "what it means"], [[v["name"], MARKS[v["state"]], v["found"], v["wanted"], v["text"]] for v in one["verdicts"]]
        )
        lines += ["", *(f"- {_md(label)}: {_md(text)}" for label, text in one["facts"].items())]
    return "\n".join(lines) + "\n"


def _md_table(head, rows):
    lines = ["| " + " | ".join(_md(cell) for cell in cells) + " |" for cells in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _md(text):
    return re.sub(r"([|\\`<*_\[])", r"\\\1", " ".join(str(text).split()))


# --- HTML -----------------------------------------------------------------------------------------------------------

STYLE = """
:root { --line: #d6d6d6; --soft: #5c5c5c; --good: #1b6e35; --bad: #b3261e; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 76rem; padding: 1rem; }
h1 { font-size: 1.4rem; margin: .2rem 0 .4rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; border-top: 2px solid var(--line); padding-top: .8rem; }
p, dl { margin: .3rem 0 1rem; } .soft { color: var(--soft); }
.badge { display: inline-block; padding: .05rem .5rem; border-radius: .7rem; color: #fff; font-weight: 600; font-size: .85rem; white-space: nowrap; }
.badge.pass { background: var(--good); } .badge.fail { background: var(--bad); } .badge.unknown, .badge.off { background: #6b6b6b; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.wide td, .wide th { white-space: nowrap; padding-right: .9rem; font-size: .92rem; } .wide td.long { white-space: normal; min-width: 16rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .6rem 1.2rem; margin: 1rem 0; }
figure { margin: 0; break-inside: avoid; } figcaption { font-size: .85rem; color: var(--soft); }
svg { width: 100%; height: auto; display: block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) {
  .verdicts thead { position: absolute; left: -999rem; }
  .verdicts tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  .verdicts th, .verdicts td { display: block; border: 0; padding: .05rem 0; }
  .verdicts td::before { content: attr(data-label) " "; color: var(--soft); font-size: .85rem; }
  .verdicts td.state { float: right; } .verdicts td.state::before, .verdicts td.text::before { content: ""; }
  dl { grid-template-columns: 1fr; } dt { margin-top: .4rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .wide { overflow: visible; } .wide table { font-size: 7.5pt; } tr { break-inside: avoid; }
}
"""


def page(document, plots):
    """The report as one HTML file without a reference to anything outside it. ``plots``: {host: [(caption, svg)]}."""
    head, rows = summary(document)
    count = len(document["hosts"])
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_e(document['title'])}: {MARKS[document['verdict']]}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_e(document['title'])} {_badge(document['verdict'])}</h1>",
        f'<p class="soft">{_clock(document["at"])} · {count} {_counted(document["kind"], count)}</p>',
        _html_summary(head, rows, document["kind"]),
    ]
    for number, one in enumerate(document["hosts"], 1):
        drawn = "".join(f"<figure>{svg}<figcaption>{_e(caption)}</figcaption></figure>" for caption, svg in plots.get(one["host"], ()))
        parts += [
            f'<section id="h{number}"><h2>{_e(one["host"])} {_badge(one["verdict"])}</h2>',
            _html_verdicts(one["verdicts"]),
            f'<div class="plots">{drawn}</div>' if drawn else "",
            "<dl>" + "".join(f"<dt>{_e(label)}</dt><dd>{_e(text)}</dd>" for label, text in one["facts"].items()) + "</dl></section>",
        ]
    parts.append("</body></html>")
    return "\n".join(part for part in parts if part) + "\n"


def _counted(kind, count):
    noun = "setting" if kind == "compare" else "host"
    return noun if count == 1 else noun + "s"


def _e(text):
    return html.escape(str(text))


def _badge(state):
    return f'<span class="badge {state}">{MARKS[state]}</span>'


def _html_summary(head, rows, kind):
    states = {mark: state for state, mark in MARKS.items()}
    body = []
    for number, row in enumerate(rows, 1):
        cells = [f'<th scope="row"><a href="#h{number}">{_e(row[0])}</a></th>', f"<td>{_badge(states[row[1]])}</td>"]
        long = ' class="long"' if kind == "verify" else ""
        body.append("<tr>" + "".join([*cells, *(f"<td{long}>{_e(cell)}</td>" for cell in row[2:])]) + "</tr>")
    titles = "".join(f'<th scope="col">{_e(title)}</th>' for title in head)
    return f'<div class="wide"><table><thead><tr>{titles}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _html_verdicts(verdicts):
    rows = "".join(
        f'<tr><th scope="row">{_e(v["name"])}</th><td class="state">{_badge(v["state"])}</td><td data-label="found">{_e(v["found"])}</td>'
        f'<td data-label="wanted">{_e(v["wanted"])}</td><td class="text" data-label="">{_e(v["text"])}</td></tr>'
        for v in verdicts
    )
    titles = "".join(f'<th scope="col">{title}</th>' for title in ("verdict", "state", "found", "wanted", "what it means"))
    return f'<table class="verdicts"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>'


# --- plots ----------------------------------------------------------------------------------------------------------


def pyplot():
    """matplotlib's pyplot, ready to draw without a screen; ReportError where it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ReportError(
            "matplotlib is not installed in this Python, and the HTML report draws with it. Install it where the report is made"
            " (`pip install matplotlib`; report_python names the Python), or set report_html to false: JSON and Markdown need nothing."
        ) from None
    matplotlib.use("svg")
    from matplotlib import pyplot as plot

    plot.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    return plot


def plots(document):
    """{host: [(caption, svg)]} of a document with curves. Raises ReportError without matplotlib."""
    if not any(one["curves"] for one in document["hosts"]):
        return {}
    plot, drawn, number = pyplot(), {}, 0
    for one in document["hosts"]:
        panels = []
        for caption, draw in _panels(one):
            number += 1
            figure, axes = plot.subplots(figsize=(4.8, 2.1), layout="constrained")
            draw(axes)
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
    curves, seen = one["curves"] or {}, one["figures"]
    duration = seen["duration_s"]
    unit, width = ("s", 1) if duration <= 180 else ("min", 60) if duration <= 10800 else ("h", 3600)

    def line(axes, name, colour=COLOURS["line"], factor=1.0, dots=False, label=None):
        points = curves[name]
        style = {"linestyle": "none", "marker": "o", "markersize": 2.4} if dots else {"linewidth": 1.2}
        axes.plot([t / width for t, _v in points], [value * factor for _t, value in points], color=colour, label=label, **style)
        axes.set_xlim(0, duration / width)
        axes.set_xlabel(unit)

    def memory(card):
        def draw(axes):
            line(axes, f"gpu{card['index']}_held")
            top = max(card["total_mib"] or 0, card["peak_mib"] or 0)
            if card["planned_mib"] is not None:
                room = (one["limits"] or {}).get("peak_over_plan_mib") or 0
                axes.axhspan(0, card["planned_mib"], color=COLOURS["plan"], alpha=0.18, linewidth=0)
                axes.axhline(card["planned_mib"] + room, color=COLOURS["limit"], linewidth=0.8, linestyle="--")
            axes.set_ylim(0, top * 1.02 or 1)
            axes.set_ylabel("MiB")

        return draw

    several = len(seen["gpus"]) > 1
    for card in seen["gpus"]:
        name = f"gpu{card['index']}_held"
        suffix = f" of GPU {card['index']}" if several else ""
        if name in curves:
            yield f"Memory{suffix} held for the server; green: the plan; dashed: the limit", memory(card)
    if not seen["gpus"] and "rss" in curves:
        yield "Resident memory of the server's processes, MiB", lambda axes: (line(axes, "rss"), axes.set_ylim(bottom=0))
    if "s_per_token" in curves:
        yield "Milliseconds per token, each chat a dot", lambda axes: (line(axes, "s_per_token", factor=1000, dots=True), axes.set_ylim(bottom=0))
    if "tokens_per_s" in curves:
        yield "Tokens per second, all conversations", lambda axes: (line(axes, "tokens_per_s"), axes.set_ylim(bottom=0))
    for card in seen["gpus"]:
        name = f"gpu{card['index']}_temp"
        suffix = f" of GPU {card['index']}" if several else ""
        if name in curves:
            yield f"Temperature{suffix}, °C", lambda axes, name=name: (line(axes, name, COLOURS["second"]), axes.set_ylim(20, 100))


def inline(svg, number, caption):
    """A drawing fit to stand in a page beside others: no prologue, no metadata, ids of its own, a size that follows the page."""
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
    return svg.replace("<svg", f'<svg role="img" aria-label="{_e(caption)}"', 1)
