#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: ollama_model
short_description: Manage a model of an Ollama server
version_added: 1.0.0
description:
  - Creates, changes, loads, unloads or removes a model.
  - Compares the server's model with the declaration and its base, and creates a model only if they differ.
    A second run changes nothing and sends three reads.
  - Always builds a model from its base and never from itself, so removing a parameter from the declaration removes it from the model.
    A base that was pulled again and an edited Modelfile are detected.
  - Checks names and types of parameters like Ollama's own client. The server accepts anything, and then fails with each request.
  - Unloads a model before it replaces or removes it. The server does not, and would keep the old weights in VRAM.
  - Requires only Python on the managed host. It uses the server's HTTP API and not the C(ollama) command.
extends_documentation_fragment:
  - gpufleet.llm.ollama
  - gpufleet.llm.attributes
attributes:
  check_mode:
    support: full
    details:
      - With O(pull=always) the module asks the registry whether the tag has moved. If that fails, it warns and predicts no change.
      - If the server cannot be reached, the module warns and assumes that it has no models, so that check mode works on a fresh host.
  diff_mode:
    support: full
    details: [Both sides are Modelfiles in a fixed order, with the digests of the weights first.]
options:
  name:
    description: "Name of the model: C([host/][namespace/]model[:tag]). Without a tag it is C(latest)."
    type: str
    required: true
  state:
    description:
      - V(present) creates or changes the model in the store.
      - V(loaded) is V(present), if anything is declared, and loads the model entirely on the GPU (see O(allow_offload)).
        A load that ends otherwise is a failure, and the model is unloaded again.
      - V(unloaded) unloads the model and does not change the store.
      - V(absent) removes the model and the sources that were kept for it. Its base stays.
    type: str
    choices: [present, absent, loaded, unloaded]
    default: present
  from:
    description:
      - The base model, with its registry's host if that is not the public one. O(pull) says when to pull it.
      - Without O(from), O(gguf), O(modelfile) and O(modelfile_path) the model itself is pulled.
    type: str
  gguf:
    description:
      - Path of a GGUF file on the managed host. It is imported once as C(name:tag.src-<12 hex digits of its sha256>), and the model is created from that.
      - Each run reads the file to compare it (about a second per GB), unless O(gguf_sha256) is given.
      - During the import the server needs up to three times the file's size in its store.
    type: path
  gguf_sha256:
    description: SHA-256 of the file in O(gguf), 64 hex digits. A file with another one is refused. An imported file is not read again.
    type: str
  modelfile:
    description:
      - A Modelfile as text. C(FROM) names a model, or files by absolute path.
      - O(parameters) take precedence over its C(PARAMETER) lines.
      - Mark text with C({{ }}) as C(!unsafe). Otherwise Ansible evaluates it.
    type: str
  modelfile_path:
    description: Path of a Modelfile on the managed host. Relative paths in it start in its directory.
    type: path
  parameters:
    description:
      - Parameters, as in C(PARAMETER) lines, with their types, such as C(num_ctx=40960).
      - Parameters that are not declared are inherited from the base. An empty list for C(stop) removes the base's stop words.
      - Unknown names and wrong types are refused. The KV cache type, flash attention and the number of parallel slots are settings of the server.
    type: dict
  template:
    description:
      - The prompt template, in Go's syntax.
      - It contains C({{ }}), like Ansible's templates. Mark it as C(!unsafe), or read it with the file lookup.
    type: str
  system:
    description: The system message. Empty inherits the base's. The server cannot remove it.
    type: str
  license:
    description: License texts to add to those of the base.
    type: list
    elements: str
  messages:
    description: Messages before each chat. Empty inherits the base's.
    type: list
    elements: dict
    suboptions:
      role:
        description: Role of the message.
        type: str
        choices: [system, user, assistant]
        required: true
      content:
        description: Text of the message.
        type: str
        required: true
  adapter:
    description: Path of a LoRA adapter on the managed host, a GGUF file.
    type: path
  renderer:
    description: Name of one of the server's own prompt renderers.
    type: str
  parser:
    description: Name of one of the server's own output parsers.
    type: str
  quantize:
    description: Quantize float weights (f16, bf16, f32) to this type during the import.
    type: str
    choices: [f16, bf16, q4_k_m, q4_k_s, q8_0]
  context_extension:
    description:
      - Extends the context beyond the trained length, with a scaling that the model's makers have validated.
      - The weights of O(from) are written once more behind a header that asks for the scaling, into O(models_dir); nothing is downloaded again.
      - Known to be right for Qwen2.5 and Qwen3 models whose header says 32,768 or 40,960 tokens; others are refused.
      - Short texts can come out worse, since the scaling is the same for each length; take the smallest factor that is enough.
    type: dict
    suboptions:
      method:
        description: The scaling.
        type: str
        choices: [yarn]
        required: true
      factor:
        description: By how much the native context grows, above 1 and up to 4. With 32,768 native tokens, V(2) gives 65,536 and V(4) gives 131,072.
        type: float
        required: true
  models_dir:
    description:
      - The folder of the server's models on this host, its C(OLLAMA_MODELS). Needed for O(context_extension) only.
      - It is written to as the user that owns it.
    type: path
  base_digest:
    description:
      - Required digest of O(from), or of the model itself without O(from). 12 to 64 hex digits, as M(gpufleet.llm.ollama_info) and C(ollama list) show it.
      - A base with another digest is pulled. If the registry has another one too, the module fails.
    type: str
  pull:
    description:
      - V(missing) pulls what the store does not have.
      - V(always) also pulls when the registry has another version of the tag.
      - V(never) never pulls, and fails if the base is missing.
    type: str
    choices: [missing, always, never]
    default: missing
  insecure:
    description: Use plain HTTP for the registry.
    type: bool
    default: false
  keep_alive:
    description:
      - How long the model stays loaded after its last request, for O(state=loaded). Seconds (V(300)), a duration (V(30m)), or V(-1) for no limit.
      - The default is the server's own setting.
    type: str
  allow_offload:
    description: Accept a model that runs partly or entirely on the CPU, for O(state=loaded).
    type: bool
    default: false
  unit:
    description: The server's systemd unit. Its journal says how many layers and how much memory the engine found, for the error message.
    type: str
  unload_timeout:
    description: Seconds to wait for a model to be unloaded before it is replaced or removed. A running request is not cut off.
    type: int
    default: 60
