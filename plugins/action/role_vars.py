# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of gpufleet.llm.role_vars: hold the host's variables against a role's options and their bounds."""

from __future__ import annotations

import difflib

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.llm.plugins.plugin_utils import role_options


class ActionModule(ActionBase):
    """Runs on the controller; never opens a connection to the host."""

    _VALID_ARGS = frozenset(("role", "others", "bounds"))
    TRANSFERS_FILES = False

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        args = self.validate_argument_spec(
            argument_spec={
                "role": {"type": "str", "required": True},
                "others": {"type": "list", "elements": "str", "default": []},
                "bounds": {"type": "dict", "default": {}},
            }
        )[1]
        role, variables = args["role"], task_vars or {}
        try:
            known = role_options.options(self._loader, role)
        except role_options.RoleError as error:
            raise AnsibleActionFail(str(error)) from error
        unknown = _unknown(role, variables, args["others"], known)
        problems = [_sentence(name, known, role) for name in unknown]
        for name, bound in args["bounds"].items():
            if name in variables:
                value = self._templar.template(variables[name]) if self._templar else variables[name]
                problems.append(role_options.bound_problem(name, value, bound))
        problems = [one for one in problems if one]
        result.update(changed=False, unknown=unknown)
        if problems:
            result["failed"] = True
            result["msg"] = " ".join([*problems, "Nothing was changed."])
        return result


def _unknown(role, variables, others, known):
    """Variables that begin like the role's and are neither options nor facts that it publishes."""
    # ROLE_found_X: what it found on the host; ROLE_owned: what it owns there.
    longer = (f"{role}_found_", f"{role}_owned", *(f"{name}_" for name in others))
    return sorted(name for name in variables if name.startswith(f"{role}_") and not name.startswith(longer) and name not in known)


def _sentence(name, known, role):
    """What was found, what was wanted, what to do."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"`ansible-doc -t role gpufleet.llm.{role}` lists them."
    return f"Unknown variable {name}: the role {role} has no such option; {hint}"
