# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which package of module_utils imports which: no cycle, no Ansible, the standard library only, programs complete.

docs/development/README.md draws MAY_IMPORT; a test compares the two.
"""

from __future__ import annotations

import ast
import importlib
import pathlib
import re
import sys

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._host import programs

REPO = pathlib.Path(__file__).resolve().parents[2]
ROOT = REPO / "plugins" / "module_utils"

# Lowest first: a package imports from those above it in this table only.
MAY_IMPORT = {
    "_http": set(),
    "_stats": set(),
    "_gateway": set(),
    "_host": set(),
    "_gpu": {"_host"},
    "_driver": {"_host"},
    "_ollama": {"_http"},
    "_plan": {"_gpu", "_host", "_http", "_ollama"},
    "_open_webui": {"_host", "_http", "_ollama"},
    "_guard": {"_gpu", "_host", "_stats"},
    "_soak": {"_gpu", "_guard", "_host", "_http", "_ollama", "_stats"},
    "_fleet": {"_driver", "_gpu", "_guard", "_host", "_ollama"},
}

# Imported where they are, and done without where they are not.
OPTIONAL = {"pynvml", "matplotlib"}

PLUGINS = ("action", "doc_fragments", "filter", "lookup", "modules")


def modules():
    """{dotted name below module_utils: path} of all files."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in sorted(ROOT.rglob("*.py"))}


def imports(name, path):
    """[(the module or package below module_utils, at import)] of the relative imports of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            for alias in node.names:
                full = ".".join([*base, alias.name])
                found.append((full if full in MODULES else ".".join(base), node in tree.body))
    return found


MODULES = modules()
IMPORTS = {name: imports(name, path) for name, path in MODULES.items()}


def package_of(name):
    return name.partition(".")[0]


def test_every_package_is_in_the_table():
    assert {package_of(name) for name in MODULES} == set(MAY_IMPORT)
    assert sum(len(found) for found in IMPORTS.values()) > 100


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_a_package_imports_only_what_the_table_allows(package):
    used = {(name, target) for name, found in IMPORTS.items() if package_of(name) == package for target, _early in found if package_of(target) != package}
    assert {(name, target) for name, target in used if package_of(target) not in MAY_IMPORT[package]} == set()


def test_the_table_allows_nothing_that_is_not_used():
    used = {(package_of(name), package_of(target)) for name, found in IMPORTS.items() for target, _early in found}
    assert {(package, below) for package, row in MAY_IMPORT.items() for below in row} - used == set()


def test_the_table_has_no_cycle():
    seen = set()
    for package, below in MAY_IMPORT.items():
        assert below <= seen, package
        seen.add(package)


def test_no_files_import_each_other():
    """At import, directly or through others."""
    state = {}

    def visit(name, path):
        assert state.get(name) != "open", " -> ".join([*path, name])
        if name in state:
            return
        state[name] = "open"
        for target, early in IMPORTS.get(name, ()):
            if early and target != name:
                visit(target, [*path, name])
        state[name] = "done"

    for name in MODULES:
        visit(name, [])
    assert len(state) >= len(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_a_file_imports_the_standard_library_alone(name):
    roots = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add(node.module.partition(".")[0])
    assert roots - OPTIONAL <= set(sys.stdlib_module_names)


@pytest.mark.parametrize("program", programs.PACKAGES)
def test_a_program_holds_every_package_that_its_packages_may_import(program):
    held = {package.removesuffix(".py") for package in programs.PACKAGES[program]}
    used = {package_of(target) for name, found in IMPORTS.items() if package_of(name) in held for target, _early in found}
    assert used <= held


def test_the_diagram_of_the_packages_shows_the_table():
    text = (REPO / "docs/development/README.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(r"```mermaid\n(graph [^`]*)```", text)
    drawn = {(f"_{one}", f"_{other}") for one, other in re.findall(r"^ *(\w+) --> (\w+)$", diagram, re.MULTILINE)}

    def reached(package):
        below = {other for one, other in drawn if one == package}
        return below.union(*(reached(other) for other in below))

    for package, below in MAY_IMPORT.items():
        assert below <= reached(package), package
    assert {(one, other) for one, other in drawn if other not in MAY_IMPORT[one]} == set()


@pytest.mark.parametrize("path", sorted(path.relative_to(REPO).as_posix() for kind in PLUGINS for path in (REPO / "plugins" / kind).glob("*.py")))
def test_every_plugin_finds_what_it_imports(path):
    importlib.import_module(f"ansible_collections.gpufleet.llm.{path.removesuffix('.py').replace('/', '.')}")


def test_the_map_of_questions_names_every_package_and_files_that_exist():
    """A bare `name.py` is of the package that was named last in its row."""
    text = (REPO / "docs/development/README.md").read_text(encoding="utf-8")
    rows = text.partition("In `plugins/module_utils`:")[2].partition("A package imports from")[0].splitlines()
    named = []
    for row in rows:
        folder = ""
        for place, name in re.findall(r"`((?:[\w.]+/)*)([\w.]+\.py)`", row):
            folder = place or folder
            named.append(name if name.startswith("_") else folder + name)
    lost = [name for name in named if not (ROOT / name).exists() and not (REPO / name).exists()]
    assert (lost, len(named) > 40) == ([], True)
    assert {package for package in MAY_IMPORT if not any(name.startswith(package) for name in named)} == set()
