# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Long scenarios: what counts as green, and what makes one run again."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def long(tmp_path):
    """tools/long in a repository of its own: scenarios one and two, and a scenario program that fails where molecule/NAME/red is."""
    path = str(ROOT / "tools/long")
    loader = importlib.machinery.SourceFileLoader("long", path)
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader("long", loader))
    loader.exec_module(module)
    for name, text in {
        "molecule/long": "one\ntwo\n",
        "molecule/one/inputs": "# what it depends on\nroles/a\n",
        "molecule/two/inputs": "roles/b\n",
        "roles/a/x": "1",
        "roles/b/x": "1",
        "other": "1",
        "tools/test": '#!/bin/sh\necho "$LAB_SERVER" >> ran-$2; test ! -e molecule/$2/red\n',
        ".gitignore": ".cache\nran-*\nscenarios.json\n",
    }.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    (tmp_path / "tools/test").chmod(0o755)
    module.ROOT, module.RECORDS, module.COMMON, module.SERVERS = tmp_path, tmp_path / "scenarios.json", ["tools"], {"two": ["standin", "real"]}
    module.commit = lambda: [git(tmp_path, "add", "-A"), git(tmp_path, "-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-qm", "x")]
    git(tmp_path, "init", "-q")
    module.commit()
    return module


def git(folder, *words):
    subprocess.run(["git", *words], cwd=folder, check=True)


def said(module):
    return {f"{name} {server}": text for name, server, text, _record in module.rows()}


def test_each_scenario_runs_on_its_servers_once_until_its_inputs_change(long):
    assert set(said(long).values()) == {"never run"}
    assert long.main(["run"]) == 0
    assert said(long) == {"one standin": "green", "two standin": "green", "two real": "green"}
    assert sorted((long.ROOT / "ran-two").read_text().split()) == ["real", "standin"]
    (long.ROOT / "other").write_text("2")
    (long.ROOT / "roles/a/x").write_text("2")
    long.commit()
    assert said(long) == {"one standin": "green before 1 changed files (roles/a/x)", "two standin": "green", "two real": "green"}
    assert long.main(["status"]) == 1
    assert long.main(["run"]) == 0
    assert (long.ROOT / "ran-one").read_text() == "standin\nstandin\n"
    assert len((long.ROOT / "ran-two").read_text().split()) == 2
    assert long.main(["status"]) == 0


def test_a_failure_is_red_and_keeps_the_last_green_commit(long):
    long.main(["run", "one"])
    green = json.loads(long.RECORDS.read_text())["one on standin"]["green"]
    (long.ROOT / "molecule/one/red").write_text("")
    long.commit()
    assert long.main(["run", "one"]) == 1
    record = json.loads(long.RECORDS.read_text())["one on standin"]
    assert (record["result"], record["green"]) == ("red", green)
    assert said(long)["one standin"].startswith("red at ")


def test_a_run_on_inputs_that_are_not_committed_is_not_green(long):
    (long.ROOT / "roles/a/x").write_text("2")
    assert long.main(["run", "one"]) == 1
    assert json.loads(long.RECORDS.read_text())["one on standin"]["dirty"] == ["roles/a/x"]
    assert said(long)["one standin"].startswith("dirty at ")


def test_a_wrong_name_and_a_wrong_path_are_told(long):
    with pytest.raises(SystemExit, match="No long scenario is called three"):
        long.main(["run", "three"])
    (long.ROOT / "molecule/one/inputs").write_text("roles/c\n")
    with pytest.raises(SystemExit, match="names roles/c, which is no path"):
        long.inputs("one")


def test_every_long_scenario_of_this_repository_says_what_it_depends_on():
    names = (ROOT / "molecule/long").read_text().split()
    assert len(names) > 10
    for name in names:
        for line in (ROOT / "molecule" / name / "inputs").read_text().splitlines():
            assert line.startswith("#") or (ROOT / line).exists(), (name, line)
