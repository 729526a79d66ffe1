# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a registry keeps for a model's name: its manifest, read without pulling.

Private to this collection: it may change or go without notice. Source: server/images.go of Ollama.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from .. import _http
from .client import OllamaError
from .names import Name, parse_name

LONGEST_MANIFEST = 1024 * 1024
_ACCEPT = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}


def base_url(name: Name, insecure: bool = False) -> str:
    """Where the registry keeps the model's manifests and blobs; by plain HTTP if `insecure`."""
    return f"{'http' if insecure else 'https'}://{name.host}/v2/{name.namespace}/{name.model}"


def manifest(name: Name, insecure: bool = False, silence_s: float = 10.0, deadline_s: float = 60.0) -> bytes:
    """The manifest of a name as the registry sends it. Raises _http.HttpError."""
    what = f"Model {name.short} in the registry {name.host}"
    url = f"{base_url(name, insecure)}/manifests/{name.tag}"
    return _http.get(url, LONGEST_MANIFEST, _ACCEPT, what, silence_s, deadline_s)


def layers(raw: bytes) -> list[dict[str, Any]] | None:
    """The layers of a manifest ({mediaType, digest, size}); None where it is not one of a model."""
    try:
        found = json.loads(raw)["layers"]
        return found if isinstance(found, list) and all(isinstance(one, dict) for one in found) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def digest(name: str, insecure: bool = False, timeout_s: float = 10.0) -> str:
    """The digest that `name` has in its registry now: what /api/tags shows after a pull (64 hex digits).

    The server stores a pulled manifest verbatim and its digest is the manifest's sha256, so this answers "would a
    pull change anything?" without pulling. Raises OllamaError.
    """
    parts = parse_name(name)
    try:
        raw = manifest(parts, insecure, timeout_s)
    except _http.HttpError as error:
        if error.kind == "too_long":
            raise _no_manifest(parts, str(error)) from error
        if error.status is None:
            told = f"The registry {parts.host} cannot be asked about {parts.short}: {error}"
            raise OllamaError("unreachable", told) from error
        reason = f" ({error.reason.rstrip('.')})" if error.reason else ""
        told = f"The registry {parts.host} answers HTTP {error.status}{reason} for {parts.short}"
        kind = "not_found" if error.status == 404 else "server"
        raise OllamaError(kind, f"{told}; check the model's name and tag.", error.status) from error
    if layers(raw) is None:
        raise _no_manifest(parts, _http.excerpt(raw))
    return hashlib.sha256(raw).hexdigest()


def _no_manifest(name: Name, what: str) -> OllamaError:
    return OllamaError("not_ollama", f"The registry {name.host} answers for {name.short} with no manifest: {what}.")
