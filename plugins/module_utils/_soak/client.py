# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One request of a soak test, timed: to Ollama itself, to an API of OpenAI's shape (a gateway), or to Open WebUI.

What has arrived of an answer is taken in blocks, the first one timed, and parsed when the answer is there: to parse
line by line, as ``_ollama.client`` does, is more than a load of many conversations can afford.
"""

from __future__ import annotations

import json
import time
from typing import Any

from .. import _http
from .._ollama import runner_options
from .answers import AskError, error_in, parse

PATHS = {
    "ollama": {"chat": "/api/chat", "embed": "/api/embed"},
    "openai": {"chat": "/v1/chat/completions", "embed": "/v1/embeddings"},
    "open_webui": {"chat": "/api/chat/completions", "embed": "/api/embeddings"},
}
SIGN_IN = "/api/v1/auths/signin"
ACCEPT = "application/json, text/event-stream"


class Target:
    """Where the load goes: one connection for each conversation, so each has its own Target.

    `kind` is a key of PATHS. `token` goes into the header Authorization; for Open WebUI `email` and `password` fetch
    one.
    """

    def __init__(self, kind, url, model, token="", email="", password="", ca_file="", timeout_s=600.0, embed_model=""):
        self.kind, self.model, self.embed_model = kind, model, embed_model
        self.token, self.email, self.password = token, email, password
        # No retry: each failure is a result. (An idle connection that the server has closed is none.)
        self.server = _http.Server(
            url,
            timeout_s=timeout_s,
            connect_timeout_s=timeout_s,
            retries=0,
            default_port=11434,
            ca_file=ca_file or None,
        )

    def close(self):
        """Drop the connection, also from another thread: a request under way ends with an error."""
        self.server.abort()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """{ttft, total: seconds, …what parse() returns} of an answered request. Raises AskError."""
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
        options = dict(request["options"])
        body = {"model": self.model, "messages": request["messages"], "stream": True}
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
            raise AskError(
                "Open WebUI took the e-mail address and the password and gave no token; check its version."
            ) from None

    def _exchange(self, path, body):
        """(time of the first byte of the answer's body, the body)."""
        headers = {"Accept": ACCEPT}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        parts, first = [], None
        try:
            # A generation changes nothing, so it may go out again where the server had closed an idle connection.
            response = self.server.send("POST", path, body, headers, repeatable=True)
            for part in self.server.blocks(response):
                first = first or time.monotonic()
                parts.append(part)
        except _http.HttpError as error:
            raise AskError(f"{path}: {error}") from error
        raw = b"".join(parts)
        if response.status != 200:
            raise AskError(f"{self.server.url}{path} answered {response.status}: {error_in(raw)}", response.status)
        return first or time.monotonic(), raw
