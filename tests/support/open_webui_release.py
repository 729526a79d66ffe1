# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned release of Open WebUI: its wheel, fetched once into the cache, and the environment variables that it reads."""

from __future__ import annotations

import ast
import os
import pathlib
import subprocess
import sys
import zipfile

CACHE = pathlib.Path(os.environ.get("GPUFLEET_CACHE") or pathlib.Path.home() / ".cache" / "gpufleet") / "open_webui"
# What hands a name on to os.environ, in S/env.py and S/utils/security_headers.py of 0.12.4.
HANDED_ON = {"_int_env"}
HEADERS = "header_setters"


def wheel(release):
    """Path of the wheel, or a sentence that says why there is none."""
    found = sorted(CACHE.glob(f"open_webui-{release}-*.whl"))
    if found:
        return found[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version=3.11", "-d", CACHE]
    got = subprocess.run([*command, f"open-webui=={release}"], capture_output=True, text=True, check=False, timeout=600)
    found = sorted(CACHE.glob(f"open_webui-{release}-*.whl"))
    return found[0] if found else f"the package index gives no open-webui {release}: {got.stderr.strip().splitlines()[-1:]}"


def names(path):
    """({name: {file:line}} that the package's Python files read, [places that read a name which is not written there])."""
    read, computed = {}, []
    with zipfile.ZipFile(path) as archive:
        for file in archive.namelist():
            if file.startswith("open_webui/") and file.endswith(".py"):
                for node in ast.walk(ast.parse(archive.read(file))):
                    for name in _read_by(node):
                        if isinstance(name, str):
                            read.setdefault(name, set()).add(f"{file}:{node.lineno}")
                        else:
                            computed.append(f"{file}: {ast.unparse(name)}")
    return read, computed


def _read_by(node):
    """Names that one node of a program reads from the environment: text, or the expression where it is computed."""
    asked = []
    if isinstance(node, ast.Call) and node.args:
        called = node.func
        method = called.attr if isinstance(called, ast.Attribute) else ""
        if (
            method == "getenv"
            or (method in ("get", "pop", "setdefault") and _is_environ(called.value))
            or (isinstance(called, ast.Name) and called.id in {"getenv", *HANDED_ON})
        ):
            asked = [node.args[0]]
    elif isinstance(node, ast.Subscript) and _is_environ(node.value):
        asked = [node.slice]
    elif isinstance(node, ast.Compare) and any(_is_environ(one) for one in node.comparators):
        asked = [node.left]
    elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict) and any(isinstance(one, ast.Name) and one.id == HEADERS for one in node.targets):
        asked = node.value.keys
    return [one.value if isinstance(one, ast.Constant) else one for one in asked]


def _is_environ(node):
    return isinstance(node, (ast.Attribute, ast.Name)) and (getattr(node, "attr", None) or getattr(node, "id", None)) == "environ"
