# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of models, and the models folder: manifests and blobs, arranged as the real server arranges them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import tempfile
import threading
import time
from typing import NamedTuple

from .settings import MIB, ApiError, compact, log

DEFAULT_HOST, DEFAULT_NAMESPACE = "registry.ollama.ai", "library"
NAME = re.compile(r"\w[\w.:-]{0,349}/\w[\w-]{0,79}/\w[\w.-]{0,79}/\w[\w.-]{0,79}", re.ASCII)
DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
GRACE_S = 3600  # unreferenced blobs younger than this survive a start
MEDIA = "application/vnd.ollama.image."
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"


class NotFoundError(Exception):
    """A manifest that is not in the store."""


class Name(NamedTuple):
    """[host/][namespace/]model[:tag] with the defaults filled in."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name:
        """The parts of a text, valid or not."""
        before, colon, tag = text.rpartition(":")
        if not colon or "/" in tag:
            before, tag = text, "latest"
        *rest, model = before.rpartition("://")[2].split("/")
        namespace = rest.pop() if rest else DEFAULT_NAMESPACE
        return cls("/".join(rest) if rest else DEFAULT_HOST, namespace, model, tag)

    @classmethod
    def reference(cls, text: str) -> Name:
        """The name in a request; ApiError for what is not one, and for a model of the cloud."""
        text = (text or "").strip()
        if not text:
            raise ApiError(400, "model is required")
        if text.endswith((":cloud", "-cloud")):
            raise ApiError(403, "ollama cloud is disabled: remote inference is unavailable")
        name = cls.parse(text[: -len(":local")] if text.endswith(":local") else text)
        if not name.valid():
            raise ApiError(400, "invalid model name")
        return name

    def valid(self) -> bool:
        return bool(NAME.fullmatch(self.path()))

    def path(self) -> str:
        return "/".join(self)

    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"

    def short(self) -> str:
        """The shortest form that means this model."""
        if self.host.lower() != DEFAULT_HOST:
            return self.full()
        prefix = "" if self.namespace.lower() == DEFAULT_NAMESPACE else f"{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag}"


class Manifest:
    """One manifest file: config and layers as in the file, digest and time of the file."""

    def __init__(self, path: str):
        self.path = path
        with open(path, "rb") as handle:
            body = handle.read()
            self.modified = os.fstat(handle.fileno()).st_mtime
        found = json.loads(body)
        self.config, self.layers = found.get("config") or {}, found.get("layers") or []
        self.everything = self.layers + ([self.config] if self.config.get("digest") else [])
        self.digest = hashlib.sha256(body).hexdigest()


class Store:
    def __init__(self, root: str):
        self.root, self.lock = root, threading.RLock()

    def folder(self, name: str) -> str:
        """manifests or blobs, made if it is missing."""
        path = os.path.join(self.root, name)
        os.makedirs(path, mode=0o755, exist_ok=True)
        return path

    def blob(self, digest: str) -> str:
        """Path of a blob; ApiError for what is not a digest."""
        if not DIGEST.fullmatch(digest):
            raise ApiError(400, "invalid digest format")
        return os.path.join(self.folder("blobs"), digest.replace(":", "-"))

    def text(self, digest: str) -> str:
        with open(self.blob(digest), encoding="utf-8", newline="") as handle:
            return handle.read()

    def manifest_path(self, name: Name) -> str:
        return os.path.join(self.folder("manifests"), name.path())

    def manifest(self, name: Name) -> Manifest:
        """A name's manifest; NotFoundError, ValueError for one that is broken."""
        try:
            return Manifest(self.manifest_path(name))
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise NotFoundError(name.full()) from error

    def names(self) -> list:
        root, found = self.folder("manifests"), []
        for folder, _folders, files in os.walk(root):
            parts = os.path.relpath(folder, root).split(os.sep)
            found += [Name(*parts, tag) for tag in files if len(parts) == 3]
        return [name for name in sorted(found) if name.valid()]

    def manifests(self, strict: bool = False) -> list:
        """[(name, manifest)] of all that can be read; strict raises ValueError for one that cannot."""
        found = []
        for name in self.names():
            try:
                found.append((name, self.manifest(name)))
            except NotFoundError:
                continue
            except ValueError as error:
                if strict:
                    raise
                log("WARN", "bad manifest", name=name.full(), error=error)
        return found

    def existing(self, name: Name) -> Name:
        """The name as an existing model spells it."""
        return next((other for other in self.names() if other.path().lower() == name.path().lower()), name)

    @contextlib.contextmanager
    def unfinished(self):
        """(path, open file) of a blob without a name; nothing is left of one that nobody adopted."""
        handle, path = tempfile.mkstemp(prefix="sha256-", dir=self.folder("blobs"))
        try:
            with os.fdopen(handle, "wb") as out:
                yield path, out
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def adopt(self, path: str, digest: str) -> str:
        with self.lock:
            if not os.path.exists(self.blob(digest)):
                os.chmod(path, 0o644)
                os.rename(path, self.blob(digest))
            os.utime(self.blob(digest))
        return digest

    def put(self, body: bytes, media: str) -> dict:
        """A layer of these bytes, made unless it is there."""
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        status = f"{'using existing' if os.path.exists(self.blob(digest)) else 'creating new'} layer {digest}"
        self.put_stream(io.BytesIO(body).read, len(body))
        return {"mediaType": media, "digest": digest, "size": len(body), "status": status}

    def put_stream(self, read, length: int, wanted: str = "") -> str:
        """Digest of a blob made from a stream of that length; ApiError where another one is wanted."""
        sha, left = hashlib.sha256(), length
        with self.unfinished() as (path, out):
            while left > 0:
                block = read(min(MIB, left))
                if not block:
                    raise ApiError(500, "unexpected EOF")
                sha.update(block)
                out.write(block)
                left -= len(block)
            out.flush()
            found = "sha256:" + sha.hexdigest()
            if wanted not in ("", found):
                raise ApiError(400, f'digest mismatch, expected "{wanted}", got "{found}"')
            return self.adopt(path, found)

    def reuse(self, digest: str, media: str, origin: str = "") -> dict:
        """A layer that points at a blob that is there. origin: the model that it comes from."""
        path = self.blob(digest)
        try:
            os.utime(path)
        except FileNotFoundError as error:
            raise ApiError(500, f"stat {path}: no such file or directory") from error
        size, status = os.path.getsize(path), f"using existing layer {digest}"
        return {"mediaType": media, "digest": digest, "size": size, "from": origin, "status": status}

    def write_manifest(self, name: Name, body: bytes) -> None:
        path = self.manifest_path(name)
        os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
        with open(path, "wb") as handle:
            handle.write(body)

    def remove(self, name: Name) -> None:
        """Delete a manifest, folders that are empty then, and layers that nobody else uses."""
        with self.lock:
            manifest = self.manifest(name)
            os.unlink(manifest.path)
            for folder, _folders, _files in os.walk(self.folder("manifests"), topdown=False):
                if not os.listdir(folder):
                    os.rmdir(folder)
            self.remove_unused(manifest.everything)

    def in_use(self, strict: bool = False) -> set:
        return {layer.get("digest") for _name, found in self.manifests(strict) for layer in found.everything}

    def remove_unused(self, layers: list) -> None:
        with self.lock:
            used = self.in_use()
            for layer in layers:
                if layer["digest"] not in used:
                    with contextlib.suppress(FileNotFoundError):
                        os.unlink(self.blob(layer["digest"]))

    def prune(self) -> None:
        """What a start cleans up: old blobs that no manifest names, and halves of downloads."""
        try:
            used = self.in_use(strict=True)
        except ValueError as error:
            log("WARN", "corrupt manifests detected, skipping prune operation", error=error)
            return
        for entry in os.scandir(self.folder("blobs")):
            if entry.name.replace("-", ":", 1) not in used and time.time() - entry.stat().st_mtime >= GRACE_S:
                os.unlink(entry.path)


def manifest_bytes(config: dict, layers: list) -> bytes:
    kept = ("mediaType", "digest", "size", "from")
    config, *layers = ({key: one[key] for key in kept if one.get(key)} for one in (config, *layers))
    body = {"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": layers}
    return (compact(body) + "\n").encode()
