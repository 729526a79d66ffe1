# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The HTTP API: routes, status codes, streams, who may ask."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import time
import traceback
import urllib.parse
from http.server import BaseHTTPRequestHandler

from . import VERSION
from .create import create
from .inference import Inference, fold, openai_chunks, openai_error, openai_request, openai_whole
from .model import Model
from .registry import Registry
from .scheduler import Scheduler
from .settings import ApiError, Faults, compact, env, env_bool, log, message_of, models_dir, say
from .store import Name, NotFoundError, Store

PRIVATE = re.compile(r"(127|10|192\.168|172\.(1[6-9]|2\d|3[01]))\..*|0\.0\.0\.0|::1?|(.*\.)?(localhost|local)|")
ORIGINS = re.compile(r"(app|file|tauri|vscode-webview)://.*|https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:\d+)?")


class Api:
    """What all connections share, and the routes by their names: a request's body in; nothing, a dict or lines out."""

    def __init__(self, program: str):
        self.faults = Faults()
        self.store = Store(models_dir())
        self.scheduler = Scheduler(self.faults, program)
        self.registry = Registry(self.store, self.faults)
        self.inference = Inference(self.scheduler, self.faults)

    def name(self, body: dict) -> Name:
        """The name in a request, as an existing model spells it; ApiError."""
        return self.store.existing(Name.reference(body.get("model") or body.get("name") or ""))

    def model(self, body: dict) -> Model:
        """The model of a request; ApiError."""
        name = self.name(body)
        try:
            return Model(self.store, name)
        except NotFoundError as error:
            raise ApiError(404, f"model '{body.get('model') or body.get('name')}' not found") from error

    def models(self) -> list:
        found = []
        for name, _manifest in self.store.manifests():
            with contextlib.suppress(NotFoundError, OSError, ValueError):
                found.append(Model(self.store, name))
        return sorted(found, key=lambda model: model.manifest.modified, reverse=True)

    def tags(self, _body: dict) -> dict:
        return {"models": [model.tags() for model in self.models()]}

    def ps(self, _body: dict) -> dict:
        return {"models": [one.ps() for one in sorted(self.scheduler.loaded.values(), key=lambda one: -one.expires_at)]}

    def show(self, body: dict) -> dict:
        return self.model({"model": self.name(body).short()}).show(body.get("system") or "")

    def create(self, body: dict):
        return create(self.store, self.registry, body)

    def pull(self, body: dict):
        return self.registry.pull(self.name(body), bool(body.get("insecure")))

    def delete(self, body: dict) -> None:
        self.store.remove(self.model(body).name)

    def copy(self, body: dict) -> None:
        names = {role: Name.parse(body.get(role) or "") for role in ("source", "destination")}
        for role, name in names.items():
            if not name.valid():
                raise ApiError(400, f'{role} "{body.get(role) or ""}" is invalid')
        source, target = (self.store.manifest_path(self.store.existing(name)) for name in names.values())
        if not os.path.exists(source):
            raise ApiError(404, f'model "{body.get("source")}" not found')
        os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
        if source != target:
            shutil.copyfile(source, target)

    def generate(self, body: dict):
        return self.inference.answer(self.model(body), body, "generate")

    def chat(self, body: dict):
        return self.inference.answer(self.model(body), body, "chat")

    def version(self, _body: dict) -> dict:
        return {"version": VERSION}

    def status(self, _body: dict) -> dict:
        off = env_bool("OLLAMA_NO_CLOUD")
        return {"cloud": {"disabled": off, "source": "env" if off else "none"}}

    def v1_models(self, _body: dict) -> dict:
        return {"object": "list", "data": [model.openai() for model in self.models()]}