seealso:
  - module: gpufleet.llm.ollama_info
author:
  - The gpufleet.llm maintainers (@gpufleet)
"""

EXAMPLES = r"""
- name: Have Qwen3-14B with a context that fits the card
  gpufleet.llm.ollama_model:
    name: qwen3-14b-4090
    from: qwen3:14b
    parameters:
      num_ctx: 40960
      num_batch: 512
      temperature: 0.6
      top_p: 0.95
      top_k: 20

- name: Load it, and fail if it does not fit the GPU wholly
  gpufleet.llm.ollama_model:
    name: qwen3-14b-4090
    state: loaded
    keep_alive: -1

- name: Make a model of a file, quantized, with a template of its own
  gpufleet.llm.ollama_model:
    name: house-model
    gguf: /srv/models/house-f16.gguf
    quantize: q8_0
    template: !unsafe "{{ .System }} {{ .Prompt }}"

- name: Serve 65,536 tokens of a model that was trained for 32,768
  gpufleet.llm.ollama_model:
    name: qwen3-14b-64k
    from: qwen3:14b
    context_extension: {method: yarn, factor: 2}
    models_dir: /var/lib/ollama/models
    parameters:
      num_ctx: 65536

- name: Pin a model to the version that was tested
  gpufleet.llm.ollama_model:
    name: qwen3:14b
    base_digest: bdbd181c33f2
  register: pinned

- name: Take a model away
  gpufleet.llm.ollama_model:
    name: old-model
    state: absent
"""

RETURN = r"""
name:
  description: The model's name as the server shows it.
  type: str
  returned: always
  sample: qwen3-14b-4090:latest
digest:
  description: Digest of the model in the store, null when it is not there.
  type: str
  returned: always
  sample: 9f2c1d6b8a7e4c35d0f1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b3c4d5e6f7
base_digest:
  description: Digest of the base in the store.
  type: str
  returned: when there is a base
size:
  description: Bytes of the model in the store.
  type: int
  returned: when it is there
differs:
  description: What was not as declared. V(model) when there was none, V(weights) when the base is another one.
  type: list
  elements: str
  returned: always
  sample: [parameters.num_ctx, system]
actions:
  description: What was done, or would be, in order.
  type: list
  elements: str
  returned: always
  sample: [unload qwen3-14b-4090:latest, replace qwen3-14b-4090:latest]
