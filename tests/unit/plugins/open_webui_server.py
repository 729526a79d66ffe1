# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A stand-in for Open WebUI's API with the habits of 0.12.4 that the client has to cope with.

Toggles, rewriting of a function's text, valves replaced as a whole, 401 for unknown ids, a page for unknown
paths, sign-ins limited with successes counted. The role's scenario runs the same modules on the real one.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import threading

REWRITES = ("utils", "apps", "main", "config")
SIGN_INS = 15


class State:
    """What the server holds, and what was asked of it."""

    def __init__(self):
        self.email, self.password, self.token = "admin@example.org", "a-good-password", "token-1"
        self.functions = {}
        self.config = {"ui.enable_signup": False, "auth.jwt_expiry": "12h", "openai.api_keys": ["sk-hidden"]}
        self.sign_ins = 0
        self.mfa = False
        self.not_ready = 0
        self.calls = []

    @property
    def writes(self):
        return [call for call in self.calls if call[0] != "GET" and "signin" not in call[1]]


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_args):
        """Quiet."""

    def answer(self, status, value, kind="application/json"):
        data = json.dumps(value).encode() if kind == "application/json" else value.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def handle_any(self):
        state = self.server.state
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or "null")
        path = self.path.split("?")[0]
        state.calls.append((self.command, path))
        if path == "/ready":
            state.not_ready -= 1
            return self.answer(503 if state.not_ready >= 0 else 200, {"status": True})
        if path == "/api/v1/auths/signin":
            return self.sign_in(state, body)
        if not path.startswith("/api/"):
            return self.answer(200, "<html>the page</html>", "text/html")
        if self.headers.get("Authorization") != f"Bearer {state.token}":
            return self.answer(401, {"detail": "Not authenticated"})
        if path == "/api/v1/auths/update/password":
            if body["password"] != state.password:
                return self.answer(400, {"detail": "The password provided is incorrect."})
            state.password = body["new_password"]
            return self.answer(200, True)
        return self.functions(state, path, body)

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 (the names that http.server calls)

    def sign_in(self, state, body):
        state.sign_ins += 1
        if state.sign_ins > SIGN_INS:
            return self.answer(429, {"detail": "API rate limit exceeded"})
        if body != {"email": state.email, "password": state.password}:
            return self.answer(400, {"detail": "The email or password provided is incorrect."})
        if state.mfa:
            return self.answer(200, {"mfa_required": True})
        return self.answer(200, {"token": state.token, "expires_at": None, "id": "1", "role": "admin"})

    def functions(self, state, path, body):
        parts = path.split("/")[3:]
        if parts == ["configs", "export"]:
            return self.answer(200, state.config)
        if parts == ["configs", "import"]:
            state.config.update(body["config"])
            return self.answer(200, state.config)
        if parts == ["functions", "export"]:
            return self.answer(200, list(state.functions.values()))
        if parts == ["functions", "create"]:
            if body["id"] in state.functions:
                return self.answer(400, {"detail": "taken"})
            state.functions[body["id"]] = {"id": body["id"], "is_active": False, "is_global": False, "valves": None}
            return self.store(state, body["id"], body)
        entry = state.functions.get(parts[2]) if len(parts) > 3 else None
        if entry is None:
            return self.answer(401, {"detail": "We could not find what you're looking for :/"})
        action = "/".join(parts[3:])
        if action == "update":
            return self.store(state, parts[2], body)
        if action == "valves/update":
            if any(value == "bad" for value in body.values()):
                return self.answer(400, {"detail": "1 validation error for Valves"})
            entry["valves"] = body
        elif action == "toggle":
            entry["is_active"] = not entry["is_active"]
        elif action == "toggle/global":
            entry["is_global"] = not entry["is_global"]
        elif action == "delete":
            del state.functions[parts[2]]
        return self.answer(200, entry)

    def store(self, state, function_id, body):
        if "syntax error" in body["content"]:
            return self.answer(400, {"detail": "invalid syntax"})
        for word in REWRITES:
            body["content"] = body["content"].replace(f"from {word}", f"from open_webui.{word}")
        state.functions[function_id].update({key: body[key] for key in ("name", "content", "meta")})
        return self.answer(200, state.functions[function_id])


@contextlib.contextmanager
def open_webui():
    """(url, state) of a server that runs until the block ends."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.state = State()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", server.state
    finally:
        server.shutdown()
        server.server_close()
