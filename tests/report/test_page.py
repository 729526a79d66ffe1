# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The report's page with its plots, as matplotlib draws them: valid HTML, nothing from outside, small. Runs in .venv-report."""

from __future__ import annotations

import pathlib
import re
import sys

import html5lib
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / ".collections"))
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import plots, report_html
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import report as soak_report
from ansible_collections.gpufleet.llm.tests.unit.plugins import soak_runs


@pytest.fixture(scope="module")
def page():
    """Eight hours of a healthy host, and of one with a peak of a single sample."""
    peak = soak_runs.run(28800, held=lambda t: soak_runs.PLANNED + (6000 if t == 17777 else t % 7), pace_s=20)
    document = soak_report.soak_document([("gpu1", peak), ("gpu2", soak_runs.run(600, cards=2)), ("gpu3", soak_runs.run(600, cards=0))])
    return report_html.page(document, plots.plots(document))


def test_it_is_valid_html(page):
    parser = html5lib.HTMLParser(strict=True)
    parser.parse(page)
    assert parser.errors == []


def test_every_id_is_there_once_and_every_reference_has_its_id(page):
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', page)) <= set(ids)


def test_it_loads_nothing(page):
    assert not re.search(r'(?:src|href)="(?!#)|@import|url\((?!#)|<script|<link', page)


def test_eight_hours_are_small(page):
    assert len(page.encode()) < 2_000_000
    assert page.count("<svg") == 4 + 6 + 3


def test_the_peak_of_one_sample_is_drawn():
    flat = soak_report.soak_document([("gpu1", soak_runs.run(1800))])
    peak = soak_report.soak_document([("gpu1", soak_runs.run(1800, held=lambda t: soak_runs.PLANNED + (6000 if t == 777 else 0)))])
    one, other = (plots.plots(document)["gpu1"][0][1] for document in (flat, peak))
    assert one != other
