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
import urllib.parse

REWRITES = ("utils", "apps", "main", "config")
SIGN_INS = 15


class State:
    """What the server holds, and what was asked of it."""

    def __init__(self):
        self.email, self.password, self.token = "admin@example.org", "a-good-password", "token-1"
        self.functions = {}
        self.models = {}
        self.groups = {"Staff": "group-1"}
        self.users = [{"id": "1", "email": self.email, "name": "Admin", "role": "admin"}]
        self.passwords = {}
        self.chats = {}
        self.files = {}
        self.vectors = True  # False: a file's removal fails after the file is gone, as in a slim 0.12 without pgvector
        self.page_of_users = 2
        self.config = {"ui.enable_signup": False, "auth.jwt_expiry": "12h", "ollama.api_configs": {}, "openai.api_keys": ["sk-hidden"]}
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
        path, _mark, query = self.path.partition("?")
        self.query = dict(urllib.parse.parse_qsl(query))
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
        parts = path.split("/")[3:]
        answers = {"models": self.models, "groups": self.groups, "users": self.users, "auths": self.users, "chats": self.chats, "files": self.files}
        return answers.get(parts[0], self.functions)(state, parts, body)

    do_GET = do_POST = do_DELETE = handle_any  # noqa: N815 (the names that http.server calls)

    def sign_in(self, state, body):
        state.sign_ins += 1
        if state.sign_ins > SIGN_INS:
            return self.answer(429, {"detail": "API rate limit exceeded"})
        if state.passwords.get(body["email"]) == body["password"]:
            return self.answer(200, {"token": "token-of-a-user", "expires_at": None, "id": "2", "role": "user"})
        if body != {"email": state.email, "password": state.password}:
            return self.answer(400, {"detail": "The email or password provided is incorrect."})
        if state.mfa:
            return self.answer(200, {"mfa_required": True})
        return self.answer(200, {"token": state.token, "expires_at": None, "id": "1", "role": "admin"})

    def models(self, state, parts, body):
        if parts == ["models", "model"]:
            held = state.models.get(self.query["id"])
            return self.answer(200, held) if held else self.answer(404, {"detail": "not found"})
        held = state.models.get(body["id"])
        if parts == ["models", "create"] and held:
            return self.answer(401, {"detail": "Uh-oh! This model id is already registered."})
        if parts == ["models", "model", "delete"]:
            return self.answer(200, state.models.pop(body["id"]) is not None)
        grants = [dict(grant, id=f"grant-{number}", created_at=1) for number, grant in enumerate(body.get("access_grants", []))]
        if parts == ["models", "model", "access", "update"]:
            held["access_grants"] = grants
            return self.answer(200, held)
        if held:  # 0.12.4 keeps the grants that are there, whatever an update says of them
            grants = held["access_grants"]
        # The server adds keys of its own, empty ones among them.
        meta = {"profile_image_url": "/static/favicon.png", "knowledge": None, **body["meta"]}
        state.models[body["id"]] = dict(body, access_grants=grants, meta=meta, params={"system": None, **body["params"]}, user_id="1", updated_at=2)
        return self.answer(200, state.models[body["id"]])

    def groups(self, state, _parts, _body):
        return self.answer(200, [{"id": ident, "name": name} for name, ident in state.groups.items()])

    def users(self, state, parts, body):
        if parts == ["auths", "add"]:
            if "-" not in body["password"]:
                return self.answer(400, {"detail": "The password does not meet the required validation criteria."})
            user = {"id": str(len(state.users) + 1), **{key: body[key] for key in ("email", "name", "role")}}
            state.users.append(user)
            state.passwords[body["email"]] = body["password"]
            return self.answer(200, dict(user, token="token-of-a-user"))
        if parts == ["users", ""]:
            found = [user for user in state.users if self.query.get("query", "") in user["email"] + user["name"]]
            first = (int(self.query["page"]) - 1) * state.page_of_users
            return self.answer(200, {"users": found[first : first + state.page_of_users], "total": len(found)})
        user = next(user for user in state.users if user["id"] == parts[1])
        if self.command == "DELETE":
            if user["id"] == "1":
                return self.answer(403, {"detail": "This action is prohibited."})
            state.users.remove(user)
            return self.answer(200, True)
        if "password" in body:
            state.passwords[user["email"]] = body["password"]
        user.update({key: value for key, value in body.items() if key != "password"})
        return self.answer(200, user)

    def chats(self, state, parts, _body):
        if parts[1] == "list":
            owned = sorted((chat for chat in state.chats.values() if chat["user_id"] == parts[3]), key=lambda chat: -chat["updated_at"])
            first = (int(self.query["page"]) - 1) * 2
            shown = [{key: chat[key] for key in ("id", "title", "updated_at")} | {"active": chat.get("active", False)} for chat in owned]
            return self.answer(200, shown[first : first + 2])
        if parts[1] not in state.chats:
            return self.answer(401, {"detail": "not found"})
        if self.command == "DELETE":
            return self.answer(200, state.chats.pop(parts[1]) is not None)
        return self.answer(200, state.chats[parts[1]])

    def files(self, state, parts, _body):
        if parts[1] not in state.files:
            return self.answer(404, {"detail": "not found"})
        if self.command == "DELETE":
            del state.files[parts[1]]
            return self.answer(200, True) if state.vectors else self.answer(400, {"detail": "Error deleting files"})
        return self.answer(200, state.files[parts[1]])

    def functions(self, state, parts, body):
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
