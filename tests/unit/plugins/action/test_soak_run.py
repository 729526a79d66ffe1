# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pathlib
import re

from ansible_collections.gpufleet.llm.plugins.action import soak_run
from ansible_collections.gpufleet.llm.plugins.module_utils import _soak


def test_the_archive_holds_every_module_that_the_program_imports():
    source = pathlib.Path(_soak.__file__).parent
    found, todo = set(), ["_soak"]
    while todo:
        name = todo.pop()
        found.add(name)
        for line in re.findall(r"^\s*from \. import (.+)$", (source / f"{name}.py").read_text(encoding="utf-8"), re.MULTILINE):
            todo += [one for one in re.findall(r"\b(_\w+)\b(?! as)|\b(_\w+) as", line) for one in one if one and one not in found]
    assert found == set(soak_run.MODULES)
