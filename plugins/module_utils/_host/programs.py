# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Programs that run on a host without Ansible: whole packages of ``module_utils``, copied as one folder.

``sources()`` runs on the controller, ``difference()`` and ``install()`` on the host.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import stat
import subprocess
import tempfile

from .units import Run

PACKAGE = "gpufleet_llm"

# The packages, and modules beside them, that a program imports, directly or through another one.
PACKAGES = {
    "vram_guard": ("_guard", "_gpu", "_host", "_stats.py"),
    "open_webui_retention": ("_open_webui", "_ollama", "_host", "_http.py"),
    "soak": ("_soak", "_guard", "_gpu", "_host", "_ollama", "_http.py", "_stats.py"),
}


class ProgramError(Exception):
    """A program that does not exist, or a folder that cannot be replaced; the text is for the operator."""


def sources(name: str, root: str | None = None) -> dict[str, str]:
    """{path below the program's folder: text} of the program *name*, with the package that holds its packages.

    *root* is the folder of ``module_utils``; None is this collection's own.
    """
    if name not in PACKAGES:
        raise ProgramError(f"There is no program '{name}'; it has to be one of {', '.join(sorted(PACKAGES))}.")
    root = root or os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    found = {f"{PACKAGE}/__init__.py": ""}
    for package in PACKAGES[name]:
        for path in _python_files(os.path.join(root, package)):
            with open(path, encoding="utf-8") as handle:
                found[f"{PACKAGE}/{os.path.relpath(path, root)}"] = handle.read()
    return found


def _python_files(place: str) -> list[str]:
    """The Python files of a package, or the one that is a module by itself."""
    if place.endswith(".py"):
        return [place]
    return [
        os.path.join(folder, one) for folder, _folders, names in os.walk(place) for one in names if one.endswith(".py")
    ]


def digest(files: dict[str, str]) -> str:
    """SHA-256 over paths and texts, as hexadecimal digits: the same for the same program."""
    made = hashlib.sha256()
    for path in sorted(files):
        content = files[path].encode()
        made.update(f"{path}\0{len(content)}\0".encode() + content)
    return made.hexdigest()


def installed(folder: str) -> dict[str, str]:
    """What is in *folder*: {path: text} without compiled files; empty where there is no folder."""
    found = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [one for one in folders if one != "__pycache__"]
        for one in names:
            path = os.path.join(place, one)
            with open(path, encoding="utf-8", errors="replace") as handle:
                found[os.path.relpath(path, folder)] = handle.read()
    return found


def difference(folder: str, files: dict[str, str]) -> list[str]:
    """Paths below *folder* that are missing, differ, do not belong there, or that others than root can write."""
    there = installed(folder)
    wrong = {path for path in set(there) | set(files) if there.get(path) != files.get(path)}
    return sorted(wrong | {path for path in there if not _is_roots(os.path.join(folder, path))})


def _is_roots(path: str) -> bool:
    info = os.lstat(path)
    return stat.S_ISREG(info.st_mode) and info.st_uid == os.geteuid() and stat.S_IMODE(info.st_mode) == 0o644


def install(folder: str, files: dict[str, str], python: str, run: Run = subprocess.run) -> None:
    """Replace *folder* by *files*, compiled by the interpreter *python*.

    The previous folder stays until the new one is complete. Raises ProgramError and OSError.
    """
    parent = os.path.dirname(os.path.abspath(folder))
    os.makedirs(parent, mode=0o755, exist_ok=True)
    new = tempfile.mkdtemp(prefix=f".{os.path.basename(folder)}.", dir=parent)
    previous = f"{new}.previous"
    try:
        os.chmod(new, 0o755)
        for path, text in files.items():
            target = os.path.join(new, path)
            os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
            with open(target, "w", encoding="utf-8") as handle:
                handle.write(text)
            os.chmod(target, 0o644)
        done = run(
            [python, "-m", "compileall", "-q", "-s", new, "-p", folder, new],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ProgramError(f"{python} does not compile the program: {(done.stdout + done.stderr).strip()[-400:]}")
        if os.path.lexists(folder):
            os.rename(folder, previous)
        os.rename(new, folder)
    finally:
        if not os.path.lexists(folder) and os.path.lexists(previous):
            os.rename(previous, folder)
        for rest in (new, previous):
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(rest)
