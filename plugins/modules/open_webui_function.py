#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_function
short_description: Manage a function of Open WebUI
version_added: 1.0.0
description:
  - Creates, changes, enables and removes a function (a filter, pipe or action). Options that are not given stay as they are.
  - The server toggles switches and rewrites the text. The module reads both first and compares with what would be stored.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
  - gpufleet.llm.open_webui
attributes:
  check_mode:
    support: full
    details: If Open WebUI does not answer, for example on a fresh host, check mode assumes an empty one.
  diff_mode:
    support: full
options:
  id:
    description: Identifier of the function, in lower case.
    type: str
    required: true
  state:
    description: Whether the function exists.
    type: str
    choices: [present, absent]
    default: present
  name:
    description: Name in the administrator's UI. Required for a new function.
    type: str
  description:
    description: Description in the UI.
    type: str
  content:
    description: Python text of the function. Required for a new function.
    type: str
  active:
    description: Whether the function is enabled.
    type: bool
  global:
    description: Whether the function applies to every model.
    type: bool
  valves:
    description: All settings of the function. A setting that is not given gets its default.
    type: dict
"""

EXAMPLES = r"""
- name: Bound the history that reaches the model
  gpufleet.llm.open_webui_function:
    token: "{{ __session.token }}"
    id: gpufleet_context
    name: Bounded context
    content: "{{ lookup('ansible.builtin.file', 'context_filter.py') }}"
    active: true
    global: true
    valves:
      max_rounds: 6
"""

RETURN = r"""
function:
  description: The function as it is now, without its text.
  type: dict
  returned: when it is or would be present
  sample: {name: Bounded context, description: "", active: true, global: true, valves: {max_rounds: 6}}
differences:
  description: What was or would be changed.
  type: list
  elements: str
  returned: always
  sample: [active]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import client as open_webui_client
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import functions as open_webui_functions

SHOWN = ("name", "description", "active", "global", "valves")


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "token": {"type": "str", "required": True, "no_log": True},
            "timeout_s": {"type": "int", "default": 30},
            "id": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "name": {"type": "str"},
            "description": {"type": "str"},
            "content": {"type": "str"},
            "active": {"type": "bool"},
            "global": {"type": "bool"},
            "valves": {"type": "dict"},
        },
        supports_check_mode=True,
    )
    asked = module.params
    if not asked["id"].isidentifier() or asked["id"] != asked["id"].lower():
        module.fail_json(msg=f"id is '{asked['id']}'; a Python identifier in lower case was wanted.")
    client = open_webui_client.Client(asked["url"], asked["token"], asked["timeout_s"])
    try:
        module.exit_json(**apply(client, asked, module.check_mode))
    except open_webui_client.OpenWebuiError as error:
        module.fail_json(msg=f"Function {asked['id']}: {error}")


def apply(client, asked, check_mode):
    """Look, compare, act."""
    observed = open_webui_client.unless_fresh(lambda: open_webui_functions.observe(client, asked["id"]), check_mode)
    if asked["state"] == "absent":
        if observed is not None and not check_mode:
            open_webui_functions.delete(client, asked["id"])
        differences = [] if observed is None else ["state"]
        return {"changed": bool(differences), "differences": differences, "diff": show(asked["id"], observed, None)}
    wanted = open_webui_functions.wanted(observed, asked)
    if observed is None and not (wanted["name"] and wanted["content"]):
        raise open_webui_client.OpenWebuiError("it is not there, and without name and content it cannot be made.")
    differences = open_webui_client.difference(observed, wanted)
    result = {
        "changed": bool(differences),
        "differences": differences,
        "function": {key: wanted[key] for key in SHOWN},
        "diff": show(asked["id"], observed, wanted),
    }
    if differences and not check_mode:
        open_webui_functions.put(client, asked["id"], observed, wanted)
        left = open_webui_client.difference(open_webui_functions.observe(client, asked["id"]), wanted)
        if left:
            raise open_webui_client.OpenWebuiError(f"the server took the change and still differs in {', '.join(left)}; see its log.")
    return result


def show(function_id, before, after):
    """Before and after for --diff: the switches as YAML-like lines, then the text."""
    header = f"Open WebUI function {function_id}"
    return {"before_header": header, "after_header": header, "before": _text(before), "after": _text(after)}


def _text(function):
    if function is None:
        return ""
    lines = [f"{key}: {function[key]}" for key in ("name", "description", "active", "global")]
    lines += [f"valves.{name}: {value}" for name, value in sorted(function["valves"].items())]
    return "\n".join([*lines, "", function["content"] or ""])


if __name__ == "__main__":
    main()
