# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of the Ollama server's HTTP API.

Private to this collection: it may change or go without notice.

What it knows about the API was read in Ollama 0.32.15 and 0.33.0-rc2 and tried on both: errors can come inside
a stream that began with HTTP 200; a stream that just ends is a failure; only reads, and writes that never
reached the server, may be sent again.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from typing import Any

from .. import _http

DEFAULT_URL = "http://127.0.0.1:11434"
DEFAULT_PORT = 11434


class OllamaError(Exception):
    """A request that did not do what it was to do; the text is for an operator.

    `kind` is one of: refused, unreachable (name, route, socket file), timeout, tls, not_found, bad_request, busy,
    server (5xx, or an error inside a stream), not_ollama, cut (the answer ends too early), forbidden.
    `status` is the HTTP status where there was one, `error` the server's own words.
    """

    def __init__(self, kind: str, message: str, status: int | None = None, error: str = ""):
        super().__init__(message)
        self.kind, self.status, self.error = kind, status, error

    @property
    def down(self) -> bool:
        """Whether no server answered at all."""
        return self.kind in ("refused", "unreachable")


class Client:
    """One server. Keeps one connection; `server` (an _http.Server) counts what it sends.

    `timeout` bounds the silence of the server while it reads or writes a stream (a pull of an hour is fine, a
    minute without a byte may not be); `connect_timeout` bounds the start of a connection. Reads are tried
    `retries` more times when no server answers or the connection breaks.
    """

    #: The least that a read waits for its answer, however short `timeout` is, is `timeout`; the most is this.
    READ_TIMEOUT = 30.0

    def __init__(
        self,
        url: str = DEFAULT_URL,
        timeout: float = 600.0,
        connect_timeout: float = 5.0,
        retries: int = 1,
        retry_wait: float = 0.3,
    ):
        self.url, self.timeout = str(url), timeout
        self.server = _http.Server(url, timeout, connect_timeout, retries, retry_wait, DEFAULT_PORT)

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        self.server.close()

    # -- reads

    def version(self) -> str:
        """The server's version, such as 0.32.15."""
        return str(self._field(self._read("GET", "/api/version"), "version", str))

    def tags(self) -> list[dict[str, Any]]:
        """Models in the store: name, digest (64 hex digits, of the manifest), size in bytes, modified_at, details."""
        return self._field(self._read("GET", "/api/tags"), "models", list)

    def ps(self) -> list[dict[str, Any]]:
        """Loaded models: name, digest, size and size_vram in bytes, expires_at, context_length."""
        return self._field(self._read("GET", "/api/ps"), "models", list)

    def show(self, model: str, verbose: bool = False) -> dict[str, Any]:
        """What the server holds for one model. OllamaError of kind not_found when it has none of that name."""
        answer = self._read("POST", "/api/show", {"model": model, "verbose": verbose} if verbose else {"model": model})
        self._field(answer, "modelfile", str)
        return answer

    def head_blob(self, digest: str) -> bool:
        """Whether the store has the blob `sha256:<64 hex>`."""
        status, _raw = self._exchange("HEAD", f"/api/blobs/{digest}", None, self._read_timeout())
        if status in (200, 404):
            return status == 200
        raise self._status_error(status, b"", f"HEAD /api/blobs/{digest}")

    # -- writes

    def create(self, request: dict[str, Any]) -> list[str]:
        """Create a model from the fields of /api/create; the status lines. Fails unless the server said `success`."""
        return [
            str(line.get("status", ""))
            for line in self._until(self._stream("/api/create", {**request, "stream": True}), "success")
        ]

    def pull(self, model: str, insecure: bool = False) -> dict[str, Any]:
        """Pull a model; `{bytes, statuses}`: what was downloaded now, and each status once, in order.

        A blob counts by what was added while the server reported it: what was there already does not count, nor what
        came so fast that its first word of it was the last.
        """
        first: dict[str, int] = {}
        last: dict[str, int] = {}
        statuses: list[str] = []
        for line in self._until(self._pulling({"model": model, "insecure": insecure, "stream": True}), "success"):
            status = str(line.get("status", ""))
            if not statuses or statuses[-1] != status:
                statuses.append(status)
            digest = line.get("digest")
            if digest:
                done = int(line.get("completed") or 0)
                first.setdefault(digest, done)
                last[digest] = max(done, last.get(digest, 0))
        return {"bytes": sum(last[digest] - first[digest] for digest in last), "statuses": statuses}

    def _pulling(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        try:
            yield from self._stream("/api/pull", request)
        except OllamaError as error:
            if error.kind != "timeout":
                raise
            # Packets that are dropped make nobody say anything, and the server itself waits for half a minute.
            raise OllamaError(error.kind, f"{error} It was to pull {request['model']}:{_CLOSED}") from error

    def copy(self, source: str, destination: str) -> None:
        """Give a model a second name; only its manifest is copied."""
        self._write("POST", "/api/copy", {"source": source, "destination": destination})

    def delete(self, model: str) -> None:
        """Delete a model from the store. The server does not unload it: `unload` first."""
        self._write("DELETE", "/api/delete", {"model": model})

    def generate_load(self, model: str, keep_alive: Any = None) -> None:
        """Load a model without asking it anything; an embedding model by an empty embedding."""
        request: dict[str, Any] = {"model": model, "stream": False}
        if keep_alive is not None:
            request["keep_alive"] = keep_alive
        try:
            self._write("POST", "/api/generate", request)
        except OllamaError as error:
            if "does not support generate" not in error.error:
                raise
            del request["stream"]
            self._write("POST", "/api/embed", {**request, "input": ""})

    def unload(self, model: str) -> None:
        """Ask the server to unload a model as soon as its requests are done; no error when it is not loaded."""
        self._write("POST", "/api/generate", {"model": model, "keep_alive": 0, "stream": False})

    def push_blob(self, path: str, digest: str) -> int:
        """Upload a file as blob `digest` unless the store has it; bytes sent."""
        if self.head_blob(digest):
            return 0
        size = os.stat(path).st_size
        with open(path, "rb") as source:
            length = {"Content-Length": str(size)}
            status, raw = self._exchange("POST", f"/api/blobs/{digest}", source, self.timeout, length)
        # A server may hang up after an upload; a write that follows on the same connection would be lost.
        self.close()
        if status not in (200, 201):
            raise self._status_error(status, raw, f"the upload of {path}")
        return size

    def chat(self, model: str, messages: list[dict[str, Any]], **fields: Any) -> Iterator[dict[str, Any]]:
        """The lines of an answer of /api/chat, as they come; the last has `done`. `fields` go into the request."""
        return self._until_done(
            self._stream("/api/chat", {"model": model, "messages": messages, **fields, "stream": True})
        )

    def generate(self, model: str, prompt: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """The lines of an answer of /api/generate, as they come; the last has `done`."""
        return self._until_done(
            self._stream("/api/generate", {"model": model, "prompt": prompt, **fields, "stream": True})
        )

    # -- the wire

    def _read_timeout(self) -> float:
        return min(self.timeout, self.READ_TIMEOUT)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except _http.HttpError as error:
            raise self._transport_error(error) from error

    def _exchange(self, method: str, path: str, body: Any, timeout: float, headers: dict[str, str] | None = None):
        """(status, body) of an answer."""
        with self._translated():
            response = self.server.send(method, path, body, headers, timeout, self._repeatable(method, path))
            return response.status, self.server.read(response)

    @staticmethod
    def _repeatable(method: str, path: str) -> bool:
        return method in ("GET", "HEAD") or path == "/api/show"

    def _read(self, method: str, path: str, body: Any = None) -> Any:
        status, raw = self._exchange(method, path, body, self._read_timeout())
        if status != 200:
            raise self._status_error(status, raw, path)
        try:
            return json.loads(raw)
        except ValueError:
            raise self._not_ollama(f"its answer to {path} is no JSON: {_http.excerpt(raw)}") from None

    def _write(self, method: str, path: str, body: Any) -> Any:
        status, raw = self._exchange(method, path, body, self.timeout)
        if status != 200:
            raise self._status_error(status, raw, path, body)
        return raw

    def _field(self, answer: Any, name: str, kind: type) -> Any:
        if not isinstance(answer, dict) or name not in answer:
            raise self._not_ollama(f"its answer has no '{name}': {_http.excerpt(json.dumps(answer).encode())}")
        # An empty store was `null` in some versions.
        value = [] if kind is list and answer[name] is None else answer[name]
        if not isinstance(value, kind):
            raise self._not_ollama(f"'{name}' in its answer is {_http.excerpt(json.dumps(value).encode())}")
        return value

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The lines of a streamed answer as dicts; an `error` line, also after HTTP 200, becomes an OllamaError."""
        with self._translated():
            response = self.server.send("POST", path, body, None, self.timeout)
            if response.status != 200:
                raise self._status_error(response.status, self.server.read(response), path, body)
            lines = self.server.lines(response)
            try:
                for raw in lines:
                    if raw.strip():
                        yield self._line(raw, path, body)
            finally:
                # An answer that was not read to its end leaves a connection that cannot be used again.
                lines.close()

    def _line(self, raw: bytes, path: str, body: dict[str, Any]) -> dict[str, Any]:
        try:
            line = json.loads(raw)
        except ValueError:
            if not raw.endswith(b"\n"):
                raise self._cut(path) from None
            raise self._not_ollama(f"a line of its answer to {path} is no JSON: {_http.excerpt(raw)}") from None
        if not isinstance(line, dict):
            raise self._not_ollama(f"a line of its answer to {path} is no object: {_http.excerpt(raw)}")
        if "error" in line:
            status = line.get("status") if isinstance(line.get("status"), int) else None
            raise self._server_error(str(line["error"]), status, path, body)
        return line

    def _until(self, lines: Iterator[dict[str, Any]], last: str) -> Iterator[dict[str, Any]]:
        status = None
        for line in lines:
            status = line.get("status")
            yield line
        if status != last:
            raise self._cut(f"status '{status}'" if status else "nothing")

    def _until_done(self, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        done = False
        for line in lines:
            done = bool(line.get("done"))
            yield line
        if not done:
            raise self._cut("an answer without its last line")

    # -- errors

    def _transport_error(self, error: _http.HttpError) -> OllamaError:
        if error.kind in ("not_http", "too_long"):
            told = f"What answers at {self.url} is not an Ollama server, or a proxy before it. {error} Check url."
            return OllamaError("not_ollama", told)
        return OllamaError(error.kind, f"{error} {_TRANSPORT_ADVICE[error.kind]}")

    def _cut(self, after: str) -> OllamaError:
        return OllamaError(
            "cut",
            f"The answer of the server at {self.url} ended early, after {after}. See `journalctl -u ollama`; run "
            "again.",
        )

    def _not_ollama(self, what: str) -> OllamaError:
        return OllamaError(
            "not_ollama",
            f"What answers at {self.url} is not an Ollama server, or a proxy before it: {what}. Check url.",
        )

    def _status_error(self, status: int, raw: bytes, path: str, body: Any = None) -> OllamaError:
        try:
            error = str(json.loads(raw)["error"])
        except (ValueError, KeyError, TypeError):
            if status in (502, 503, 504):
                return OllamaError(
                    "unreachable", f"The proxy at {self.url} answers {status}: no Ollama server behind it.", status
                )
            return self._not_ollama(f"it answers {path} with HTTP {status}: {_http.excerpt(raw)}")
        return self._server_error(error, status, path, body)

    def _server_error(self, error: str, status: int | None, path: str, body: Any = None) -> OllamaError:
        kinds = {400: "bad_request", 401: "forbidden", 403: "forbidden", 404: "not_found", 503: "busy"}
        kind = "not_found" if "file does not exist" in error else kinds.get(status or 0, "server")
        model = body.get("model") if isinstance(body, dict) else None
        about = f" about {model}" if model else ""
        advice = _advice(error, kind)
        code = f" (HTTP {status})" if status else ""
        return OllamaError(
            kind,
            f"The Ollama server at {self.url} answered {path}{about} with: {error.strip().rstrip('.')}{code}.{advice}",
            status,
            error,
        )


#: What to do about a failure of the transport, by its kind.
_TRANSPORT_ADVICE = {
    "refused": "Wanted a running Ollama server there; see `systemctl status ollama` on the host.",
    "unreachable": "Wanted the address of a running Ollama server; check url.",
    "timeout": "It may be loading or stuck: see `journalctl -u ollama`; raise the timeout if it was busy.",
    "tls": "Ollama itself speaks no TLS; check the proxy's certificate or use http://.",
    "cut": "See `journalctl -u ollama`; run again.",
}

#: What the role ollama's unit does.
_CLOSED = " where the unit keeps it from registries (IPAddressDeny), `systemctl start ollama-pull` opens the way."

#: The server's words -> what to do about them.
_ADVICES = (
    (
        "no space left on device",
        " The disk of the model store is full: free space there (a pull or an import needs up to three times the "
        "file).",
    ),
    (
        "requires flash_attn",
        " A quantized KV cache needs flash attention: set ollama_flash_attention=true, or ollama_kv_cache_type=f16.",
    ),
    (
        "must be of type",
        " The model was created with a parameter of the wrong type: declare it again with ollama_model, which checks "
        "types.",
    ),
    ("llama-server binary not found", " The server's own engine is missing: install the whole release (bin and lib)."),
    ("file does not exist", " The registry has no model of that name and tag: check the spelling."),
    ("i/o timeout", f" Packets to it are dropped on their way:{_CLOSED}"),
    (
        "pull model manifest",
        " Check the model's name, and that the host reaches the registry (HTTPS_PROXY of the service).",
    ),
    ("server busy", " Its queue is full: wait, or raise OLLAMA_MAX_QUEUE."),
    ("out of memory", " Lower num_ctx, set ollama_kv_cache_type=q8_0, or unload other models."),
    (
        "llama-server process has terminated",
        " The runner died: see `journalctl -u ollama`; memory, the KV cache type and the driver are the usual reasons.",
    ),
    ("digest mismatch", " The file changed while it was sent, or was damaged: run again."),
)


def _advice(error: str, kind: str) -> str:
    lowered = error.lower()
    for words, advice in _ADVICES:
        if words in lowered:
            return advice
    return " See `journalctl -u ollama`." if kind == "server" else ""
