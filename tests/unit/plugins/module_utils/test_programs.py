# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Programs that run without Ansible: complete, installed as a whole, and the previous one kept until then."""

from __future__ import annotations

import ast
import os
import pathlib
import stat
import subprocess
import sys

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._host import programs


def imported(path, text):
    """Paths without .py that a file imports relatively: the package or module, and what may be a name in it."""
    package = pathlib.PurePosixPath(path).parent
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package
            for _step in range(node.level - 1):
                base = base.parent
            base = base.joinpath(*(node.module or "").split(".")) if node.module else base
            for alias in node.names:
                yield base, base / alias.name


@pytest.mark.parametrize("name", sorted(programs.PACKAGES))
def test_a_program_holds_every_file_that_it_imports(name):
    files = programs.sources(name)
    checked = 0
    for path, text in files.items():
        assert "ansible_collections" not in text and "import ansible" not in text, path
        for base, full in imported(path, text):
            checked += 1
            assert f"{full}.py" in files or f"{full}/__init__.py" in files or f"{base}.py" in files, (path, str(full))
    assert checked > 0


def test_an_unknown_program_is_named():
    with pytest.raises(programs.ProgramError, match="no program 'other'; it has to be one of open_webui_retention, soak, vram_guard"):
        programs.sources("other")


FILES = {"gpufleet_llm/__init__.py": "", "gpufleet_llm/_one/__init__.py": "", "gpufleet_llm/_one/two.py": "def three():\n    return 3\n"}


def test_it_is_installed_as_a_whole_and_then_as_declared(tmp_path):
    folder = tmp_path / "lib" / "program"
    assert programs.difference(str(folder), FILES) == sorted(FILES)
    programs.install(str(folder), FILES, sys.executable)
    assert programs.difference(str(folder), FILES) == []
    assert programs.installed(str(folder)) == FILES
    assert list(folder.rglob("two.*.pyc"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    code = "import sys; sys.path.insert(0, sys.argv[1]); from gpufleet_llm._one import two; print(two.three())"
    assert subprocess.run([sys.executable, "-ISc", code, str(folder)], capture_output=True, text=True, check=True).stdout == "3\n"


@pytest.mark.parametrize("change", ["text", "missing", "foreign", "mode", "link"])
def test_each_kind_of_difference_is_found_and_repaired(tmp_path, change):
    folder = tmp_path / "program"
    programs.install(str(folder), FILES, sys.executable)
    path = folder / "gpufleet_llm" / "_one" / "two.py"
    if change == "text":
        path.write_text("def three():\n    return 4\n")
    elif change == "missing":
        path.unlink()
    elif change == "foreign":
        path = path.with_name("four.py")
        path.write_text("")
        path.chmod(0o644)
    elif change == "mode":
        path.chmod(0o666)
    else:
        other = tmp_path / "elsewhere.py"
        other.write_text(FILES["gpufleet_llm/_one/two.py"])
        path.unlink()
        path.symlink_to(other)
    assert programs.difference(str(folder), FILES) == [str(path.relative_to(folder))]
    programs.install(str(folder), FILES, sys.executable)
    assert programs.difference(str(folder), FILES) == []


def test_a_program_that_does_not_compile_leaves_the_previous_one(tmp_path):
    folder = tmp_path / "program"
    programs.install(str(folder), FILES, sys.executable)
    with pytest.raises(programs.ProgramError, match="does not compile the program"):
        programs.install(str(folder), {**FILES, "gpufleet_llm/_one/two.py": "def three(:\n"}, sys.executable)
    assert programs.difference(str(folder), FILES) == []
    assert os.listdir(tmp_path) == ["program"]
