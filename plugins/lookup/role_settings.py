# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Lookup gpufleet.llm.role_settings."""

from __future__ import annotations

DOCUMENTATION = r"""
name: role_settings
author: The gpufleet.llm maintainers (@gpufleet)
version_added: 1.0.0
short_description: Fingerprint of the settings of a role
description:
  - A text that differs when a variable of a role of this collection differs.
  - The roles use it to repeat their preflight when a setting has changed within a play.
options:
  _terms:
    description: Short names of roles of this collection.
    type: list
    elements: str
    required: true
"""

EXAMPLES = r"""
- name: Show the fingerprint of what is asked of Ollama
  ansible.builtin.debug:
    msg: "{{ lookup('gpufleet.llm.role_settings', 'ollama') }}"
"""

RETURN = r"""
_raw:
  description: One fingerprint for each role.
  type: list
  elements: str
"""

from ansible.errors import AnsibleLookupError
from ansible.plugins.lookup import LookupBase

from ansible_collections.gpufleet.llm.plugins.plugin_utils import role_options


class LookupModule(LookupBase):
    """Reads variables of the task that asks; changes nothing."""

    def run(self, terms, variables=None, **kwargs):
        self.set_options(var_options=variables, direct=kwargs)
        variables = variables or {}
        try:
            names = [role_options.options(self._loader, role) for role in terms]
        except role_options.RoleError as error:
            raise AnsibleLookupError(str(error)) from error
        return [role_options.fingerprint({name: self._templar.template(variables[name]) for name in sorted(known) if name in variables}) for known in names]
