# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What playbooks print can be read under Ansible's default callback, which shows a text of several lines as one line with ``\\n`` in it."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]
PLAYBOOKS = sorted((ROOT / "playbooks").rglob("*.yml"))


def tasks_below(node):
    """Every dict of a playbook, plays, blocks and tasks alike."""
    if isinstance(node, list):
        for item in node:
            yield from tasks_below(item)
    elif isinstance(node, dict):
        yield node
        for value in node.values():
            yield from tasks_below(value)


@pytest.mark.parametrize("path", PLAYBOOKS, ids=lambda path: path.stem)
def test_a_table_is_shown_as_a_list_of_lines(path):
    for task in tasks_below(yaml.safe_load(path.read_text(encoding="utf-8"))):
        shown = str((task.get("ansible.builtin.debug") or {}).get("msg", ""))
        assert "join('\\n')" not in shown, task["name"]
        assert "ansible.builtin.template" not in shown or "splitlines()" in shown, task["name"]


@pytest.mark.slow
def test_the_plan_is_readable_with_the_default_callback(tmp_path):
    header = tmp_path / "qwen3.gguf"
    subprocess.run([sys.executable, ROOT / "lab/real/shapes.py", "write", "qwen3-14b-q4_K_M", header], check=True, capture_output=True)
    (tmp_path / "ansible.cfg").write_text(f"[defaults]\ncollections_path = {ROOT}/.collections\n", encoding="utf-8")
    ran = subprocess.run(
        ["ansible-playbook", "gpufleet.llm.plan", "-e", f'{{"plan_source": {{"gguf": "{header}"}}, "plan_page": ""}}'],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "ANSIBLE_CONFIG": str(tmp_path / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        },
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "\\n" not in ran.stdout
    row = next(line for line in ran.stdout.splitlines() if "40960" in line and "q8_0" not in line)
    assert "fits" in row
