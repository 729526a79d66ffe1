#!/usr/bin/python

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_capacity
short_description: Plan the VRAM of models before they are downloaded
version_added: 1.0.0
description:
  - Returns in MiB, term by term, what each model takes on which card with its context, slots and KV cache type.
  - Suggests changes if something does not fit. Every suggestion was checked to fit.
  - Reads the shape of a model from its GGUF header (a few MiB by HTTP Range, never the weights), from the running server, or from O(models).
  - Reads the cards by NVML, or takes them from O(gpus) for hardware that you do not have yet.
  - Two methods check each other. The formula works anywhere. The dry run starts the host's own C(llama-server), which reads the header and
    prints what it would allocate, for any architecture. Values of both are predicted, not measured.
author:
  - The gpufleet.llm maintainers (@gpufleet)
extends_documentation_fragment:
  - gpufleet.llm.attributes
attributes:
  check_mode:
    support: full
    description: Makes the plan including the dry run, which allocates nothing. Does not write O(write_to).
  diff_mode:
    support: full
options:
  models:
    description:
      - The models to plan. Each has exactly one source of its shape (O(models[].metadata), O(models[].gguf), O(models[].url),
        O(models[].ref) or O(models[].from_server)).
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the model in the plan. The default is O(models[].ref) or O(models[].from_server).
        type: str
      num_ctx:
        description: Context of one slot. The default is Ollama's choice by the memory of all cards.
        type: int
      num_parallel:
        description: Parallel slots, each with its own context.
        type: int
        default: 1
      kv_cache_type:
        description: Type of the KV cache, for K and V.
        type: str
        choices: [f32, f16, bf16, q8_0, q5_1, q5_0, q4_1, q4_0, iq4_nl]
        default: f16
      flash_attention:
        description: Whether flash attention is on. A quantized KV cache requires it.
        type: bool
        default: true
      num_batch:
        description: Tokens of a batch. The default is Ollama's choice.
        type: int
      context_extension:
        description: Plan the model with a longer context, as O(gpufleet.llm.ollama_model#module:context_extension) makes it.
        type: dict
        suboptions:
          method:
            description: The scaling.
            type: str
            choices: [yarn]
            required: true
          factor:
            description: By how much the native context grows, above 1 and up to 4.
            type: float
            required: true
      metadata:
        description: GGUF keys with C(tensors), a list of C(name), C(type) and C(shape) as C(/api/show) gives it, and C(file_bytes).
        type: dict
      gguf:
        description: Path of a GGUF file on the host.
        type: path
      url:
        description: HTTP(S) URL of a GGUF file. The server must support Range.
        type: str
      ref:
        description:
          - Name in a registry, C([host/][namespace/]model[:tag]). The default host is Ollama's public registry.
          - Uses HTTPS and the host's trust store. With the prefix V(http://), plain HTTP.
        type: str
      from_server:
        description: Name of a model of the Ollama server at O(server_url).
        type: str
  gpus:
    description:
      - Cards to plan for. By default they are read by NVML. Memory of the server's own runners does not count as used.
      - An empty list plans for a host that serves from its CPU.
    type: list
    elements: dict
    suboptions: &card
      name:
        description: Name of the card, for messages.
        type: str
      uuid:
        description: UUID of the card.
        type: str
      total_mib:
        description: Memory as NVML reports it. An RTX 4090 has 24564.
        type: int
        required: true
      reserved_mib:
        description: Memory of driver and firmware.
        type: int
        default: 354
      used_mib:
        description: Memory that other processes hold.
        type: int
        default: 0
      compute_capability:
        description: Compute capability, such as V(8.9).
        type: str
  gpus_if_unreadable:
    description:
      - Cards to plan for if O(gpus) is omitted and none can be read, for example before the driver is installed.
      - An empty list returns a plan with RV(plan.fits) null. Without this option, unreadable cards are a failure.
    type: list
    elements: dict
    suboptions: *card
  method:
    description:
      - V(auto) uses the dry run if the engine is on the host, and the formula otherwise. If both are available the dry run counts,
        and a difference above 2 % is reported in RV(plan.warnings).
      - V(dry_run) fails if the dry run is not possible.
    type: str
    choices: [auto, formula, dry_run]
    default: auto
  engine:
    description: Directory of C(llama-server), for the dry run.
    type: path
    default: /opt/ollama/current/lib/ollama
  engine_environment:
    description: Variables of the Ollama server that matter to the engine, such as C(CUDA_VISIBLE_DEVICES) or C(LLAMA_ARG_RPC).
    type: dict
    default: {}
  engine_user:
    description: User that runs the dry run if the module runs as root. V(root) keeps root.
    type: str
    default: ollama
  engine_build:
    description: Build of llama.cpp for the formula. The default is the build of O(engine), or the newest measured one.
    type: int
  reserve_mib:
    description: MiB to leave free on each card. llama.cpp moves layers to the CPU if less than 1024 would be free.
    type: int
    default: 1024
  max_loaded_models:
    description: Maximum number of loaded models. The largest ones are planned together.
    type: int
    default: 1
  state:
    description: V(asserted) fails if something does not fit, or if the server would silently use less than requested.
    type: str
    choices: [planned, asserted]
    default: planned
  write_to:
    description: Path on the host for the plan as JSON. Not rewritten if only the memory of other processes changed by up to 256 MiB.
    type: path
  server_url:
    description: The Ollama server, for O(models[].from_server).
    type: str
    default: http://127.0.0.1:11434
  venv:
    description: Virtual environment with nvidia-ml-py, used if the module's own Python lacks it.
    type: path
    default: /opt/gpufleet/venv
"""

EXAMPLES = r"""
- name: Will Qwen3-14B in 8 bits with 64k tokens of context fit a card that is not bought yet?
  gpufleet.llm.gpu_capacity:
    models:
      - ref: qwen3:14b-q8_0
        num_ctx: 40960
        kv_cache_type: q8_0
    gpus:
      - name: RTX 4090
        total_mib: 24564
  delegate_to: localhost

- name: Stop the play unless the declared model fits this host's cards
  gpufleet.llm.gpu_capacity:
    models:
      - ref: qwen3:14b
        num_ctx: 40960
        num_parallel: 2
        kv_cache_type: q8_0
    state: asserted
    write_to: /etc/gpufleet/plan.json
"""

RETURN = r"""
plan:
  description: The plan, as it is written to O(write_to).
  type: dict
  returned: always
  contains:
    fits:
      description: Whether everything fits; null where the formula alone cannot tell, or no card could be read.
      type: bool
    method:
      description: V(formula), V(dry_run), or V(mixed) where the models differ.
      type: str
    engine_build:
      description: Build of llama.cpp that the figures are of, such as V(b10488).
      type: str
    models:
      description:
        - For each model its C(name), the terms C(weights_mib), C(kv_mib), C(compute_mib), C(context_mib) (CUDA's) and C(scratch_mib), their sum
          C(total_mib), C(host_mib) (input embedding in the host's memory), C(effective_num_ctx) and C(capped_by) (V(trained), V(default) or null).
        - C(num_parallel), C(num_batch), C(kv_cache_type) and C(flash_attention) as the server will use them, C(gpu) (indexes of its cards),
          C(per_gpu_mib), C(fits), C(method), and C(formula_mib) and C(dry_run_mib), the sums of weights, KV and compute by either method.
        - A term that is not known is null; C(total_mib) is then the least that it takes.
      type: list
      elements: dict
    gpus:
      description: For each card C(index), C(uuid), C(name), C(total_mib), C(reserved_mib), C(used_mib), C(budget_mib), C(planned_mib), C(headroom_mib).
      type: list
      elements: dict
    suggestions:
      description: Changes with which it fits, least loss first, each with C(model), C(change), C(total_mib) and C(fits).
      type: list
      elements: dict
    errors:
      description: For each model that does not fit, what it needs, what there is, and what to change.
      type: list
      elements: str
    problems:
      description: What is asked and would silently not be given, such as a context above the trained one.
      type: list
      elements: str
    warnings:
      description: What limits the plan.
      type: list
      elements: str
  sample:
    fits: true
    method: formula
    engine_build: b10488
    models:
      - {name: "qwen3:14b", weights_mib: 8423, kv_mib: 6800, compute_mib: 202, context_mib: 457, scratch_mib: 320, total_mib: 16202,
         effective_num_ctx: 40960, capped_by: null, gpu: [0], formula_mib: 15425, dry_run_mib: null, fits: true}
    gpus:
      - {index: 0, uuid: GPU-6b1c, name: NVIDIA GeForce RTX 4090, total_mib: 24564, budget_mib: 23186, planned_mib: 16202, headroom_mib: 6984}
    suggestions: []
sources:
  description: For each model where its shape came from, and how many bytes and requests that took.
  type: list
  elements: dict
  returned: always
  sample: [{name: "qwen3:14b", source: "qwen3:14b (registry)", bytes_read: 7340032, requests: 5, file_bytes: 9276183008}]
"""

import os
import re

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.common.respawn import has_respawned, respawn_module

from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import client as gpu_client
from ansible_collections.gpufleet.llm.plugins.module_utils._gpu import sample as gpu_sample
from ansible_collections.gpufleet.llm.plugins.module_utils._host import files
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import client as ollama_client
from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import extension
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import cards as plan_cards
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import context_extension
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import dry_run as plan_dry_run
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import file as plan_file
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import ggml as plan_ggml
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import given as plan_given
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import kv_cache as plan_kv_cache
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import make as plan_make
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import shape as plan_shape
from ansible_collections.gpufleet.llm.plugins.module_utils._plan import sources as plan_sources

SOURCES = ("metadata", "gguf", "url", "ref", "from_server")
CARD = {
    "name": {"type": "str"},
    "uuid": {"type": "str"},
    "total_mib": {"type": "int", "required": True},
    "reserved_mib": {"type": "int", "default": plan_cards.DEFAULT_RESERVED_MIB},
    "used_mib": {"type": "int", "default": 0},
    "compute_capability": {"type": "str"},
}
MODEL = {
    "name": {"type": "str"},
    "num_ctx": {"type": "int"},
    "num_parallel": {"type": "int", "default": 1},
    "kv_cache_type": {"type": "str", "default": "f16", "choices": list(plan_kv_cache.KV_TYPES)},
    "flash_attention": {"type": "bool", "default": True},
    "num_batch": {"type": "int"},
    "context_extension": {
        "type": "dict",
        "options": {"method": {"type": "str", "choices": ["yarn"], "required": True}, "factor": {"type": "float", "required": True}},
    },
    "metadata": {"type": "dict"},
    "gguf": {"type": "path"},
    "url": {"type": "str"},
    "ref": {"type": "str"},
    "from_server": {"type": "str"},
}
ERRORS = (extension.ExtensionError, plan_cards.PlanError, plan_shape.VramError, plan_ggml.GgufError, ollama_client.OllamaError, plan_dry_run.DryRunError)


def model_of(given, client, headers):
    """An entry of O(models) as _plan.make takes it; its header is read once for all models of the same source."""
    file_name = os.path.basename(given["gguf"] or given["url"] or "")
    name = given["name"] or given["ref"] or given["from_server"] or file_name or "the model"
    for setting, least, most in (("num_ctx", 1, 1 << 24), ("num_parallel", 1, 1024), ("num_batch", 1, 1 << 20)):
        value = given[setting]
        if value is not None and not least <= value <= most:
            raise plan_cards.PlanError(f"Model {name}: {setting}={value} is out of bounds; wanted is {least:,} to {most:,}.")
    source = next((kind, given[kind]) for kind in SOURCES if given[kind] is not None)
    header = next((known for asked, known in headers if asked == source), None)
    if header is None:
        header = header_of(source[0], source[1], client)
        headers.append((source, header))
    if given["context_extension"]:
        wanted = extension.declared(given["context_extension"], f"Model {name}: ")
        header = context_extension.extended_header(header, wanted)
    settings = ("num_ctx", "num_parallel", "kv_cache_type", "flash_attention", "num_batch")
    return {"name": name, "header": header, "gguf": given["gguf"], **{key: given[key] for key in settings}}


def header_of(kind, value, client):
    """The header of a model from one of SOURCES."""
    if kind == "gguf":
        return plan_sources.read_file(value)
    if kind == "url":
        return plan_sources.read_url(value)
    if kind == "ref":
        return plan_sources.read_registry(value)
    if kind == "from_server":
        return header_of_server(client.show(value), value)
    return plan_given.from_metadata(value)


def header_of_server(answer, name):
    """The whole header where the server's blobs can be read from here (its Modelfile names them), else what the server says."""
    blobs = re.findall(r"^FROM (/\S+)$", answer.get("modelfile", ""), re.MULTILINE)
    if blobs and os.access(blobs[0], os.R_OK):
        adapters = re.findall(r"^ADAPTER (/\S+)$", answer["modelfile"], re.MULTILINE)
        return {**plan_sources.read_blobs(blobs, adapters), "source": f"{name} (Ollama server)"}
    return plan_given.from_show(answer, name)


def dry_runs(module, engine):
    """The dry run as plan_make.make() wants it: what the written plan remembers of it, or the engine's answer now."""
    written = files.read_text(module.params["write_to"] or "") or ""
    given = module.params["gpus"] is not None

    def dry_run(model, cards, num_batch):
        before = plan_file.remembered(written, model, cards, num_batch, engine["label"])
        return before or plan_dry_run.run(engine, model, cards, num_batch, given)

    return dry_run


def cards_of(module):
    """(cards, None), or (None, why no card could be read and nothing was given instead)."""
    if module.params["gpus"] is not None:
        return plan_cards.given(module.params["gpus"]), None
    python = os.path.join(module.params["venv"], "bin/python")
    if gpu_client.load() is None and not has_respawned() and os.access(python, os.X_OK):
        respawn_module(python)
    instead = module.params["gpus_if_unreadable"]
    try:
        return plan_cards.read(gpu_sample.sample()), None
    except plan_cards.PlanError as error:
        if instead is None:
            raise
        return (plan_cards.given(instead) if instead else None), str(error)


def write(module, path, plan):
    """Bring the file to the plan; {changed, diff}."""
    after, before = plan_file.document(plan), files.read_text(path) or ""
    changed = not plan_file.same(before, plan)
    if changed and not module.check_mode:
        if not os.path.isdir(os.path.dirname(path)):
            module.fail_json(msg=f"The folder of write_to={path} is not there. Make it first, owned by root, mode 0755.")
        part = os.path.join(module.tmpdir, "plan.json")
        with open(part, "w", encoding="utf-8") as handle:
            handle.write(after)
        module.atomic_move(part, path)
    if (changed or os.path.exists(path)) and not (changed and module.check_mode):
        changed = module.set_mode_if_different(path, "0644", changed)
    return {"changed": changed, "diff": {"before_header": path, "after_header": path, "before": before, "after": after if changed else before}}


ARGUMENTS = {
    "models": {
        "type": "list",
        "elements": "dict",
        "required": True,
        "options": MODEL,
        "mutually_exclusive": [SOURCES],
        "required_one_of": [SOURCES],
    },
    "gpus": {"type": "list", "elements": "dict", "options": CARD},
    "gpus_if_unreadable": {"type": "list", "elements": "dict", "options": CARD},
    "method": {"type": "str", "default": "auto", "choices": ["auto", "formula", "dry_run"]},
    "engine": {"type": "path", "default": "/opt/ollama/current/lib/ollama"},
    "engine_environment": {"type": "dict", "default": {}},
    "engine_user": {"type": "str", "default": "ollama"},
    "engine_build": {"type": "int"},
    "reserve_mib": {"type": "int", "default": 1024},
    "max_loaded_models": {"type": "int", "default": 1},
    "state": {"type": "str", "default": "planned", "choices": ["planned", "asserted"]},
    "write_to": {"type": "path"},
    "server_url": {"type": "str", "default": ollama_client.DEFAULT_URL},
    "venv": {"type": "path", "default": "/opt/gpufleet/venv"},
}


def engine_of(asked):
    """The engine for dry runs, or None; PlanError where it is needed and missing."""
    if asked["method"] == "formula":
        return None
    engine = plan_dry_run.find(asked["engine"], asked["engine_environment"], asked["engine_user"])
    if asked["method"] == "dry_run" and engine is None:
        raise plan_cards.PlanError(
            f"method=dry_run needs llama-server in engine={asked['engine']}, and it is not there."
            " Install Ollama (role gpufleet.llm.ollama) or use method=formula."
        )
    return engine


def make_plan(module, models, cards, unreadable):
    """The plan, with what could not be read among its warnings."""
    asked, engine = module.params, engine_of(module.params)
    plan = plan_make.make(
        models,
        cards or [],
        reserve_mib=asked["reserve_mib"],
        max_loaded_models=asked["max_loaded_models"],
        build=asked["engine_build"] or (engine and engine["build"]),
        dry_run=engine and cards and dry_runs(module, engine),
    )
    if unreadable:
        plan["warnings"].append(f"{unreadable} Planned for the cards in gpus_if_unreadable." if cards else unreadable)
    if cards is None:
        plan["fits"] = None
    return plan


def main():
    module = AnsibleModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    asked = module.params
    try:
        cards, unreadable = cards_of(module)
        client, headers = ollama_client.Client(asked["server_url"], timeout=30), []
        models = [model_of(given, client, headers) for given in asked["models"]]
        plan = make_plan(module, models, cards, unreadable)
    except ERRORS as error:
        module.fail_json(msg=str(error))
    if asked["method"] == "dry_run" and plan["method"] != "dry_run":
        module.fail_json(msg=f"The dry run could not be had. {' '.join(plan['warnings'])}", plan=plan)
    read = ("source", "bytes_read", "requests", "file_bytes")
    sources = [{"name": model["name"], **{key: model["header"][key] for key in read}} for model in models]
    result = {"changed": False, "plan": plan, "sources": sources}
    for warning in plan["warnings"]:
        module.warn(warning)
    faults = plan["errors"] + plan["problems"]
    if asked["state"] == "asserted" and faults:
        module.fail_json(msg=" ".join(faults), **result)
    if asked["write_to"]:
        result.update(write(module, asked["write_to"], plan))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
