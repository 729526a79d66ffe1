# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of gpufleet.llm.role_vars: compare the host's variables with a role's argument_specs."""

from __future__ import annotations

import difflib
import os

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Runs on the controller; never opens a connection to the host."""

    _VALID_ARGS = frozenset(("role", "others"))
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        args = self.validate_argument_spec(
            argument_spec={
                "role": {"type": "str", "required": True},
                "others": {"type": "list", "elements": "str", "default": []},
            }
        )[1]
        role, others = args["role"], args["others"]
        known = self._options(role)
        longer = tuple(f"{name}_" for name in others)
        unknown = sorted(name for name in (task_vars or {}) if name.startswith(f"{role}_") and not name.startswith(longer) and name not in known)
        result.update(changed=False, unknown=unknown)
        if unknown:
            result["failed"] = True
            result["msg"] = " ".join(_sentence(name, known, role) for name in unknown)
        return result

    def _options(self, role):
        """Names that meta/argument_specs.yml of the role documents, over all its entry points."""
        roles_dir = os.path.join(os.path.dirname(__file__), "..", "..", "roles")
        path = os.path.join(roles_dir, role, "meta", "argument_specs.yml")
        if not os.path.isfile(path):
            raise AnsibleActionFail(f"gpufleet.llm has no role '{role}' with argument specs; give the name of one of its roles.")
        specs = self._loader.load_from_file(path, cache="all")["argument_specs"]
        return {name for entry in specs.values() for name in entry.get("options", {})}


def _sentence(name, known, role):
    """What was found, what was wanted, what to do."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"`ansible-doc -t role gpufleet.llm.{role}` lists them."
    return f"Unknown variable {name}: the role {role} has no such option; {hint}"
