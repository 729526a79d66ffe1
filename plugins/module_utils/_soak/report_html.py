# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The report as one HTML file. Pure."""

from __future__ import annotations

import html

from .report import MARKS, clock, summary

STYLE = """
:root { --line: #d6d6d6; --soft: #5c5c5c; --good: #1b6e35; --bad: #b3261e; }
* { box-sizing: border-box; }
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto; max-width: 76rem;
  padding: 1rem; }
h1 { font-size: 1.4rem; margin: .2rem 0 .4rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem;
  border-top: 2px solid var(--line); padding-top: .8rem; }
p, dl { margin: .3rem 0 1rem; } .soft { color: var(--soft); }
.badge { display: inline-block; padding: .05rem .5rem; border-radius: .7rem; color: #fff; font-weight: 600;
  font-size: .85rem; white-space: nowrap; }
.badge.pass { background: var(--good); } .badge.fail { background: var(--bad); }
.badge.unknown, .badge.off { background: #6b6b6b; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .6rem .35rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
.wide td, .wide th { white-space: nowrap; padding-right: .9rem; font-size: .92rem; }
.wide td.long { white-space: normal; min-width: 16rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: .6rem 1.2rem;
  margin: 1rem 0; }
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
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_e(document['title'])}: {MARKS[document['verdict']]}</title><style>{STYLE}</style></head><body>",
        f"<h1>{_e(document['title'])} {_badge(document['verdict'])}</h1>",
        f'<p class="soft">{clock(document["at"])} · {count} {_counted(document["kind"], count)}</p>',
        _html_summary(head, rows, document["kind"]),
    ]
    for number, one in enumerate(document["hosts"], 1):
        drawn = "".join(
            f"<figure>{svg}<figcaption>{_e(caption)}</figcaption></figure>"
            for caption, svg in plots.get(one["host"], ())
        )
        parts += [
            f'<section id="h{number}"><h2>{_e(one["host"])} {_badge(one["verdict"])}</h2>',
            _html_verdicts(one["verdicts"]),
            f'<div class="plots">{drawn}</div>' if drawn else "",
            "<dl>"
            + "".join(f"<dt>{_e(label)}</dt><dd>{_e(text)}</dd>" for label, text in one["facts"].items())
            + "</dl></section>",
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
        f'<tr><th scope="row">{_e(v["name"])}</th><td class="state">{_badge(v["state"])}</td>'
        f'<td data-label="found">{_e(v["found"])}</td>'
        f'<td data-label="wanted">{_e(v["wanted"])}</td><td class="text" data-label="">{_e(v["text"])}</td></tr>'
        for v in verdicts
    )
    titles = "".join(
        f'<th scope="col">{title}</th>' for title in ("verdict", "state", "found", "wanted", "what it means")
    )
    return f'<table class="verdicts"><thead><tr>{titles}</tr></thead><tbody>{rows}</tbody></table>'