bytes_pulled:
  description: Bytes that the server downloaded, as far as it tells; small parts and those that were there already do not count.
  type: int
  returned: always
bytes_uploaded:
  description: Bytes that were sent to the server.
  type: int
  returned: always
bytes_written:
  description: Bytes of weights that O(context_extension) has written into the folder of the models.
  type: int
  returned: always
loaded:
  description: Whether the model is in memory.
  type: bool
  returned: when O(state=loaded) or O(state=unloaded)
loaded_size:
  description: Bytes of memory that the loaded model takes.
  type: int
  returned: when it is loaded and O(state=loaded)
size_vram:
  description: Bytes of it that are on the GPU. Equal to RV(loaded_size) when all of it is.
  type: int
  returned: when it is loaded and O(state=loaded)
context_length:
  description: Tokens of context that the runner really has, per slot.
  type: int
  returned: when it is loaded and O(state=loaded)
requests:
  description: "How the server was spoken to: C(count), C(writes) and C(seconds)."
  type: dict
  returned: always
  sample: {count: 3, writes: 0, seconds: 0.004}
"""

import functools

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import apply as ollama_apply
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import declaration as ollama_declaration
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import difference as ollama_difference
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import extension as ollama_extension
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import load as ollama_load
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import names as ollama_names
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import parameters as ollama_parameters
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import service as ollama_service
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import store as ollama_store
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import context_extension
from ansible_collections.gpufleet.llm.plugins.module_utils._plan.ggml import GgufError

SOURCES = ("from", "gguf", "modelfile", "modelfile_path")


def argument_spec():
    return {
        "name": {"type": "str", "required": True},
        "state": {"type": "str", "choices": ["present", "absent", "loaded", "unloaded"], "default": "present"},
        "from": {"type": "str"},
        "gguf": {"type": "path"},
        "gguf_sha256": {"type": "str"},
        "modelfile": {"type": "str"},
        "modelfile_path": {"type": "path"},
        "parameters": {"type": "dict"},
        "template": {"type": "str"},
        "system": {"type": "str"},
        "license": {"type": "list", "elements": "str"},
        "messages": {
            "type": "list",
            "elements": "dict",
            "options": {
                "role": {"type": "str", "choices": ["system", "user", "assistant"], "required": True},
                "content": {"type": "str", "required": True},
            },
        },
        "adapter": {"type": "path"},
        "renderer": {"type": "str"},
        "parser": {"type": "str"},
        "quantize": {"type": "str", "choices": ["f16", "bf16", "q4_k_m", "q4_k_s", "q8_0"]},
        "context_extension": {
            "type": "dict",
            "options": {"method": {"type": "str", "choices": ["yarn"], "required": True}, "factor": {"type": "float", "required": True}},
        },
        "models_dir": {"type": "path"},
        "base_digest": {"type": "str"},
        "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
        "insecure": {"type": "bool", "default": False},
        "keep_alive": {"type": "str"},
        "allow_offload": {"type": "bool", "default": False},
        "unit": {"type": "str"},
        "unload_timeout": {"type": "int", "default": 60},
        "url": {"type": "str", "default": ollama_client.DEFAULT_URL},
        "timeout": {"type": "int", "default": 600},
    }


def declared_by(params):
    """The declaration that the options make; None when they only name a model that is to be loaded."""
    entry, folder = dict(params), ""
    path = params["modelfile_path"]
    if path:
        try:
            with open(path, encoding="utf-8") as source:
                entry["modelfile"], folder = source.read(), path.rpartition("/")[0] or "/"
        except (OSError, ValueError) as error:
            raise ollama_declaration.ModelError(f"The Modelfile {path} cannot be read: {error}. Wanted a text file on the managed host.") from None
    if params["state"] == "loaded" and not any(params[key] for key in SOURCES) and not params["base_digest"] and params["pull"] == "missing":
        if any(
            params[key] for key in ("parameters", "template", "system", "license", "messages", "adapter", "renderer", "parser", "quantize", "context_extension")
        ):
            return ollama_declaration.declare(entry, folder)
        return None
    return ollama_declaration.declare(entry, folder)


def perform(client, params, result):
    """Bring about the state; what to return of it beside `result`."""
    name, state, patience = ollama_names.short_name(params["name"]), params["state"], params["unload_timeout"]
    folder = params["models_dir"]
    extend = functools.partial(context_extension.place, folder) if folder else None
    store, told = ollama_store.Store(client, extend), {"name": name}
    if state == "absent":
        ollama_apply.ensure_absent(client, store, name, result, patience)
        return {**told, "digest": None}
    if state == "unloaded":
        ollama_load.ensure_unloaded(client, name, result, patience)
        return {**told, "digest": store.digest(name), "loaded": False}
    keep_alive = ollama_declaration.check_keep_alive(params["keep_alive"])
    declared = declared_by(params)
    if declared:
        ollama_apply.ensure_present(client, store, declared, result, patience)
    if state == "loaded":
        if result.check and result.changed:
            result.act(f"load {name}")
            told["loaded"] = False
        else:
            entry = ollama_load.ensure_loaded(client, store, name, keep_alive, result, patience)
            told["loaded"] = entry is not None
            if entry:
                told.update(measured(client, name, entry, params, result))
    found = store.find(name)
    told["digest"] = found["digest"] if found else None
    if found:
        told["size"] = found.get("size")
    if result.base_digest:
        told["base_digest"] = result.base_digest
    return told


def measured(client, name, entry, params, result):
    """What /api/ps says of the loaded model; fails when it is not wholly on the GPU and has to be."""
    problem = ollama_load.offload_problem(name, entry)
    if problem and not params["allow_offload"] and not (result.check and result.changed):
        layout = ollama_service.layout(params["unit"], result.loaded_at) if params["unit"] and result.loaded_at else None
        raise ollama_declaration.ModelError(problem + ollama_load.undo_load(client, name, result, layout, params["unload_timeout"]))
    asked, got = (params["parameters"] or {}).get("num_ctx"), entry.get("context_length")
    if asked and got and str(asked).isdigit() and got < int(asked):
        result.warnings.append(
            f"Model {name} runs with a context of {got:,} tokens, not {int(asked):,}: the server caps it silently at what the model was trained for."
        )
    return {"loaded_size": entry.get("size"), "size_vram": entry.get("size_vram"), "context_length": got}


def main():
    module = AnsibleModule(
        argument_spec=argument_spec(),
        supports_check_mode=True,
        mutually_exclusive=[SOURCES],
        required_by={"gguf_sha256": ["gguf"]},
    )
    params = module.params
    result = ollama_store.Result(check=module.check_mode)
    client = told = None
    try:
        # A declaration is judged before the server is asked anything.
        declared_by(params) if params["state"] in ("present", "loaded") else None
        ollama_declaration.check_keep_alive(params["keep_alive"])
        client = ollama_client.Client(params["url"], timeout=params["timeout"])
        told = perform(client, params, result)
    except ollama_client.OllamaError as error:
        if not (module.check_mode and error.down):
            module.fail_json(msg=str(error), changed=result.changed and not module.check_mode, actions=result.actions)
        told = predicted_without_server(params, result, error)
    except (ollama_declaration.ModelError, ollama_parameters.ModelfileError, ollama_extension.ExtensionError, GgufError, ValueError) as error:
        module.fail_json(msg=str(error), changed=result.changed and not module.check_mode, actions=result.actions)
    for warning in result.warnings:
        module.warn(warning)
    before, after = ollama_difference.as_modelfile(result.before), ollama_difference.as_modelfile(result.after)
    module.exit_json(
        changed=result.changed,
        differs=result.differs,
        actions=result.actions,
        bytes_pulled=result.bytes_pulled,
        bytes_uploaded=result.bytes_uploaded,
        bytes_written=result.bytes_written,
        requests={"count": len(client.server.requests), "writes": client.server.writes, "seconds": round(client.server.seconds, 4)},
        diff={"before": before, "after": after, "before_header": params["name"], "after_header": params["name"]},
        **told,
    )


def predicted_without_server(params, result, error):
    """In check mode on a host that has no server yet: everything that is wanted is still to be made."""
    name = ollama_names.short_name(params["name"])
    result.warnings.append(f"{error} The prediction for {name} takes the server to have no models yet.")
    told = {"name": name, "digest": None}
    if params["state"] in ("present", "loaded"):
        declared = declared_by(params)
        if declared:
            result.act(f"create {name}")
            result.differs = ["model"]
        if params["state"] == "loaded":
            result.act(f"load {name}")
    if params["state"] in ("loaded", "unloaded"):
        told["loaded"] = False
    return told


if __name__ == "__main__":
    main()
