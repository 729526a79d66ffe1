# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""A model made from another one or from a file: /api/create."""

from __future__ import annotations

import json
import os

from . import gguf as gguf_file
from .registry import Registry, file_digest
from .settings import ApiError, compact, env_bool
from .store import CONFIG_TYPE, MEDIA, Name, NotFoundError, Store, manifest_bytes

INHERITED = ("renderer", "parser", "requires")


def create(store: Store, registry: Registry, body: dict):
    """Progress of a create, one dict a line; what is wrong with the request is an ApiError at once."""
    name = Name.parse(body.get("model") or body.get("name") or "")
    if not name.valid():
        raise ApiError(400, "invalid model name")
    for path, digest in (body.get("files") or {}).items():
        if any(part in ("", ".", "..") for part in path.split("/")):
            raise ApiError(400, "file path must be relative")
        if not digest:
            raise ApiError(400, "invalid digest format")
    if not body.get("from") and body.get("files") is None:
        raise ApiError(400, "neither 'from' or 'files' was specified")
    return _create(store, registry, store.existing(name), body)


def _create(store: Store, registry: Registry, name: Name, body: dict):
    old = store.manifest(name).everything if os.path.exists(store.manifest_path(name)) else []
    config = {key: body.get(key) or "" for key in INHERITED}
    if body.get("from"):
        layers, inherited = yield from _from_model(store, registry, body["from"])
        config = {key: config[key] or inherited.get(key, "") for key in INHERITED}
    else:
        layers = yield from _from_files(store, body["files"])
    for layer in layers:
        if layer["mediaType"] == MEDIA + "model":
            weights = gguf_file.read(store.blob(layer["digest"]))
            config = {**weights.facts(), **{key: value for key, value in config.items() if value}}
    layers = _texts(store, layers, body)
    config_layer = store.put((compact({**config, "architecture": "amd64", "os": "linux"}) + "\n").encode(), CONFIG_TYPE)
    yield from ({"status": layer["status"]} for layer in layers)
    yield {"status": "writing manifest"}
    with store.lock:
        store.write_manifest(name, manifest_bytes(config_layer, layers))
        if old and not env_bool("OLLAMA_NOPRUNE"):
            store.remove_unused(old)
    yield {"status": "success"}


def _from_model(store: Store, registry: Registry, text: str):
    """(layers, config) of a base, which is pulled if it is missing."""
    name = Name.reference(text)
    try:
        base = store.manifest(name)
    except NotFoundError:
        yield from registry.pull(name)
        base = store.manifest(name)
    layers = [store.reuse(layer["digest"], layer["mediaType"], name.short()) for layer in base.layers]
    return layers, json.loads(store.text(base.config["digest"]))


def _from_files(store: Store, files: dict):
    """Layers from uploaded blobs, each rewritten as the real server has it done by llama-quantize."""
    if not files:
        raise ApiError(400, "unknown type")
    layers = []
    for digest in files.values():
        yield {"status": "parsing GGUF"}
        store.reuse(digest, "")
        try:
            weights = gguf_file.read(store.blob(digest))
        except gguf_file.GgufError as error:
            raise ApiError(400, "supplied file was not in GGUF format") from error
        with store.unfinished() as (path, _out):
            gguf_file.rewrite(weights, path)
            yield {"status": "verifying conversion"}
            layers.append(store.reuse(store.adopt(path, file_digest(path)), MEDIA + "model"))
    return layers


def _texts(store: Store, layers: list, body: dict) -> list:
    """The layers with those of template, system, license, parameters and messages that a request sets."""
    for kind in ("template", "system"):
        if body.get(kind):
            layers = _replace(store, layers, kind, body[kind])
    licenses = body.get("license") or []
    for text in [licenses] if isinstance(licenses, str) else licenses:
        layers.append(store.put(text.encode(), MEDIA + "license"))
    parameters = {}
    for layer in layers:
        if layer["mediaType"] == MEDIA + "params":
            parameters = json.loads(store.text(layer["digest"]))
    parameters.update(body.get("parameters") or {})
    if parameters:
        layers = _replace(store, layers, "params", compact(dict(sorted(parameters.items()))) + "\n")
    if body.get("messages"):
        layers = _replace(store, layers, "messages", compact(body["messages"]) + "\n")
    return layers


def _replace(store: Store, layers: list, kind: str, text: str) -> list:
    media = MEDIA + kind
    return [layer for layer in layers if layer["mediaType"] != media] + [store.put(text.encode(), media)]
