# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A client of the Ollama server's HTTP API, and its rules for model names.

Private to this collection: it may change or go without notice. It stands alone (standard library, no sibling
module), so that programs on a managed host can carry a copy of this one file.

What it knows about the API was read in Ollama 0.32.15 and 0.33.0-rc2 and tried on both: errors can come inside
a stream that began with HTTP 200; a stream that just ends is a failure; only reads, and writes that never
reached the server, may be sent again.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any, NamedTuple

DEFAULT_URL = "http://127.0.0.1:11434"
DEFAULT_PORT = 11434
DEFAULT_REGISTRY = "registry.ollama.ai"
#: A line of a stream, or a whole answer, that is longer did not come from Ollama (a licence or a template may be long).
LONGEST_LINE = 16 * 1024 * 1024
LONGEST_ANSWER = 256 * 1024 * 1024
BLOCK = 1024 * 1024


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


# --- names ---------------------------------------------------------------------------------------------------------


class Name(NamedTuple):
    """A model's name in full: registry host (may carry a port), namespace, model, tag."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def short(self) -> str:
        """As the server shows it: without the default registry and the namespace library, always with its tag."""
        if self.host.lower() != DEFAULT_REGISTRY:
            head = f"{self.host}/{self.namespace}/"
        else:
            head = "" if self.namespace.lower() == "library" else f"{self.namespace}/"
        return f"{head}{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """For comparisons: the server finds models whatever the case of their names."""
        return self.short.lower()


_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")
_SPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}\Z")


def parse_name(text: Any) -> Name:
    """The parts of `[host/][namespace/]model[:tag]` (types/model/name.go).

    Raises ValueError with what is wrong. Tags that the server keeps for its cloud (`cloud`, `local`, `*-cloud`)
    are refused: a model of such a name can be created and then not be shown.
    """
    if not isinstance(text, str) or not text:
        raise ValueError(f"'{text}' is no model name; wanted [host/][namespace/]model[:tag], such as qwen3:14b.")
    given = text
    text = re.sub(r"\Ahttps?://", "", text)
    head, slash, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    host, namespace = DEFAULT_REGISTRY, "library"
    if slash:
        host_part, more, namespace = head.rpartition("/")
        host = host_part if more else host
    tag = tag if colon else "latest"
    parts = (("host", host, _HOST), ("namespace", namespace, _SPACE), ("model", model, _PART), ("tag", tag, _PART))
    for what, part, rule in parts:
        if not rule.match(part):
            raise ValueError(
                f"'{given[:120]}' is no model name: its {what} '{part[:90]}' has to start with a letter, a digit or '_' "
                "and go on"
                f" with these{' or -' if what == 'namespace' else ', . or -'}, at most 80 in all."
                + (" A name with a registry host needs a namespace too: host/namespace/model." if what == "namespace" else "")
            )
    if tag.lower() in ("cloud", "local") or tag.lower().endswith("-cloud"):
        raise ValueError(f"'{given[:120]}' has the tag '{tag}', which Ollama keeps for its cloud; choose another tag.")
    return Name(host, namespace, model, tag)


def short_name(text: str) -> str:
    """`qwen3` -> `qwen3:latest`, `registry.ollama.ai/library/x:y` -> `x:y`."""
    return parse_name(text).short


def same_name(one: str, other: str) -> bool:
    """Whether both are the same model to the server."""
    try:
        return parse_name(one).key == parse_name(other).key
    except ValueError:
        return one.lower() == other.lower()


# --- connection ----------------------------------------------------------------------------------------------------


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a socket file."""

    def __init__(self, path: str, timeout: float):
        super().__init__("localhost", timeout=timeout, blocksize=BLOCK)
        self._path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Address(NamedTuple):
    """Where the server is: scheme http, https or unix; host and port, or the path of the socket; prefix of each path."""

    scheme: str
    host: str
    port: int
    prefix: str


