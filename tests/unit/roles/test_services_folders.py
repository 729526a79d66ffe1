# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""No role has root write, own or remove anything by path in a folder that a service owns."""

from __future__ import annotations

import pathlib

import pytest
import yaml

ROLES = pathlib.Path(__file__).resolve().parents[3] / "roles"
WRITERS = ("file", "copy", "template", "unarchive", "get_url", "lineinfile", "blockinfile", "replace", "assemble", "acl", "tempfile")
# What names a place in a folder that a service owns, in any role.
SERVICES = ("ollama_home", "ollama_models_dir", "open_webui_data_dir", "__vram_guard_state_dir", "__open_webui_retention_state_dir")


def tasks(items):
    for item in items or []:
        yield item
        for part in ("block", "rescue", "always"):
            yield from tasks(item.get(part))


def writers():
    for path in sorted(ROLES.glob("*/*/*.yml")):
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
        if path.parent.name in ("tasks", "handlers"):
            for task in tasks(found):
                for name in WRITERS:
                    if f"ansible.builtin.{name}" in task:
                        yield pytest.param(task[f"ansible.builtin.{name}"], id=f"{path.parents[1].name}/{path.name}: {task['name']}")


@pytest.mark.parametrize("task", list(writers()))
def test_root_writes_as_root_and_in_its_own_folders(task):
    assert task.get("owner", "root") == "root", "a folder of a service's is the module service_folder's work"
    place = str(task.get("path", task.get("dest", "")))
    assert not any(name in place for name in SERVICES), "root follows a path that a service can change"


def test_there_are_such_tasks():
    assert len(list(writers())) > 60
