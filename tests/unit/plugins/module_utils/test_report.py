# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's three forms, without its plots (tests/report draws)."""

from __future__ import annotations

import html.parser
import json
import sys

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._soak import measure, plots, report_html
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import report as soak_report
from ansible_collections.gpufleet.llm.tests.unit.plugins import soak_runs

EVIL = "<script>alert(1)</script>|`x`"


@pytest.fixture(scope="module")
def document():
    bad = soak_runs.run(300, ps=lambda t: (15384, 6957) if 100 <= t < 130 else (11885, 11885))
    return soak_report.soak_document([("gpu1", soak_runs.run(300)), ("gpu2", bad)], title="Soak " + EVIL, now=1_800_000_000)


def test_the_document_is_what_the_docs_say(document):
    assert document["schema"] == 1 and document["kind"] == "soak" and document["verdict"] == "fail"
    assert [host["verdict"] for host in document["hosts"]] == ["pass", "fail"]
    for host in document["hosts"]:
        assert set(host) == {"host", "verdict", "verdicts", "figures", "limits", "facts", "curves"}
        assert all(set(verdict) == {"name", "state", "found", "wanted", "text"} for verdict in host["verdicts"])
    assert json.loads(json.dumps(document)) == document


def test_the_terminal_shows_the_table_and_names_what_failed(document):
    text = "\n".join(soak_report.terminal(document))
    assert "NOT as it should be" in text and "gpu2: CPU offload: 30 s (wanted: none)" in text
    assert text.count("\n") < 20 and max(map(len, text.splitlines())) < 140


def test_markdown_holds_every_verdict_and_breaks_no_table(document):
    text = soak_report.markdown(document)
    assert "<script" not in text.replace("\\<script", "") and "\\<script" in text
    for line in text.splitlines():
        if line.startswith("| "):
            assert line.replace("\\|", "").count("|") in (15, 6)
    assert text.count("CPU offload") == 2


class Page(html.parser.HTMLParser):
    """Every tag closed in order; what it refers to, and its ids."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, text):
        super().__init__()
        self.open, self.ids, self.refers, self.tags = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.refers += [value for name, value in attrs if name in ("href", "src")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_refers_to_nothing_outside(document):
    page = Page(report_html.page(document, {}))
    assert page.open == [] and len(set(page.ids)) == len(page.ids)
    assert set(page.refers) == {"#h1", "#h2"} and "script" not in page.tags and "link" not in page.tags


def test_a_page_of_a_verified_fleet_needs_no_plots():
    verdict = {"name": "driver", "state": "fail", "found": EVIL, "wanted": "x", "text": ""}
    document = soak_report.verify_document([{"host": "gpu1", "verdict": "fail", "verdicts": [verdict], "facts": {"a": EVIL}}])
    assert plots.plots(document) == {}
    assert "script" not in Page(report_html.page(document, {})).tags
    assert "driver" in "\n".join(soak_report.terminal(document))


def test_without_matplotlib_it_is_said_what_to_do(document, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(plots.ReportError, match="pip install matplotlib"):
        plots.plots(document)


def test_a_comparison_names_its_settings_and_the_last_one_decides():
    well, bad = soak_runs.run(60), soak_runs.run(300, ps=lambda t: (15384, 6957) if 100 <= t < 130 else (11885, 11885))
    document = soak_report.soak_document([("stock", bad), ("article", well), ("fleet", well)], kind="compare")
    head, rows = soak_report.summary(document)
    assert head[0] == "setting" and [row[0] for row in rows] == ["stock", "article", "fleet"]
    assert document["verdict"] == "pass" and [host["verdict"] for host in document["hosts"]] == ["fail", "pass", "pass"]
    assert soak_report.soak_document([("stock", well), ("fleet", bad)], kind="compare")["verdict"] == "fail"


def test_a_drawing_is_made_fit_for_a_page():
    svg = '<?xml version="1.0"?><!DOCTYPE svg><svg xmlns:xlink="x" width="4pt" height="2pt" xmlns="y"><metadata>m</metadata><defs><path id="a"/></defs>'
    svg += '<g clip-path="url(#a)"><use xlink:href="#a" x="1.23456"/></g></svg>'
    made = plots.inline(svg, 7, 'A "caption"')
    assert made.startswith('<svg role="img" aria-label="A &quot;caption&quot;"')
    assert 'id="p7-a"' in made and "url(#p7-a)" in made and 'href="#p7-a"' in made and 'x="1.23"' in made
    assert "metadata" not in made and "xmlns" not in made and "width" not in made and "height" not in made


def test_spans():
    assert [soak_report.span(seconds) for seconds in (45, 600, 28800)] == ["45 s", "10 min", "8.0 h"]
    assert measure.SCHEMA == 1
