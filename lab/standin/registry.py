# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Pulls from a registry as the real server does: https, the system's trust store, proxies of the environment."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

from . import VERSION
from .settings import MIB, ApiError, Faults, env_bool, log
from .store import MANIFEST_TYPE, Name, NotFoundError, Store

RETRIES = 6


class Registry:
    """One download at a time; what is there of a blob is in <blob>-partial, and the next attempt goes on from it."""

    def __init__(self, store: Store, faults: Faults):
        self.store, self.faults, self.lock = store, faults, threading.Lock()

    def open(self, method: str, url: str, headers: dict | None = None):
        """Response of a request; ApiError in the server's words."""
        agent = {"User-Agent": f"ollama/{VERSION}", **(headers or {})}
        try:
            return urllib.request.urlopen(urllib.request.Request(url, method=method, headers=agent), timeout=30)
        except urllib.error.HTTPError as error:
            said = f"{error.code}: {error.read().decode('utf-8', 'replace').strip()}"
            raise ApiError(500, "file does not exist" if error.code == 404 else said) from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)).lower()
            raise ApiError(500, f'{method.capitalize()} "{url}": {reason}') from error

    def pull(self, name: Name, insecure: bool = False):
        """Progress of a pull, one dict a line."""
        base = f"{'http' if insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}"
        old = []
        with contextlib.suppress(NotFoundError, ValueError):
            old = self.store.manifest(name).everything
        yield {"status": "pulling manifest"}
        try:
            with self.open("GET", f"{base}/manifests/{name.tag}", {"Accept": MANIFEST_TYPE}) as response:
                body = response.read()
        except ApiError as error:
            raise ApiError(500, f"pull model manifest: {error.message}") from error
        layers = [*json.loads(body)["layers"], json.loads(body)["config"]]
        fresh = [layer["digest"] for layer in layers if not os.path.exists(self.store.blob(layer["digest"]))]
        for layer in layers:
            if layer["digest"] in fresh:
                with self.lock:
                    yield from self.download(f"{base}/blobs/{layer['digest']}", layer["digest"])
            else:
                yield progress(layer["digest"], layer["size"], layer["size"])
        yield {"status": "verifying sha256 digest"}
        for digest in fresh:
            got = file_digest(self.store.blob(digest))
            if got != digest:
                os.unlink(self.store.blob(digest))
                raise ApiError(500, f"digest mismatch, file must be downloaded again: want {digest}, got {got}")
        yield {"status": "writing manifest"}
        self.store.write_manifest(name, body)
        unused = [layer for layer in old if layer["digest"] not in {one["digest"] for one in layers}]
        if unused and not env_bool("OLLAMA_NOPRUNE"):
            yield {"status": "removing unused layers"}
            self.store.remove_unused(unused)
        yield {"status": "success"}

    def download(self, url: str, digest: str):
        path = self.store.blob(digest)
        with self.open("GET", url) as response:
            total, where = int(response.headers.get("Content-Length") or 0), response.headers.get("Location")
        if not where:
            raise ApiError(500, "http: no Location header in response")
        with open(path + "-partial", "ab") as out:
            for attempt in range(RETRIES):
                try:
                    yield from self.attempt(urllib.parse.urljoin(url, where), out, digest, total)
                    break
                except ApiError as error:
                    log("INFO", f"{digest[7:19]} part 0 attempt {attempt} failed: {error.message}")
                    if attempt == RETRIES - 1:
                        raise ApiError(500, f"max retries exceeded: {error.message}") from error
                    time.sleep(float(self.faults.get("pull_retry_base_s", 1)) * 2**attempt)
        os.rename(path + "-partial", path)

    def attempt(self, url: str, out, digest: str, total: int):
        """Progress of one request for the rest of a blob; ApiError where it breaks off."""
        done = out.tell()
        with self.open("GET", url, {"Range": f"bytes={done}-{total - 1}"}) as response:
            while done < total:
                try:
                    block = response.read(min(MIB // 4, total - done))
                except (http.client.HTTPException, ssl.SSLError, ConnectionError, TimeoutError):
                    block = b""
                if not block:
                    raise ApiError(500, "unexpected EOF")
                out.write(block)
                out.flush()
                done += len(block)
                yield progress(digest, total, done)


def progress(digest: str, total: int, completed: int) -> dict:
    return {"status": f"pulling {digest[7:19]}", "digest": digest, "total": total, "completed": completed}


def file_digest(path: str) -> str:
    sha = hashlib.sha256()
    with open(path, "rb") as handle:
        for block in iter(lambda: handle.read(MIB), b""):
            sha.update(block)
    return "sha256:" + sha.hexdigest()
