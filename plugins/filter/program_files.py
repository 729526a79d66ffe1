# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filter gpufleet.llm.program_files."""

from __future__ import annotations

import hashlib

from ansible.errors import AnsibleFilterError

from ansible_collections.gpufleet.llm.plugins.module_utils._host import programs


def program_files(name):
    """{path: SHA-256} of a program's files; see DOCUMENTATION beside this file."""
    try:
        return {path: hashlib.sha256(text.encode()).hexdigest() for path, text in sorted(programs.sources(name).items())}
    except programs.ProgramError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    """Filters of gpufleet.llm."""

    def filters(self):
        return {"program_files": program_files}
