# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of gpufleet.llm.program: read the program's files from this collection and hand them to the module."""

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.llm.plugins.module_utils._host import programs


class ActionModule(ActionBase):
    """One module call, whatever the number of files."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_diff = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        args = dict(self._task.args)
        try:
            args["files"] = programs.sources(args.get("name"))
        except programs.ProgramError as error:
            raise AnsibleActionFail(str(error)) from error
        result.update(self._execute_module(module_name="gpufleet.llm.program", module_args=args, task_vars=task_vars))
        result.get("invocation", {}).get("module_args", {}).pop("files", None)
        return result
