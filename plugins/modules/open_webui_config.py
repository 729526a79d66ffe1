#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_config
short_description: Manage settings of a running Open WebUI
version_added: 1.0.0
description:
  - Compares settings by their dotted keys and changes those that differ. All others stay as they are.
  - With C(ENABLE_PERSISTENT_CONFIG=false) a change lasts until the service restarts, which then uses its environment.
  - Returns only the requested keys, because the complete list contains secrets.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
  - gpufleet.llm.open_webui
attributes:
  check_mode:
    support: full
    details: If Open WebUI does not answer, for example on a fresh host, nothing is predicted.
  diff_mode:
    support: full
options:
  config:
    description: >-
      Dotted keys and their values, as in C(GET /api/v1/configs/export). A key that the server does not have
      is refused. The texts V(true) and V(false) count as booleans if the server has a boolean.
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Keep sign-up closed
  gpufleet.llm.open_webui_config:
    token: "{{ __session.token }}"
    config:
      ui.enable_signup: false
"""

RETURN = r"""
differences:
  description: Keys that were or would be changed.
  type: list
  elements: str
  returned: always
  sample: [ui.enable_signup]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import client as open_webui_client
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import settings as open_webui_settings


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "token": {"type": "str", "required": True, "no_log": True},
            "timeout_s": {"type": "int", "default": 30},
            "config": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    asked = module.params
    client = open_webui_client.Client(asked["url"], asked["token"], asked["timeout_s"])
    try:
        module.exit_json(**apply(client, asked["config"], module.check_mode))
    except open_webui_client.OpenWebuiError as error:
        if module.check_mode and error.status is None:
            module.exit_json(changed=False, differences=[])
        module.fail_json(msg=str(error))


def apply(client, wanted, check_mode):
    """Look, compare, act."""
    observed = open_webui_settings.observe(client, wanted)
    wanted = {key: open_webui_settings.as_held(observed[key], value) for key, value in wanted.items()}
    differences = open_webui_client.difference(observed, wanted)
    if differences and not check_mode:
        open_webui_settings.put(client, {key: wanted[key] for key in differences})
    lines = {name: "".join(f"{key}: {values[key]}\n" for key in sorted(differences)) for name, values in (("before", observed), ("after", wanted))}
    return {"changed": bool(differences), "differences": differences, "diff": lines}


if __name__ == "__main__":
    main()