def parse_url(url: str) -> Address:
    """The parts of a server's URL.

    `host`, `host:port`, `[::1]:11434`, `http://…`, `https://…`, and `http+unix://` with a socket's path: percent-encoded
    where a host stands (`http+unix://%2Frun%2Follama.sock/prefix`) or plain (`http+unix:///run/ollama.sock`).
    Without a port: 11434 for a bare host, else 80 and 443, as Ollama itself takes OLLAMA_HOST.
    """
    text = str(url).strip()
    scheme, sep, rest = text.partition("://")
    if not sep:
        scheme, rest = "", text
    if scheme in ("http+unix", "unix"):
        host, _slash, path = rest.partition("/")
        if host:
            return Address("unix", urllib.parse.unquote(host), 0, ("/" + path).rstrip("/"))
        if not path:
            raise ValueError(f"'{url}' names no socket; wanted http+unix:///path/of/the.sock")
        return Address("unix", "/" + urllib.parse.unquote(path), 0, "")
    if scheme not in ("", "http", "https"):
        raise ValueError(f"'{url}' has the scheme {scheme}; wanted http, https or http+unix.")
    netloc, slash, path = rest.partition("/")
    if netloc.count(":") > 1 and not netloc.startswith("["):
        netloc = f"[{netloc}]"
    try:
        parts = urllib.parse.urlsplit(f"//{netloc}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"'{url}' is no address of a server; wanted such as {DEFAULT_URL}") from None
    if not host or parts.username is not None:
        raise ValueError(f"'{url}' is no address of a server; wanted such as {DEFAULT_URL}")
    default = {"": DEFAULT_PORT, "http": 80, "https": 443}[scheme]
    return Address(scheme or "http", host, port or default, (slash + path).rstrip("/"))


class Client:
    """One server. Keeps one connection; counts what it sends.

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
        self.url = str(url)
        self.address = parse_url(url)
        self.timeout, self.connect_timeout = timeout, connect_timeout
        self.retries, self.retry_wait = retries, retry_wait
        #: (method, path) of each request that was sent, in order.
        self.requests: list[tuple[str, str]] = []
        #: Requests that may change the server or what it has loaded.
        self.writes = 0
        #: Seconds spent in requests.
        self.seconds = 0.0
        self._connection: http.client.HTTPConnection | None = None

    def close(self) -> None:
        """Drop the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

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
        response = self._send("HEAD", f"/api/blobs/{digest}", None, self._read_timeout())
        response.read()
        if response.status in (200, 404):
            return response.status == 200
        raise self._status_error(response.status, b"", f"HEAD /api/blobs/{digest}")

    # -- writes

    def create(self, request: dict[str, Any]) -> list[str]:
        """Create a model from the fields of /api/create; the status lines. Fails unless the server said `success`."""
        return [str(line.get("status", "")) for line in self._until(self._stream("/api/create", {**request, "stream": True}), "success")]

    def pull(self, model: str, insecure: bool = False) -> dict[str, Any]:
        """Pull a model; `{bytes, statuses}`: what was downloaded now, and each status once, in order.

        A blob counts by what was added while the server told of it: what was there already does not count, nor what
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
            response = self._send("POST", f"/api/blobs/{digest}", source, self.timeout, {"Content-Length": str(size)})
            body = self._body(response)
        if response.status not in (200, 201):
            raise self._status_error(response.status, body, f"the upload of {path}")
        return size

    def chat(self, model: str, messages: list[dict[str, Any]], **fields: Any) -> Iterator[dict[str, Any]]:
        """The lines of an answer of /api/chat, as they come; the last has `done`. `fields` are further fields of the "
        "request.
        """
        return self._until_done(self._stream("/api/chat", {"model": model, "messages": messages, **fields, "stream": True}))

    def generate(self, model: str, prompt: str, **fields: Any) -> Iterator[dict[str, Any]]:
        """The lines of an answer of /api/generate, as they come; the last has `done`."""
        return self._until_done(self._stream("/api/generate", {"model": model, "prompt": prompt, **fields, "stream": True}))

    # -- the wire

    def _read_timeout(self) -> float:
        return min(self.timeout, self.READ_TIMEOUT)

    def _read(self, method: str, path: str, body: Any = None) -> Any:
        response = self._send(method, path, body, self._read_timeout())
        return self._json(response, path)

    def _write(self, method: str, path: str, body: Any) -> Any:
        response = self._send(method, path, body, self.timeout)
        raw = self._body(response)
        if response.status != 200:
            raise self._status_error(response.status, raw, path, body)
        return raw

    def _json(self, response, path: str) -> Any:
        raw = self._body(response)
        if response.status != 200:
            raise self._status_error(response.status, raw, path)
        try:
            return json.loads(raw)
        except ValueError:
            raise self._not_ollama(f"its answer to {path} is no JSON: {_excerpt(raw)}") from None

    def _body(self, response) -> bytes:
        try:
            raw = response.read(LONGEST_ANSWER + 1)
            if len(raw) > LONGEST_ANSWER:
                raise self._not_ollama("its answer does not end")
            if response.length:
                # A read of at most so many bytes does not complain of too few.
                raise http.client.IncompleteRead(raw, response.length)
            return raw
        except (OSError, http.client.HTTPException) as error:
            raise self._network_error(error, sent=True) from error

    def _field(self, answer: Any, name: str, kind: type) -> Any:
        if not isinstance(answer, dict) or name not in answer:
            raise self._not_ollama(f"its answer has no '{name}': {_excerpt(json.dumps(answer).encode())}")
        # An empty store was `null` in some versions.
        value = [] if kind is list and answer[name] is None else answer[name]
        if not isinstance(value, kind):
            raise self._not_ollama(f"'{name}' in its answer is {_excerpt(json.dumps(value).encode())}")
        return value

    def _stream(self, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The lines of a streamed answer as dicts; an `error` line, also after HTTP 200, becomes an OllamaError."""
        response = self._send("POST", path, body, self.timeout)
        if response.status != 200:
            raise self._status_error(response.status, self._body(response), path, body)
        ended = False
        try:
            while True:
                raw = response.readline(LONGEST_LINE + 1)
                if not raw:
                    ended = True
                    return
                if len(raw) > LONGEST_LINE:
                    raise self._not_ollama(f"a line of its answer to {path} does not end")
                if not raw.strip():
                    continue
                try:
                    line = json.loads(raw)
                except ValueError:
                    if not raw.endswith(b"\n"):
                        raise self._cut(path) from None
                    raise self._not_ollama(f"a line of its answer to {path} is no JSON: {_excerpt(raw)}") from None
                if not isinstance(line, dict):
                    raise self._not_ollama(f"a line of its answer to {path} is no object: {_excerpt(raw)}")
                if "error" in line:
                    status = line.get("status") if isinstance(line.get("status"), int) else None
                    raise self._server_error(str(line["error"]), status, path, body)
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise self._network_error(error, sent=True) from error
        finally:
            if not ended:
                self.close()

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

    def _send(self, method: str, path: str, body: Any, timeout: float, headers: dict[str, str] | None = None):
        """Send one request and return the answer's head. Sent again only where that cannot do a thing twice."""
        read = method in ("GET", "HEAD") or path == "/api/show"
        headers = {"Accept": "application/json", **(headers or {})}
        if isinstance(body, (dict, list)):
            body = json.dumps(body, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")
            headers["Content-Type"] = "application/json"
        attempts = self.retries + 1
        while True:
            attempts -= 1
            reused = self._connection is not None
            began = time.monotonic()
            sent = False
            try:
                connection = self._connected(timeout)
                sent = True
                if not read:
                    # Counted when it goes out: a write that breaks off may have been done.
                    self.writes += 1
                self.requests.append((method, path))
                try:
                    connection.request(method, self.address.prefix + path, body=body, headers=headers)
                except ConnectionError as error:
                    response = self._last_words(connection, error)
                else:
                    response = connection.getresponse()
                self.seconds += time.monotonic() - began
                return response
            except (OSError, http.client.HTTPException) as error:
                self.seconds += time.monotonic() - began
                self.close()
                failure = self._network_error(error, sent)
                stale = reused and isinstance(error, (http.client.RemoteDisconnected, ConnectionError))
                if read and stale:
                    # The server closed an idle connection: that says nothing about the server.
                    attempts = max(attempts, 1)
                may = read or not sent
                if attempts < 1 or not may or failure.kind in ("timeout", "tls"):
                    raise failure from error
                if not stale:
                    time.sleep(self.retry_wait)

    @staticmethod
    def _last_words(connection: http.client.HTTPConnection, error: ConnectionError) -> http.client.HTTPResponse:
        """The answer of a server that hung up while a body was being sent: one whose disk is full says so and waits no longer."""
        try:
            return connection.getresponse()
        except (OSError, http.client.HTTPException):
            raise error from None

    def _connected(self, timeout: float) -> http.client.HTTPConnection:
        if self._connection is not None and not self._is_fresh(self._connection):
            self.close()
        if self._connection is None:
            connection = self._new_connection()
            connection.connect()
            self._connection = connection
        self._connection.sock.settimeout(timeout)
        return self._connection

    @staticmethod
    def _is_fresh(connection: http.client.HTTPConnection) -> bool:
        """Whether an idle connection is still open: a write must not be lost on one that the server closed."""
        if connection.sock is None:
            return False
        try:
            connection.sock.settimeout(0)
            connection.sock.recv(1, socket.MSG_PEEK)
            # Closed, or something that nobody asked for: either way not a connection to send on.
            return False
        except (BlockingIOError, ssl.SSLWantReadError, ValueError):
            # ValueError: TLS sockets take no flags; they are checked by the read that fails.
            return True
        except OSError:
            return False

    def _new_connection(self) -> http.client.HTTPConnection:
        address = self.address
        if address.scheme == "unix":
            return _UnixConnection(address.host, self.connect_timeout)
        if address.scheme == "https":
            return http.client.HTTPSConnection(address.host, address.port, timeout=self.connect_timeout, blocksize=BLOCK, context=ssl.create_default_context())
        return http.client.HTTPConnection(address.host, address.port, timeout=self.connect_timeout, blocksize=BLOCK)

    # -- errors

    def _network_error(self, error: Exception, sent: bool) -> OllamaError:
        url = self.url
        if isinstance(error, ConnectionRefusedError):
            text = f"Nothing answers at {url} (connection refused). Wanted a running Ollama server there; see `systemctl status ollama` on the host."
            return OllamaError("refused", text)
        if isinstance(error, ssl.SSLError):
            return OllamaError(
                "tls",
                f"TLS with {url} failed: {error}. Ollama itself speaks no TLS; check the proxy's certificate or use http://.",
            )
        if isinstance(error, (socket.timeout, TimeoutError)) or getattr(error, "errno", None) == errno.ETIMEDOUT:
            limit = self.timeout if sent else self.connect_timeout
            what = f"said nothing for {limit:g} s" if sent else f"did not take a connection within {limit:g} s"
            return OllamaError(
                "timeout",
                f"The server at {url} {what}. It may be loading or stuck: see `journalctl -u ollama`; raise the timeout if it was busy.",
            )
        if not sent and isinstance(error, OSError):
            return OllamaError(
                "unreachable",
                f"{url} cannot be reached: {error.strerror or error}. Wanted the address of a running Ollama server; check url.",
            )
        if isinstance(error, (http.client.BadStatusLine, http.client.UnknownProtocol)) and not isinstance(error, http.client.RemoteDisconnected):
            return self._not_ollama(f"it does not speak HTTP: {error}")
        return OllamaError(
            "cut",
            f"The server at {url} closed the connection in the middle of an answer ({error or type(error).__name__}). See `journalctl -u ollama`; run again.",
        )

    def _cut(self, after: str) -> OllamaError:
        return OllamaError("cut", f"The answer of the server at {self.url} ended early, after {after}. See `journalctl -u ollama`; run again.")

    def _not_ollama(self, what: str) -> OllamaError:
        return OllamaError("not_ollama", f"What answers at {self.url} is not an Ollama server, or a proxy before it: {what}. Check url.")

    def _status_error(self, status: int, raw: bytes, path: str, body: Any = None) -> OllamaError:
        try:
            error = str(json.loads(raw)["error"])
        except (ValueError, KeyError, TypeError):
            if status in (502, 503, 504):
                return OllamaError("unreachable", f"The proxy at {self.url} answers {status}: no Ollama server behind it.", status)
            return self._not_ollama(f"it answers {path} with HTTP {status}: {_excerpt(raw)}")
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


#: What the role ollama's unit does.
_CLOSED = " where the unit keeps it from registries (IPAddressDeny), `systemctl start ollama-pull` opens the way."
#: The server's words -> what to do about them.
_ADVICES = (
    (
        "no space left on device",
        " The disk of the model store is full: free space there (a pull or an import needs up to three times the file).",
    ),
    (
        "requires flash_attn",
        " A quantised KV cache needs flash attention: set ollama_flash_attention=true, or ollama_kv_cache_type=f16.",
    ),
    (
        "must be of type",
        " The model was created with a parameter of the wrong type: declare it again with ollama_model, which checks types.",
    ),
    ("llama-server binary not found", " The server's own engine is missing: install the whole release (bin and lib)."),
    ("file does not exist", " The registry has no model of that name and tag: check the spelling."),
    ("i/o timeout", f" Packets to it are dropped on their way:{_CLOSED}"),
    ("pull model manifest", " Check the model's name, and that the host reaches the registry (HTTPS_PROXY of the service)."),
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


def _excerpt(raw: bytes) -> str:
    """The beginning of an answer, fit for a sentence."""
    text = " ".join(raw[:400].decode("utf-8", "replace").split())
    return repr(text[:120]) if text else "nothing"


# --- beside the server ---------------------------------------------------------------------------------------------


def file_digest(path: str) -> str:
    """`sha256:<hex>` of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as source:
        for block in iter(lambda: source.read(BLOCK), b""):
            digest.update(block)
    return f"sha256:{digest.hexdigest()}"


def registry_digest(name: str, insecure: bool = False, timeout: float = 10.0) -> str:
    """The digest that `name` has in its registry now: what /api/tags shows after a pull (64 hex digits).

    The server stores a pulled manifest verbatim and its digest is the manifest's sha256, so this answers "would a
    pull change anything?" without pulling. Raises OllamaError.
    """
    parts = parse_name(name)
    scheme = "http" if insecure else "https"
    url = f"{scheme}://{parts.host}/v2/{parts.namespace}/{parts.model}/manifests/{parts.tag}"
    request = urllib.request.Request(url, headers={"Accept": "application/vnd.docker.distribution.manifest.v2+json"})
    try:
        with urllib.request.build_opener().open(request, timeout=timeout) as response:
            raw = response.read(4 * BLOCK + 1)
    except urllib.error.HTTPError as error:
        kind = "not_found" if error.code == 404 else "server"
        raise OllamaError(
            kind,
            f"The registry {parts.host} answers HTTP {error.code} for {parts.short}; check the model's name and tag.",
            error.code,
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise OllamaError("unreachable", f"The registry {parts.host} cannot be asked about {parts.short}: {error}.") from error
    try:
        layers = json.loads(raw)["layers"]
    except (ValueError, KeyError, TypeError):
        layers = None
    if not isinstance(layers, list):
        raise OllamaError("not_ollama", f"The registry {parts.host} answers for {parts.short} with no manifest: {_excerpt(raw)}.")
    return hashlib.sha256(raw).hexdigest()
