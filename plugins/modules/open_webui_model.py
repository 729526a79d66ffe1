#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: open_webui_model
short_description: Manage a model's entry in Open WebUI
version_added: 1.0.0
description:
  - Creates, changes and removes Open WebUI's entry for a model - access, capabilities and parameters.
  - The model itself belongs to the Ollama server, see M(gpufleet.llm.ollama_model). An entry without a model is shown to nobody.
  - Options that are not given stay as they are, including keys of O(capabilities) and O(params).
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
    description: Name of the model on its server, with its tag (C(qwen3-14b-4090:latest)), or a new name with O(base).
    type: str
    required: true
  state:
    description: Whether the entry exists.
    type: str
    choices: [present, absent]
    default: present
  base:
    description: The server's model, for an entry with its own settings. Omit it for the server's model itself.
    type: str
  name:
    description: Name in the UI. The default for a new entry is O(id).
    type: str
  description:
    description: Description in the UI.
    type: str
  active:
    description: Whether users can select the model.
    type: bool
  access:
    description:
      - Who may use the model, in addition to administrators. Without an entry nobody may, unless C(BYPASS_MODEL_ACCESS_CONTROL) is set.
      - The default for a new entry is administrators only.
    type: str
    choices: [everyone, administrators, groups]
  groups:
    description: Names of the groups that may use the model, with O(access=groups).
    type: list
    elements: str
  capabilities:
    description: >-
      Capabilities such as C(vision), C(file_upload) or C(builtin_tools), each V(true) or V(false). V(none) removes a key.
    type: dict
  params:
    description: >-
      Parameters of each request, including title requests. Set the context in the Modelfile, because another C(num_ctx) makes Ollama
      load the model again. V(none) removes a key.
    type: dict
"""

EXAMPLES = r"""
- name: Let every user chat with it, without Open WebUI's own tools
  gpufleet.llm.open_webui_model:
    token: "{{ __session.token }}"
    id: qwen3-14b-4090:latest
    name: Qwen3 14B
    access: everyone
    capabilities:
      builtin_tools: false
"""

RETURN = r"""
model:
  description: The entry as it is now.
  type: dict
  returned: when it is or would be present
  sample: {base: null, name: Qwen3 14B, description: "", active: true, access: everyone, groups: [], capabilities: {builtin_tools: false}, params: {}}
differences:
  description: What was or would be changed.
  type: list
  elements: str
  returned: always
  sample: [access]
"""

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import client as open_webui_client
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import models as open_webui_models


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "token": {"type": "str", "required": True, "no_log": True},
            "timeout_s": {"type": "int", "default": 30},
            "id": {"type": "str", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "base": {"type": "str"},
            "name": {"type": "str"},
            "description": {"type": "str"},
            "active": {"type": "bool"},
            "access": {"type": "str", "choices": ["everyone", "administrators", "groups"]},
            "groups": {"type": "list", "elements": "str"},
            "capabilities": {"type": "dict"},
            "params": {"type": "dict"},
        },
        required_if=[("access", "groups", ["groups"])],
        supports_check_mode=True,
    )
    asked = module.params
    client = open_webui_client.Client(asked["url"], asked["token"], asked["timeout_s"])
    try:
        module.exit_json(**apply(client, asked, module.check_mode))
    except open_webui_client.OpenWebuiError as error:
        module.fail_json(msg=f"Model {asked['id']}: {error}")


def apply(client, asked, check_mode):
    """Look, compare, act."""
    observed = open_webui_client.unless_fresh(lambda: open_webui_models.observe(client, asked["id"]), check_mode)
    if asked["state"] == "absent":
        if observed is not None and not check_mode:
            open_webui_models.delete(client, asked["id"])
        differences = [] if observed is None else ["state"]
        return {"changed": bool(differences), "differences": differences, "diff": show(asked["id"], observed, None)}
    wanted = open_webui_models.wanted(observed, asked)
    wanted["name"] = wanted["name"] or asked["id"]
    differences = open_webui_client.difference(observed, wanted)
    result = {"changed": bool(differences), "differences": differences, "model": wanted, "diff": show(asked["id"], observed, wanted)}
    if differences and not check_mode:
        open_webui_models.put(client, asked["id"], observed, wanted)
        left = open_webui_client.difference(open_webui_models.observe(client, asked["id"]), wanted)
        if left:
            raise open_webui_client.OpenWebuiError(f"the server took the change and still differs in {', '.join(left)}; see its log.")
    return result


def show(model_id, before, after):
    """Before and after for --diff, one line a setting."""
    header = f"Open WebUI model {model_id}"
    return {"before_header": header, "after_header": header, "before": _text(before), "after": _text(after)}


def _text(model):
    if model is None:
        return ""
    lines = [f"{key}: {model[key]}" for key in ("base", "name", "description", "active", "access", "groups")]
    for key in ("capabilities", "params"):
        lines += [f"{key}.{name}: {value}" for name, value in sorted(model[key].items())]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
