#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: fleet_check
short_description: Check whether a host is still as the roles made it
version_added: 1.0.0
description:
  - Reads driver, cards, models, memory against the serving plan, units, ports, sandboxes, the guard's state file, certificates, backups
    and every managed file in one round trip, and judges them.
  - Changes nothing and loads nothing.
  - Use the playbook C(gpufleet.llm.verify), which builds O(declared) from the roles.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes.info
options:
  host:
    description: Name of the host in the report.
    type: str
    required: true
  declared:
    description: The declared state. It has the keys of the docstring of C(plugins/module_utils/_fleet/observe.py).
    type: dict
    required: true
  python:
    description: Python with nvidia-ml-py on the host.
    type: path
    default: /opt/gpufleet/venv/bin/python
"""

EXAMPLES = r"""
- name: Check the host
  gpufleet.llm.fleet_check:
    host: "{{ inventory_hostname }}"
    declared: "{{ __verify_declared }}"
  register: __verify_state
"""

RETURN = r"""
verified:
  description:
    - C(host), C(verdict) (C(pass) or C(fail)), C(verdicts) with C(name), C(state), C(found), C(wanted) and C(text), C(facts), and C(digests)
      of the models.
  type: dict
  returned: always
  sample:
    host: gpu01
    verdict: pass
    verdicts: [{name: driver, state: pass, found: 580.126.09, wanted: "loaded, library and card agree", text: ""}]
    facts: {Ollama: 0.32.15}
    digests: {"qwen3:14b": bdbd181c33f2}
"""

import os
import sys

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, respawn_module

from ansible_collections.gpufleet.llm.plugins.module_utils._driver import versions
from ansible_collections.gpufleet.llm.plugins.module_utils._fleet import judge, observe


def main():
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "declared": {"type": "dict", "required": True},
            "python": {"type": "path", "default": "/opt/gpufleet/venv/bin/python"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    if not has_respawned() and os.access(asked["python"], os.X_OK) and asked["python"] != sys.executable:
        respawn_module(asked["python"])
    try:
        state = observe.observe(asked["declared"])
    except versions.DriverError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, verified=judge.judge(asked["host"], state, asked["declared"]))


if __name__ == "__main__":
    main()
