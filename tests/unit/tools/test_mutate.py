# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mutation run: what is sampled, what counts, what is called equivalent."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import pathlib
import sqlite3

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
SOURCE = "def half(number: int | None, by=2) -> int | None:\n    found: int | str = number // by\n    return found\n"


@pytest.fixture
def mutate(tmp_path):
    loader = importlib.machinery.SourceFileLoader("mutate", str(ROOT / "tools/mutate"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutate", loader))
    loader.exec_module(module)
    for name, text in {
        "pkg/half.py": SOURCE,
        "pkg/__init__.py": "",
        "tests/mutation/packages.yml": "half: {paths: [pkg/*.py], tests: [pkg/half.py], least: 50}\n",
        "tests/mutation/equivalent.yml": "- {path: pkg/*.py, operator: Number*, line: return found, reason: it is the same}\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    module.ROOT, module.CACHE = tmp_path, tmp_path / "cache"
    return module


def test_annotations_are_found(mutate):
    assert [(first[0], last[0]) for first, last in mutate.annotated(mutate.ROOT / "pkg/half.py")] == [(1, 1), (2, 2), (1, 1)]


def test_a_session_is_another_one_where_a_file_or_the_sample_differs(mutate):
    entry = mutate.packages()["half"]
    first = mutate.session_of("half", entry, 1, 60)
    assert first == mutate.session_of("half", entry, 1, 60)
    assert len({first, mutate.session_of("half", entry, 2, 60), mutate.session_of("half", entry, 1, 61)}) == 3
    (mutate.ROOT / "pkg/half.py").write_text(SOURCE + "\n")
    assert mutate.session_of("half", entry, 1, 60) != first


def test_survivors_that_are_called_equivalent_do_not_count(mutate, capsys):
    (mutate.CACHE / "last").mkdir(parents=True)
    (mutate.CACHE / "last/half").write_text(json.dumps({"session": "s", "seed": 1, "sample": 9}))
    with sqlite3.connect(mutate.CACHE / "s") as database:
        database.execute("create table mutation_specs (job_id, module_path, operator_name, start_pos_row)")
        database.execute("create table work_results (job_id, worker_outcome, test_outcome, diff)")
        for job, (operator, row, outcome) in enumerate(
            [("core/AddNot", 2, "KILLED"), ("core/NumberReplacer", 3, "SURVIVED"), ("core/NumberReplacer", 2, "SURVIVED"), ("core/Break", 3, "INCOMPETENT")]
        ):
            database.execute("insert into mutation_specs values (?, 'pkg/half.py', ?, ?)", (job, operator, row))
            database.execute("insert into work_results values (?, 'NORMAL', ?, 'the difference')", (job, outcome))
    assert mutate.score("half") == {"mistakes": 4, "noticed": 2, "equivalent": 1, "survived": 1, "percent": pytest.approx(200 / 3)}
    assert mutate.survivors([]) == 0
    assert capsys.readouterr().out == "== half: pkg/half.py:2 core/NumberReplacer\nthe difference\n"
    assert mutate.report(write=False) == 0
    (mutate.ROOT / "tests/mutation/packages.yml").write_text("half: {paths: [pkg/*.py], tests: [pkg/half.py], least: 67}\n")
    assert mutate.report(write=False) == 1


def test_a_glob_that_names_nothing_is_told(mutate):
    with pytest.raises(SystemExit, match=r"half nowhere/\*\.py names no file"):
        mutate.expand(["nowhere/*.py"], "half")


def test_what_this_repository_mutates_is_there():
    loader = importlib.machinery.SourceFileLoader("mutate", str(ROOT / "tools/mutate"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("mutate", loader))
    loader.exec_module(module)
    for name, entry in module.packages().items():
        assert module.expand(entry["paths"], name) and module.expand(entry["tests"], name)
    for one in module.equivalents():
        assert any(one["line"] in path.read_text() for path in ROOT.glob(one["path"])), one
