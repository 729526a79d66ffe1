# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One request of a soak test, timed: to Ollama itself, to an API of OpenAI's shape (a gateway), or to Open WebUI.

``_ollama.client.Client`` parses an answer line by line as it comes, which a load of many conversations cannot afford: here what
has arrived is taken in blocks, the first one timed, and parsed when the answer is there.
"""

from __future__ import annotations

import http.client
import json
import ssl
import time
from typing import Any

from .. import _http
from .._ollama import runner_options

PATHS = {
    "ollama": {"chat": "/api/chat", "embed": "/api/embed"},
    "openai": {"chat": "/v1/chat/completions", "embed": "/v1/embeddings"},
    "open_webui": {"chat": "/api/chat/completions", "embed": "/api/embeddings"},
}
SIGN_IN = "/api/v1/auths/signin"
BLOCK = 65536


class AskError(Exception):
    """A request that was not answered; ``status`` is HTTP's where there was one."""

    def __init__(self, text, status=None):
        super().__init__(text)
        self.status = status


class Target:
    """Where the load goes: one connection for each conversation, so each has its own Target.

    `kind` is a key of PATHS. `token` goes into the header Authorization; for Open WebUI `email` and `password` fetch one.
    """

    def __init__(self, kind, url, model, token="", email="", password="", ca_file="", timeout_s=600.0, embed_model=""):
        self.kind, self.model, self.embed_model = kind, model, embed_model
        self.address = _http.parse_url(url, 11434)
        self.url, self.token, self.email, self.password = url, token, email, password
        self.ca_file, self.timeout_s = ca_file, timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def close(self):
        """Drop the connection, also from another thread: a request under way ends with an error."""
        connection, self._connection = self._connection, None
        if connection is not None:
            if connection.sock is not None:
                try:
                    connection.sock.shutdown(2)
                except OSError:
                    pass
            connection.close()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What became of a request: {ttft, total, tokens_in, tokens_out, s_per_token, load_s, done_reason, text}. Raises AskError."""
        if self.kind == "open_webui" and not self.token:
            self._sign_in()
        embed = request["kind"] == "embed"
        began = time.monotonic()
        first, raw = self._exchange(PATHS[self.kind]["embed" if embed else "chat"], self.body(request))
        total = time.monotonic() - began
        answer = parse(raw, self.kind, embed)
        ttft = first - began
        if answer["s_per_token"] is None and answer["tokens_out"] and answer["tokens_out"] > 1:
            answer["s_per_token"] = (total - ttft) / (answer["tokens_out"] - 1)
        return {"ttft": round(ttft, 4), "total": round(total, 4), **answer}

    def body(self, request):
        """The JSON of a request in the target's own words."""
        if request["kind"] == "embed":
            return {"model": self.embed_model, "input": request["input"]}
        options, body = dict(request["options"]), {"model": self.model, "messages": request["messages"], "stream": True}
        if self.kind == "ollama":
            if options:
                body["options"] = options
            if request["think"] is not None:
                body["think"] = request["think"]
            return body
        if "num_predict" in options:
            body["max_tokens"] = options["num_predict"]
        own = {name: value for name, value in options.items() if name in runner_options.OPTIONS}
        if own:
            body["options"] = own  # what a client with an idea of its own sends; a gateway takes it out
        if self.kind == "openai":
            body["stream_options"] = {"include_usage": True}
        return body

    def _sign_in(self):
        _first, raw = self._exchange(SIGN_IN, {"email": self.email, "password": self.password})
        try:
            self.token = str(json.loads(raw)["token"])
        except (ValueError, KeyError, TypeError):
            raise AskError("Open WebUI took the e-mail address and the password and gave no token; look at its version.") from None

    def _exchange(self, path, body):
        """(time of the first byte of the answer's body, the body)."""
        try:
            response = self._send(path, json.dumps(body).encode())
            parts, first = [], None
            while True:
                part = response.read1(BLOCK)
                if not part:
                    break
                first = first or time.monotonic()
                parts.append(part)
            # read1() does not say of itself that a body of known length is over; the connection would be taken for busy.
            response.close()
        except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
            self.close()
            raise AskError(f"{self.url}{path}: {type(error).__name__}: {error}") from error
        raw = b"".join(parts)
        if response.status != 200:
            raise AskError(f"{self.url}{path} answered {response.status}: {told(raw)}", response.status)
        return first or time.monotonic(), raw

    def _send(self, path, data):
        if self._connection is None:
            self._connection = self._connect()
        headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        connection = self._connection
        try:
            connection.request("POST", self.address.prefix + path, body=data, headers=headers)
            return connection.getresponse()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # The other end closed a connection that was idle: nothing was answered, so it is asked again, once, on a new one.
            self.close()
            self._connection = connection = self._connect()
            connection.request("POST", self.address.prefix + path, body=data, headers=headers)
            return connection.getresponse()

    def _connect(self):
        address = self.address
        if address.scheme == "https":
            context = ssl.create_default_context(cafile=self.ca_file or None)
            return http.client.HTTPSConnection(address.host, address.port, timeout=self.timeout_s, context=context)
        return http.client.HTTPConnection(address.host, address.port, timeout=self.timeout_s)


