# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Limits that keep files readable: 500 lines a file, 60 a function; and no word of what is not in the repository.

ruff counts statements, not lines.
"""

from __future__ import annotations

import ast
import pathlib
import re

REPO = pathlib.Path(__file__).resolve().parents[2]
FILE_LINES, FUNCTION_LINES = 500, 60
PLACES = ("plugins", "roles/*/files", "lab")
KINDS = {".py", ".js", ".c", ".sh", ""}


def sources():
    """{path below the repository: text} of the code that the limits hold."""
    found = {}
    for place in PLACES:
        for path in (path for folder in REPO.glob(place) for path in folder.rglob("*")):
            if path.is_file() and not path.is_symlink() and path.suffix in KINDS and "__pycache__" not in path.parts:
                found[path.relative_to(REPO).as_posix()] = path.read_text(encoding="utf-8", errors="replace")
    return found


def is_python(path, text):
    return path.endswith(".py") or re.match(r"#!.*python", text) is not None


def functions(path, text):
    """{"path::function": lines} of a Python file, from `def` to the last line."""
    return {
        f"{path}::{node.name}": node.end_lineno - node.lineno + 1
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }


SOURCES = sources()


def too_long():
    """{"file" or "file::function": lines} of what exceeds its limit."""
    found = {path: text.count("\n") for path, text in SOURCES.items() if text.count("\n") > FILE_LINES}
    for path, text in SOURCES.items():
        if is_python(path, text):
            found.update({name: lines for name, lines in functions(path, text).items() if lines > FUNCTION_LINES})
    return found


def test_files_and_functions_are_short_enough():
    assert len(SOURCES) > 150
    assert too_long() == {}


def test_the_limits_are_counted():
    long = "def f():\n" + "    pass\n" * FUNCTION_LINES
    assert functions("a.py", long) == {"a.py::f": FUNCTION_LINES + 1}
    assert is_python("lab/lab", "#!/usr/bin/env python3\n") and not is_python("lab/real/build.sh", "#!/bin/sh\n")


ELSEWHERE = re.compile(r"\bfacts/[a-z_]+\.md|house-style|\bissue [0-9]{1,2}\b")
PATH = re.compile(
    r"(?:(?<![\w/.{}-])|blob/main/)((?:bench|docs|inventory|lab|molecule|playbooks|plugins|requirements|roles|tests|tools)"
    r"/[\w/.-]*\w\.(?:md|py|yml|js|c|svg|txt))\b(?!\.\w)"
)
PRODUCT = ("plugins", "roles", "playbooks")
TEXTS = ("plugins", "roles", "playbooks", "lab", "molecule", "bench", "tests", "tools", "docs", "inventory")

# Named before they are there: made by a run. This list only shrinks, too.
MISSING = {"tests/integration/integration_config.yml"}
# Files of a reader's own inventory.
YOURS = re.compile(r"inventory/(hosts|group_vars/gpu_hosts/(main|vault))\.yml")


def texts():
    """[(path, text)] of all that people read or run, but this file."""
    paths = [path for place in TEXTS for path in sorted((REPO / place).rglob("*"))]
    paths += [REPO / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md") if (REPO / name).exists()]
    for path in paths:
        if path.is_file() and path != pathlib.Path(__file__).resolve() and "__pycache__" not in path.parts:
            yield path, path.read_bytes()[:400_000].decode("utf-8", "replace")


def test_nothing_refers_to_notes_outside_of_the_repository():
    found = [f"{path.relative_to(REPO)}: {match.group(0)}" for path, text in texts() for match in ELSEWHERE.finditer(text)]
    assert found == []


def test_files_that_are_named_exist():
    """From the repository's folder, or from where the name stands."""
    names = [(path, match.group(1)) for path, text in texts() for match in PATH.finditer(text)]
    assert len(names) > 100
    lost = {(str(path.relative_to(REPO)), name) for path, name in names if not any((folder / name).exists() for folder in (REPO, *path.parents))}
    assert {(path, name) for path, name in lost if name not in MISSING and not YOURS.fullmatch(name)} == set()


def test_a_setting_is_called_a_setting():
    found = [str(path.relative_to(REPO)) for path, text in texts() if path.relative_to(REPO).parts[0] in PRODUCT and "wish" in text.lower()]
    assert found == []
