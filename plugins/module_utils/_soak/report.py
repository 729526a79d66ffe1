# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One report, three forms: JSON for programs, Markdown for a ticket, one HTML file for people (``report_html``).

A *document* (docs/guides/soak.md, "The report's JSON")::

    {"schema": 1, "kind": "soak" | "compare" | "verify", "title": str, "at": wall clock, "verdict": "pass" | "fail",
     "hosts": [{"host": str, "verdict", "verdicts": [{"name", "state", "found", "wanted", "text"}],
                "facts": {label: text}, "figures": {…} | None, "limits": {…} | None,
                "curves": {name: [[t, value], …]} | None}]}

Pure.
"""

from __future__ import annotations

import re
import time
from typing import Any

from .curves import curves
from .verdicts import judge

SCHEMA = 1
#: Points of a curve, for one host and for many: a page of eight hours stays below 2 MB.
POINTS = {1: 600, 8: 300}
POINTS_OF_MANY = 150
MARKS = {"pass": "ok", "fail": "FAIL", "unknown": "not known", "off": "reported only"}


def soak_document(runs, limits=None, kind="soak", title="", now=None) -> dict[str, Any]:
    """The document of runs of measure.parse(): [(name, run)]. For a comparison the names are those of the settings."""
    most = next((points for count, points in sorted(POINTS.items()) if len(runs) <= count), POINTS_OF_MANY)
    hosts = []
    for name, run in runs:
        judged = judge(run, limits)
        hosts.append({"host": name, **judged, "facts": facts(run), "curves": curves(run, most)})
    return _document(kind, title or "Soak test", hosts, now)


def verify_document(seen, title="", now=None) -> dict[str, Any]:
    """The document of a fleet's verification: [{host, verdict, verdicts, facts}]."""
    hosts = [
        {"host": one["host"], "verdict": one["verdict"], "verdicts": one["verdicts"], "facts": one.get("facts", {})}
        for one in seen
    ]
    return _document(
        "verify",
        title or "Fleet verification",
        [{**one, "figures": None, "limits": None, "curves": None} for one in hosts],
        now,
    )


def _document(kind, title, hosts, now):
    deciding = hosts[-1:] if kind == "compare" else hosts  # the other settings are there to be compared with
    verdict = "pass" if deciding and all(host["verdict"] == "pass" for host in deciding) else "fail"
    return {
        "schema": SCHEMA,
        "kind": kind,
        "title": title,
        "at": round(time.time() if now is None else now),
        "verdict": verdict,
        "hosts": hosts,
    }


def facts(run):
    """What a reader has to know of a run to make it again: {label: text}."""
    start, load = run["start"], run["start"]["load"]
    bounds = [f"{load['rounds']} rounds"] if load.get("rounds") else []
    bounds += [f"{load['duration_s']:,} s"] if load.get("duration_s") else []
    models = ", ".join(f"{one['name']} {one['total_mib']:,} MiB" for one in (start.get("plan") or {}).get("models", ()))
    versions = start["versions"]
    return {
        "model": f"{start['model']}, digest {(versions.get('digest') or 'unknown')[:12]}",
        "load": f"{load['preset']}: {load.get('conversations')} conversations, {' or '.join(bounds)},"
        f" about {load.get('input_tokens', 0):,} tokens in, seed {load.get('seed')}",
        "asked": f"{start['target']['kind']} at {start['target']['url']}",
        "cards": ", ".join(f"{card['index']}: {card['name']}, {card['total_mib'] or 0:,} MiB" for card in start["gpus"])
        or f"none ({start['nvml']['state']})",
        "plan": models or "none",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items() if value and name != "digest"),
        "begun": clock(start["at"]),
        "measured": f"every {start['interval_s']:g} s",
    }


def clock(seconds):
    """A wall clock time for people, in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _mib(value):
    return "–" if value is None else f"{value:,}"


def summary(document):
    """(head, rows) of the table that has a row for each host: what the article's table has, measured."""
    if document["kind"] == "verify":
        return ["host", "verdict", "what is wrong"], [
            [one["host"], MARKS[one["verdict"]], wrong(one)] for one in document["hosts"]
        ]
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
    good = document["verdict"] == "pass"
    lines = [f"{document['title']}: {'everything is as it should be' if good else 'NOT as it should be'}", ""]
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
                lines += [
                    "",
                    f"{one['host']}: {verdict['name']}: {verdict['found']} (wanted: {verdict['wanted']})",
                    f"  {verdict['text']}",
                ]
    return lines


def markdown(document):
    """The report as Markdown, for a ticket."""
    head, rows = summary(document)
    lines = [
        f"# {_md(document['title'])}",
        "",
        f"**{MARKS[document['verdict']]}** · {clock(document['at'])}",
        "",
        *_md_table(head, rows),
    ]
    for one in document["hosts"]:
        lines += ["", f"## {_md(one['host'])}: {MARKS[one['verdict']]}", ""]
        lines += _md_table(
            ["", "state", "found", "wanted", "what it means"],
            [[v["name"], MARKS[v["state"]], v["found"], v["wanted"], v["text"]] for v in one["verdicts"]],
        )
        lines += ["", *(f"- {_md(label)}: {_md(text)}" for label, text in one["facts"].items())]
    return "\n".join(lines) + "\n"


def _md_table(head, rows):
    lines = ["| " + " | ".join(_md(cell) for cell in cells) + " |" for cells in [head, *rows]]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _md(text):
    return re.sub(r"([|\\`<*_\[])", r"\\\1", " ".join(str(text).split()))
