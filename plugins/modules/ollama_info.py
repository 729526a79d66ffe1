#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_info
short_description: Return the state of an Ollama server and compare it with declared models
version_added: 1.0.0
description:
  - Returns the server's version, the models in its store and the loaded ones, with their digests.
  - Can return the settings of the running service, from the environment of its process.
  - Can compare any number of declared models with the server in one round trip, so that a play changes only those that differ.
extends_documentation_fragment:
  - gpufleet.llm.ollama
  - gpufleet.llm.attributes.info
options:
  unit:
    description: The server's systemd unit, for RV(service). Reading its environment requires root.
    type: str
  declared:
    description:
      - Models to compare with the server, each with options of M(gpufleet.llm.ollama_model) (not O(gpufleet.llm.ollama_model#module:modelfile_path)).
      - The key C(state) is V(present) or V(absent). The key C(load) says whether the model should be loaded.
    type: list
    elements: dict
    default: []
  modelfiles:
    description: Directory on the host with the Modelfile of each declared model, C(<name>.modelfile), to compare as well.
    type: path
  measured:
    description:
      - JSON file on the host with the last measurement of each model.
        A measurement is valid while the model, the server's version and its settings stay the same.
    type: path
  planned:
    description: Models of a plan of M(gpufleet.llm.gpu_capacity), to return next to the measured values.
    type: list
    elements: dict
    default: []
  plan:
    description: Path of the plan on the host, for RV(plan_pending).
    type: path
  fingerprint:
    description: Fingerprint of the settings that the plan in O(plan) was made for. It is kept in O(measured).
    type: str
    default: ""
  must_answer:
    description: Whether to fail if no server answers. In check mode the module never fails for that.
    type: bool
    default: true
seealso:
  - module: gpufleet.llm.ollama_model
author:
  - The gpufleet.llm maintainers (@gpufleet)
"""

EXAMPLES = r"""
- name: Read the server
  gpufleet.llm.ollama_info:
    unit: ollama.service
  register: server

- name: Refuse to go on with a model that is partly on the CPU
  ansible.builtin.assert:
    that: server.loaded | rejectattr('offloaded') | length == server.loaded | length
"""

RETURN = r"""
reachable:
  description: Whether a server answered. Without one the module fails, but for check mode.
  type: bool
  returned: always
version:
  description: Version of the server.
  type: str
  returned: when it is reachable
  sample: 0.32.15
models:
  description: Models in the store, by name.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name with its tag.
      type: str
    digest:
      description: Digest of the manifest, 64 hex digits.
      type: str
    size:
      description: Bytes.
      type: int
    is_source:
      description: Whether it is kept by M(gpufleet.llm.ollama_model) as the source of another.
      type: bool
    details:
      description: Format, family, parameter_size, quantization_level and parent_model.
      type: dict
loaded:
  description: Models in memory.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name under which the runner was started.
      type: str
    digest:
      description: Digest of what it runs.
      type: str
    size:
      description: Bytes of memory it takes.
      type: int
    size_vram:
      description: Bytes of it on the GPU.
      type: int
    context_length:
      description: Tokens of context, per slot.
      type: int
    expires_at:
      description: When it is unloaded if nobody asks.
      type: str
    offloaded:
      description: Whether a part of it runs on the CPU.
      type: bool
    stale:
      description: Whether the store has another version of it, or none, by now. Only its end of keep-alive or a restart unloads it.
      type: bool
service:
  description: The running service.
  type: dict
  returned: when O(unit) is given
  contains:
    active:
      description: Its state, as systemd says it.
      type: str
    pid:
      description: Its main process.
      type: int
    started_at:
      description: When that was started.
      type: str
    settings:
      description:
        - C(num_parallel), C(kv_cache_type), C(flash_attention) (null when the server decides), C(context_length) (null when by VRAM),
          C(max_loaded_models) (null when three for each GPU), C(keep_alive), C(fit_target_mib). Null when the service does not run.
      type: dict
declared:
  description: How each declared model compares, in the order given.
  type: list
  elements: dict
  returned: always
  contains:
    name:
      description: Name with its tag.
      type: str
    pending:
      description: Whether M(gpufleet.llm.ollama_model) has something to do in the store.
      type: bool
    differs:
      description: In what it differs.
      type: list
      elements: str
    actions:
      description: What would be done.
      type: list
      elements: str
    load_pending:
      description: Whether it must be loaded, because it should stay loaded and is not, or because it has not been measured yet.
      type: bool
    measured:
      description:
        - What it takes in memory. C(name), C(digest), C(version), C(settings), C(size_mib), C(size_vram_mib), C(context_length), C(predicted_mib).
          From the server when it is loaded, else from O(measured), else null.
      type: dict
    digest:
      description: Its digest in the store.
      type: str
    loaded:
      description: Its entry of RV(loaded); null when it is not in memory.
      type: dict
    trained_context:
      description: Tokens of context that it was trained for, when the server knows it.
      type: int
    problem:
      description: Why it is not entirely on the GPU, with the numbers. Null if it is, or if it may run elsewhere (C(allow_offload)).
      type: str
    modelfile:
      description: Its Modelfile.
      type: str
    modelfile_path:
      description: Where that is to be.
      type: str
    modelfile_pending:
      description: Whether the file there says something else.
      type: bool
measured:
  description: What O(measured) is to hold of the models, by name.
  type: dict
  returned: always
measured_pending:
  description: Whether O(measured) must be written, because its C(models) or C(fingerprint) differ from RV(measured) and O(fingerprint).
  type: bool
  returned: always
plan_pending:
  description: Whether O(plan) is missing, or was made for other settings.
  type: bool
  returned: always
undeclared:
  description: Models in the store that no declared model is or is made from.
  type: list
  elements: str
  returned: always
requests:
  description: "How the server was spoken to: C(count) and C(seconds)."
  type: dict
  returned: always
"""

import os

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declaration as ollama_declaration
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declared as ollama_declared
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import names as ollama_names
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import parameters as ollama_parameters
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import service as ollama_service
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import store as ollama_store


def main():
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str"},
            "declared": {"type": "list", "elements": "dict", "default": []},
            "modelfiles": {"type": "path"},
            "measured": {"type": "path"},
            "planned": {"type": "list", "elements": "dict", "default": []},
            "plan": {"type": "path"},
            "fingerprint": {"type": "str", "default": ""},
            "must_answer": {"type": "bool", "default": True},
            "url": {"type": "str", "default": ollama_client.DEFAULT_URL},
            "timeout": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    try:
        entries = [ollama_declared.Entry.of(entry) for entry in params["declared"]]
        service = ollama_service.observe(params["unit"]) if params["unit"] else None
        told, warnings = observe(params, entries, service, must_answer=params["must_answer"] and not module.check_mode)
    except (
        ollama_client.OllamaError,
        ollama_declaration.ModelError,
        ollama_parameters.ModelfileError,
        ollama_service.ServiceError,
        ValueError,
    ) as error:
        module.fail_json(msg=str(error))
    for warning in warnings:
        module.warn(warning)
    if service:
        told["service"] = service
    module.exit_json(changed=False, **told)


def observe(params, entries, service, must_answer):
    """What to return, and warnings."""
    client = ollama_client.Client(params["url"], timeout=params["timeout"])
    try:
        version = client.version()
    except ollama_client.OllamaError as error:
        if must_answer or not error.down:
            raise
        told = {"reachable": False, "models": [], "loaded": [], "undeclared": [], "requests": {"count": 1, "seconds": 0.0}}
        told["declared"] = [with_modelfile(entry.predicted(), entry, params["modelfiles"]) for entry in entries]
        told.update(measured={}, measured_pending=False, plan_pending=bool(params["plan"]))
        return told, [f"{error} The server is taken to have no models yet."] if params["must_answer"] else []
    store = ollama_store.Store(client)
    ps = client.ps()
    remembered = ollama_declared.Measured.read(params["measured"], version, (service or {}).get("settings"), params["planned"])
    compared, warnings = [], []
    for entry in entries:
        one, more = entry.compare(client, store, ps, remembered)
        compared.append(with_modelfile(one, entry, params["modelfiles"]))
        warnings += more
    measured = {one["name"]: one["measured"] for one in compared if one["measured"]}
    told = {
        "reachable": True,
        "version": version,
        "models": sorted((model(one) for one in store.all()), key=lambda one: one["name"]),
        "loaded": [ollama_declared.loaded_as(one, store) for one in ps],
        "declared": compared,
        "measured": measured,
        "measured_pending": bool(params["measured"]) and (measured, params["fingerprint"]) != (remembered.held, remembered.fingerprint),
        "plan_pending": bool(params["plan"]) and (not os.path.exists(params["plan"]) or params["fingerprint"] != remembered.fingerprint),
        "undeclared": ollama_declared.undeclared([entry.declared for entry in entries if entry.declared], store.all()),
        "requests": {"count": len(client.server.requests), "seconds": round(client.server.seconds, 4)},
    }
    return told, warnings


def model(tag):
    name = str(tag.get("name", ""))
    return {
        "name": name,
        "digest": tag.get("digest"),
        "size": tag.get("size"),
        "is_source": ollama_names.is_source(name),
        "details": tag.get("details") or {},
    }


def with_modelfile(told, entry, folder):
    """`told` with the Modelfile that people are to find in `folder`."""
    if not folder or not entry.declared:
        return {**told, "modelfile": None, "modelfile_path": None, "modelfile_pending": False}
    path, text = f"{folder.rstrip('/')}/{entry.file_name}", entry.modelfile
    try:
        with open(path, encoding="utf-8", newline="") as source:
            pending = source.read() != text
    except (OSError, ValueError):
        pending = True
    return {**told, "modelfile": text, "modelfile_path": path, "modelfile_pending": pending}


if __name__ == "__main__":
    main()