OPENAI = {"/v1/chat/completions": ("chat", "chat"), "/v1/completions": ("completion", "generate")}
ROUTES = {
    "GET": ("/api/version", "/api/status", "/api/tags", "/api/ps", "/v1/models"),
    "POST": ("/api/show", "/api/create", "/api/pull", "/api/copy", "/api/generate", "/api/chat", *OPENAI),
    "DELETE": ("/api/delete",),
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: Api

    def log_message(self, format, *args):  # noqa: A002  (the name is the base class's)
        """handle_any writes the log line."""

    def head(self, status: int, kind: str, length: int | None) -> None:
        """Status and headers; without a length the body is a chunked stream."""
        self.status = status
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("X-Lab-Server", "standin")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.send_header(*(("Transfer-Encoding", "chunked") if length is None else ("Content-Length", str(length))))
        self.end_headers()

    def answer(self, status: int, body: bytes = b"", kind: str = "text/plain; charset=utf-8") -> None:
        self.head(status, kind, len(body))
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value, status: int = 200) -> None:
        self.answer(status, compact(value).encode(), "application/json; charset=utf-8")

    def fail(self, error: ApiError) -> None:
        openai = self.path.startswith("/v1/")
        self.json(openai_error(error.status, error.message) if openai else {"error": error.message}, error.status)

    def stream(self, texts, kind: str = "application/x-ndjson") -> None:
        """Texts as chunks. An error before the first has its own status; one after it is a last line in an HTTP 200."""
        first = next(texts, "")
        self.head(200, kind, None)
        self.chunk(first)
        try:
            for text in texts:
                self.chunk(text)
        except ConnectionError:
            raise
        except (ApiError, OSError) as error:
            self.chunk(compact({"error": message_of(error)}) + "\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text: str) -> None:
        data = text.encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def body(self) -> dict:
        if not self.raw.strip():
            raise ApiError(400, "missing request body")
        try:
            found = json.loads(self.raw)
        except ValueError as error:
            raise ApiError(400, f"invalid character: {error}") from error
        if not isinstance(found, dict) or not isinstance(found.get("options") or {}, dict):
            raise ApiError(400, "json: cannot unmarshal the request")
        return found

    def allowed(self) -> bool:
        """Whether Origin and Host are ours, or allowed by OLLAMA_ORIGINS."""
        origin, listed = self.headers.get("Origin"), [item.strip() for item in env("OLLAMA_ORIGINS").split(",")]
        if origin and origin not in listed and "*" not in listed and not ORIGINS.fullmatch(origin):
            return False
        host = re.sub(r":\d+$", "", self.headers.get("Host", "")).strip("[]").lower()
        loopback = self.server.server_address[0].startswith(("127.", "::1"))
        return not loopback or host == socket.gethostname().lower() or bool(PRIVATE.fullmatch(host))

    def handle_any(self) -> None:
        """Answer one request, whatever happens, and write the log line."""
        started, self.status = time.monotonic(), 0
        self.path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        upload = self.command == "POST" and self.path.startswith("/api/blobs/")
        try:
            self.raw = b"" if upload else self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.route(self.path, "GET" if self.command == "HEAD" else self.command)
        except ApiError as error:
            self.close_connection = self.close_connection or upload
            self.fail(error)
        except (ConnectionError, socket.timeout):
            self.close_connection, self.status = True, self.status or 499
        except Exception as error:  # whatever was sent, the server lives on, and its log says where it gave up
            self.close_connection = True
            at = traceback.format_exc().splitlines()[-3].strip()
            log("ERROR", "request failed", path=self.path, error=repr(error), at=at)
            if not self.status:
                self.fail(ApiError(500, message_of(error)))
        stamp, took = time.strftime("%Y/%m/%d - %H:%M:%S"), (time.monotonic() - started) * 1000
        said = f'{took:12.6f}ms | {self.client_address[0]:>15} | {self.command:<8} "{self.path}"'
        say(f"[GIN] {stamp} | {self.status} | {said}")

    do_GET = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815  (http.server's names)

    def route(self, path: str, method: str) -> None:
        if self.api.faults.hits("status_500", path):
            raise ApiError(500, "lab fault: status_500")
        if not self.allowed():
            self.answer(403)
        elif path == "/":
            self.answer(200, b"Ollama is running")
        elif path.startswith("/api/blobs/"):
            self.blob(path[len("/api/blobs/") :])
        elif path.startswith("/v1/models/"):
            self.json(self.api.model({"model": path[len("/v1/models/") :]}).openai())
        elif path in ROUTES.get(method, ()):
            self.call(path, {} if method == "GET" else self.body())
        else:
            self.answer(405 if any(path in paths for paths in ROUTES.values()) else 404, b"no such route")

    def call(self, path: str, body: dict) -> None:
        """Answer with what a route gives: nothing, a dict, or lines, which stream=false folds into one."""
        openai, name = OPENAI.get(path) or ("", path.replace("/api/", "").strip("/").replace("/", "_"))
        streams = bool(body.get("stream")) if openai else body.get("stream") is not False
        result = getattr(self.api, name)(openai_request(body) if openai else body)
        if streams and openai:
            events = [result] if isinstance(result, dict) else result
            self.stream(openai_chunks(openai, body, events), "text/event-stream")
        elif streams and result is not None and not isinstance(result, dict):
            self.stream(compact(line) + "\n" for line in result)
        elif result is None:
            self.answer(200)
        else:
            whole = result if isinstance(result, dict) else fold(list(result))
            self.json(openai_whole(openai, body, whole) if openai else whole)

    def blob(self, digest: str) -> None:
        there = os.path.exists(self.api.store.blob(digest))
        length = int(self.headers.get("Content-Length") or 0)
        if there and self.command == "POST":
            self.rfile.read(min(length, 256 * 1024))  # as much as the real server reads of a body that nobody wanted
            self.close_connection = self.close_connection or length > 256 * 1024
        if there or self.command == "HEAD":
            self.answer(200 if there else 404)
            return
        self.api.store.put_stream(self.rfile.read, length, digest.replace("-", ":"))
        self.answer(201)