def told(raw):
    """The error in an answer's body, in short."""
    try:
        answer = json.loads(raw)
        error = answer.get("error", answer.get("detail", answer))
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError):
        return " ".join(raw[:300].decode("utf-8", "replace").split()) or "nothing"


def parse(raw, kind, embed=False):
    """{tokens_in, tokens_out, s_per_token, load_s, done_reason, text} of an answer's body. Raises AskError for one that broke off."""
    made = {"tokens_in": None, "tokens_out": None, "s_per_token": None, "load_s": None, "done_reason": None, "text": ""}
    if embed:
        answer = _loads(raw)
        usage = answer.get("usage") or answer
        made["tokens_in"] = usage.get("prompt_eval_count", usage.get("prompt_tokens"))
        made["load_s"] = _seconds(answer.get("load_duration"))
        return made
    texts, last, pieces = [], None, 0
    for whole in raw.split(b"\n"):
        line = whole.strip()
        line = line[5:].strip() if line.startswith(b"data:") else line
        if not line or line.startswith(b":") or line == b"[DONE]":
            continue
        entry = _loads(line)
        if "error" in entry and entry["error"]:
            raise AskError(f"The answer broke off: {told(line)}")
        if kind == "ollama":
            message = entry.get("message") or {}
            piece = (message.get("thinking") or "") + (message.get("content") or "")
            if entry.get("done"):
                last = entry
        else:
            choice = (entry.get("choices") or [{}])[0]
            delta = choice.get("delta") or choice.get("message") or {}
            piece = (delta.get("reasoning") or delta.get("reasoning_content") or "") + (delta.get("content") or "")
            made["done_reason"] = choice.get("finish_reason") or made["done_reason"]
            if entry.get("usage"):
                last = entry["usage"]
        if piece:
            texts.append(piece)
            pieces += 1
    made["text"] = "".join(texts)
    if kind == "ollama" and last is None:
        raise AskError("The answer broke off without its last line.")
    if kind != "ollama" and made["done_reason"] is None:
        raise AskError("The answer broke off before it gave a reason for its end.")
    last = last or {}
    made["done_reason"] = last.get("done_reason") or made["done_reason"]
    made["tokens_in"] = last.get("prompt_eval_count", last.get("prompt_tokens"))
    made["tokens_out"] = last.get("eval_count", last.get("completion_tokens")) or pieces or None
    made["load_s"] = _seconds(last.get("load_duration"))
    if last.get("eval_duration") and last.get("eval_count"):
        made["s_per_token"] = last["eval_duration"] / 1e9 / last["eval_count"]
    return made


def _loads(raw):
    try:
        entry = json.loads(raw)
    except ValueError:
        raise AskError(f"The answer is no JSON: {told(raw)}") from None
    if not isinstance(entry, dict):
        raise AskError(f"The answer is no object: {told(raw)}")
    return entry


def _seconds(nanoseconds):
    return None if nanoseconds is None else round(nanoseconds / 1e9, 4)
