# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fault catalogue and its record, as far as they can be judged without a lab host."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).resolve().parents[3] / "lab"
FAULTS = sorted(path for path in (LAB / "faults").iterdir() if path.is_file() and path.stat().st_mode & stat.S_IXUSR)
WANTED = {
    "runner-killed", "runner-hung", "server-killed", "card-lost", "card-too-small", "second-tenant", "other-num-ctx", "registry-down", "disk-full",
    "trapped-vram", "leak", "stuck-stopping",
}  # fmt: skip
DOCKER = """#!/bin/sh
# Stands in for docker: says what it was asked for, and what the test wants the host to say.
cat > "$LOG.$$" < /dev/stdin
printf '%s\\n' "$*" >> "$LOG"
case "$*" in *lab-faults.json*cat*|*"cat \\$1 2>/dev/null"*) printf '{}' ;; esac
exit "${ENDS:-0}"
"""


@pytest.fixture(name="docker")
def stand_in_for_docker(tmp_path):
    """Return (environment, reader of what was asked of docker)."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER, encoding="utf-8")
    program.chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    env = dict(os.environ, PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}", LOG=str(log), LAB_CONTAINER="box", PYTHONDONTWRITEBYTECODE="1")
    return env, lambda: log.read_text(encoding="utf-8")


def call(fault, env, *words):
    """Run a fault as the lab does."""
    return subprocess.run([str(LAB / "faults" / fault), *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False)


def test_the_catalogue_is_whole():
    assert {path.name for path in FAULTS} >= WANTED


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path.name)
def test_a_fault_says_what_it_does_in_its_second_line(path):
    assert len(path.read_text(encoding="utf-8").splitlines()[1].lstrip("# ")) > 20


@pytest.mark.parametrize("path", FAULTS, ids=lambda path: path.name)
def test_a_fault_knows_two_verbs(path, docker):
    env, asked = docker
    done = call(path.name, env, "break")
    assert done.returncode == 1 and "inject" in done.stderr and "heal" in done.stderr
    assert asked() == "", "nothing is done for a verb that there is not"


@pytest.mark.parametrize("fault", ["trapped-vram", "leak", "stuck-stopping"])
def test_faults_of_the_stand_in_are_refused_on_the_real_server(fault, docker):
    env, asked = docker
    done = call(fault, dict(env, LAB_SERVER="real"), "inject")
    assert done.returncode == 1 and "stand-in alone" in done.stderr
    assert asked() == ""


@pytest.mark.parametrize("fault,word", [("second-tenant", "much"), ("second-tenant", "-5"), ("leak", "0")])
def test_an_impossible_size_is_refused(fault, word, docker):
    env, asked = docker
    done = call(fault, dict(env, LAB_SERVER="standin"), "inject", word)
    assert done.returncode == 1 and "positive number" in done.stderr
    assert asked() == ""


def test_a_host_that_fails_is_quoted(docker):
    env, _asked = docker
    done = call("registry-down", dict(env, ENDS="7"), "inject")
    assert done.returncode == 1 and "box: ended with 7" in done.stderr


def test_without_a_container_nothing_is_touched(docker):
    env, asked = docker
    env = {key: value for key, value in env.items() if key != "LAB_CONTAINER"}
    done = call("second-tenant", env, "inject")
    assert done.returncode == 1 and "lab fault" in done.stderr
    assert asked() == ""


def test_a_tenant_shows_in_nvml_and_to_the_engine(docker):
    env, asked = docker
    assert call("second-tenant", dict(env, LAB_SERVER="real"), "inject", "2048").returncode == 0
    assert "lab_card.py hold $1 sh 2048" in asked()
    assert "/etc/lab-gpu/$1" in asked() and "0 keep 2048" in asked()


def recorder():
    """Return record_faults as a module."""
    loader = importlib.machinery.SourceFileLoader("lab_record_faults", str(LAB / "real" / "record_faults"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    before, path = sys.dont_write_bytecode, list(sys.path)
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode, sys.path[:] = before, path
    return module


def test_the_table_in_the_guide_is_that_of_the_data():
    root = LAB.parent
    records = json.loads((root / "tests/measurements/faults.json").read_text(encoding="utf-8"))
    assert {one["fault"] for one in records} >= WANTED
    assert (root / "docs/measurements/faults.md").read_text(encoding="utf-8") == recorder().table(records)
