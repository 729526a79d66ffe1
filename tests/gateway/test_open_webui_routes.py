# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The pinned release of Open WebUI itself, walked route by route as a user, by a user's API key and as an administrator: what arrives at Ollama.

Behind it stands the role's pin, behind the pin a server that keeps what it gets. Each route is asked for another runner and
for none at all. The release is installed once into the cache, from the role's own list with hashes.
"""

from __future__ import annotations

import collections
import hashlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest
import yaml
from conftest import CACHE, ROOT, Server, free_port

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import runner_options
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui.names import RELEASE

ROLE = ROOT / "roles" / "open_webui"
ADMIN = {"email": "root@demo.example", "password": "Throw-away-password-1"}
USER = {"email": "mallory@demo.example", "password": "Throw-away-password-2", "name": "Mallory"}
MODEL = "qwen3:latest"
HOSTILE = {**dict.fromkeys(runner_options.OPTIONS, 1), "keep_alive": 0, "shift": False, "temperature": 0.5}
MESSAGES = [{"role": "user", "content": "hello"}]
#: A body that each route finds its own members in.
BODY = {
    "model": MODEL, "name": MODEL, "id": MODEL, "model_id": MODEL, "stream": False, "messages": MESSAGES, "prompt": "hello", "input": "hello", "text": "hello",
    "query": "hello", "content": "hello", "chat_id": "local:x", "message_id": "x", "source": MODEL, "destination": "other",
    "url": "https://github.com/x/y.gguf",
    "max_tokens": 3, "type": "web", "options": HOSTILE, "params": {**HOSTILE, "custom_params": HOSTILE}, "keep_alive": 0, "shift": False,
}  # fmt: skip
#: The same, spelled as Go still reads it.
SHOUTED = {**{name: value for name, value in BODY.items() if name not in ("keep_alive", "shift", "options", "params")},
           "KEEP_ALIVE": 0, "\u017fhift": False, "Options": {**HOSTILE, "temperature": 0.5}}  # fmt: skip
#: What the walk leaves alone: the callers' own sessions, and what makes another Open WebUI of it (a test of its own below).
LEFT = re.compile(
    r"/api/v1/auths/.*|/ollama/config/update|/openai/config/update|/api/v1/(configs|users|functions|retrieval/(config|reset)|pipelines)/.*|/api/v1/utils/.*"
)
ARRIVES = {"/api/tags", "/api/ps", "/api/version", "/api/show", "/api/chat", "/api/generate", "/api/embed", "/api/embeddings",
           "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages"}  # fmt: skip


def interpreter():
    """A Python that the release takes, or a skip."""
    for name in (sys.executable, "python3.12", "python3.11"):
        path = shutil.which(name)
        asked = path and subprocess.run([path, "-c", "import sys; print(sys.version_info[:2])"], capture_output=True, text=True, check=False).stdout.strip()
        if asked in ("(3, 11)", "(3, 12)"):
            return path
    pytest.skip("Open WebUI needs a Python 3.11 or 3.12, which this machine has not")


@pytest.fixture(scope="session")
def program():
    """Folder of a virtual environment with the release's slim set."""
    lock = ROLE / "files" / "locks" / f"{RELEASE}-slim.txt"
    mark = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    target = CACHE / "open_webui" / f"{RELEASE}-slim-{mark}"
    if not (target / "complete").exists():
        shutil.rmtree(target, ignore_errors=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run([interpreter(), "-m", "venv", target], check=True)
        for words in (
            ["-m", "pip", "install", "-q", "-r", ROLE / "files/locks/uv.txt"],
            ["-m", "uv", "pip", "install", "-q", "--no-deps", "--require-hashes", "-r", lock],
        ):
            got = subprocess.run([target / "bin/python", *words], capture_output=True, text=True, check=False, env={**os.environ, "VIRTUAL_ENV": str(target)})
            if got.returncode:
                pytest.skip(f"the package index does not give Open WebUI {RELEASE}: {got.stderr.strip().splitlines()[-1:]}")
        (target / "complete").touch()
    return target


def answer(handler):
    """What Ollama says, as far as Open WebUI needs it."""
    path = handler.path.split("?")[0]
    done = {"model": MODEL, "created_at": "2026-01-01T00:00:00Z", "done": True, "done_reason": "stop", "prompt_eval_count": 1, "eval_count": 1}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "hi"}, "text": "hi"}
    told = {
        "/api/tags": {"models": [{"name": MODEL, "model": MODEL, "size": 1, "digest": "0", "modified_at": "2026-01-01T00:00:00Z", "details": {}}]},
        "/api/ps": {"models": []},
        "/api/version": {"version": runner_options.RELEASE},
        "/api/chat": {**done, "message": {"role": "assistant", "content": "hi"}},
        "/api/generate": {**done, "response": "hi"},
        "/api/embed": {"model": MODEL, "embeddings": [[0.5, 0.25]]},
        "/api/embeddings": {"embedding": [0.5, 0.25]},
        "/v1/embeddings": {"data": [{"index": 0, "embedding": [0.5]}], "model": MODEL, "usage": {"prompt_tokens": 1}},
    }.get(path, {"id": "x", "model": MODEL, "choices": [choice], "content": [{"type": "text", "text": "hi"}], "usage": {}})
    body = json.dumps(told).encode() + b"\n"
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
    return True


class OpenWebui:
    """The running release."""

    def __init__(self, program, folder, ollama_url):
        self.port, self.folder = free_port(), folder
        settings = yaml.safe_load((ROLE / "vars/main.yml").read_text(encoding="utf-8"))["__open_webui_settings"]
        env = {name: environment.text_of(value) for name, value in settings.items() if "{{" not in str(value)}
        env.update({
            "PATH": os.environ["PATH"], "HOME": str(folder), "DATA_DIR": str(folder), "STATIC_DIR": str(folder / "static"), "USE_SLIM_DOCKER": "true",
            "ENV": "dev",  # which only adds the list of routes
            "ENABLE_PERSISTENT_CONFIG": "false", "ENABLE_SIGNUP": "false", "DEFAULT_USER_ROLE": "user", "ENABLE_API_KEYS": "true",
            "USER_PERMISSIONS_FEATURES_API_KEYS": "true",
            "OLLAMA_BASE_URL": ollama_url, "OLLAMA_BASE_URLS": ollama_url, "RAG_OLLAMA_BASE_URL": ollama_url, "BYPASS_MODEL_ACCESS_CONTROL": "true",
            "RAG_EMBEDDING_ENGINE": "ollama", "RAG_EMBEDDING_MODEL": MODEL,  # so that retrieval, too, asks Ollama
            **dict.fromkeys((f"ENABLE_{task}_GENERATION" for task in "TITLE TAGS FOLLOW_UP AUTOCOMPLETE SEARCH_QUERY RETRIEVAL_QUERY".split()), "true"),
            "WEBUI_SECRET_KEY": "0123456789abcdef" * 3, "WEBUI_ADMIN_EMAIL": ADMIN["email"], "WEBUI_ADMIN_PASSWORD": ADMIN["password"],
        })  # fmt: skip
        self.log = open(folder / "log", "wb")  # noqa: SIM115 - the process holds it
        words = [program / "bin/open-webui", "serve", "--host", "127.0.0.1", "--port", str(self.port)]
        self.process = subprocess.Popen(words, env=env, cwd=folder, stdout=self.log, stderr=subprocess.STDOUT)

    def wait(self):
        """Wait until it is ready."""
        until = time.monotonic() + 300
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/ready", timeout=5):
                    return self
            except OSError:
                time.sleep(0.3)
        raise AssertionError((self.folder / "log").read_text(errors="replace")[-3000:])

    def ask(self, method, path, body=None, key=None, timeout=30):
        """(status, decoded answer or text) of one request; (0, reason) where none comes in time."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
        try:
            line.request(method, path, None if body is None else json.dumps(body), headers)
            reply = line.getresponse()
            content = reply.read(1_000_000).decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error)
        finally:
            line.close()
        try:
            return reply.status, json.loads(content)
        except ValueError:
            return reply.status, content

    def must(self, method, path, body=None, key=None):
        """The answer of a request that has to succeed."""
        status, told = self.ask(method, path, body, key)
        assert status == 200, (path, status, told)
        return told


def declare(page, admin):
    """Have every account see the model, again where an administrator's walk has deleted it."""
    grant = {"principal_type": "user", "principal_id": "*", "permission": "read"}
    entry = {"id": MODEL, "base_model_id": None, "name": MODEL, "meta": {}, "params": {}, "access_grants": [grant], "is_active": True}
    page.ask("POST", "/api/v1/models/create", entry, admin)
    told = page.must("GET", "/api/models?refresh=true", None, admin)
    assert MODEL in [model["id"] for model in told["data"]]


@pytest.fixture(scope="session")
def world(program, open_webui_pin, tmp_path_factory):
    """(Open WebUI with the role's filter, the pin, {caller: key}, the server behind the pin)."""
    server = Server("recorder")
    pin = open_webui_pin(server.port)
    page = OpenWebui(program, tmp_path_factory.mktemp("open_webui"), f"http://127.0.0.1:{pin.port}/0")
    try:
        server.answer = answer
        page.wait()
        admin = page.must("POST", "/api/v1/auths/signin", ADMIN)["token"]
        page.must("POST", "/api/v1/auths/add", {**USER, "role": "user"}, admin)
        user = page.must("POST", "/api/v1/auths/signin", USER)["token"]
        keys = {"user": user, "API key": page.must("POST", "/api/v1/auths/api_key", None, user)["api_key"], "administrator": admin}
        function = {"id": "gpufleet_context", "name": "x", "meta": {"description": "x"}, "content": (ROLE / "files/context_filter.py").read_text()}
        page.must("POST", "/api/v1/functions/create", function, admin)
        page.must("POST", "/api/v1/functions/id/gpufleet_context/toggle", None, admin)
        page.must("POST", "/api/v1/functions/id/gpufleet_context/toggle/global", None, admin)
        declare(page, admin)
        yield page, pin, keys, server
    finally:
        page.process.terminate()
        page.process.wait(timeout=30)


def routes(page):
    """[(method, path with its variables filled in)] of everything that the release answers."""
    found = []
    for path, methods in page.must("GET", "/openapi.json")["paths"].items():
        filled = re.sub(r"\{url_idx\}", "0", path)
        filled = re.sub(r"\{[^}]*\}", "x", filled)
        found += [(method.upper(), filled) for method in methods if not LEFT.fullmatch(filled)]
    return found


def walk(page, server, key, asked):
    """{path at Ollama: the routes that it came from}, asking each route; and what arrived."""
    arrived = collections.defaultdict(set)
    for method, path in asked:
        before = len(server.seen)
        page.ask(method, path, BODY if method in ("POST", "PUT", "PATCH", "DELETE") else None, key, timeout=10)
        for seen in server.seen[before:]:
            arrived[seen["path"]].add(f"{method} {path}")
    return arrived


def problems(server):
    """What arrived and must not have."""
    found = []
    for seen in server.seen:
        body = json.loads(seen["body"] or b"{}")
        top = {name.lower().replace("\u017f", "s").replace("\u212a", "k"): value for name, value in body.items()}
        bad = (set(top) & set(runner_options.MEMBERS)) | (set(top.get("options") or {}) & set(runner_options.OPTIONS))
        if bad or seen["path"].split("?")[0] not in ARRIVES:
            found.append((seen["method"], seen["path"], sorted(bad)))
    return found


@pytest.mark.parametrize("caller", ["user", "API key", "administrator"])
def test_nothing_arrives_that_reloads_unloads_or_changes_a_model(world, caller):
    page, _pin, keys, server = world
    declare(page, keys["administrator"])
    server.seen.clear()
    asked = routes(page)
    assert len(asked) > 400
    arrived = walk(page, server, keys[caller], asked)
    for path in sorted(arrived):
        print(f"| {caller} | {path} | {', '.join(sorted(arrived[path]))} |")
    assert problems(server) == []
    # The walk was one: it has come to Ollama on each way that there is.
    assert {"/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses",
            "/v1/messages", "/api/show", "/api/tags"} <= set(arrived)  # fmt: skip
    sources = {route for found in arrived.values() for route in found}
    assert {"POST /api/embeddings", "POST /api/v1/embeddings", "POST /api/chat/completions", "POST /ollama/api/generate"} <= sources


@pytest.mark.parametrize("path", ["/ollama/api/chat", "/ollama/v1/chat/completions", "/ollama/v1/messages", "/ollama/v1/responses", "/api/embeddings"])
def test_no_spelling_gets_past(world, path):
    page, _pin, keys, server = world
    declare(page, keys["administrator"])
    server.seen.clear()
    page.must("POST", path, SHOUTED, keys["user"])
    assert problems(server) == [] and any(seen["method"] == "POST" for seen in server.seen)


CHANGING = "/ollama/api/unload /api/models/unload /ollama/api/pull /ollama/api/create /ollama/api/delete /ollama/api/push".split()


@pytest.mark.parametrize("path", CHANGING)
def test_an_administrator_of_the_page_changes_no_model(world, path):
    page, _pin, keys, server = world
    server.seen.clear()
    method = "DELETE" if path.endswith(("delete", "push")) else "POST"
    page.ask(method, path, {"model": MODEL, "from": MODEL}, keys["administrator"])
    assert problems(server) == [] and all(seen["path"] in ("/api/tags", "/api/ps", "/api/generate") for seen in server.seen)


def test_without_the_pin_it_is_otherwise_so_the_walk_can_tell(world):
    page, pin, keys, server = world
    straight = f"http://127.0.0.1:{server.port}"
    change = {"ENABLE_OLLAMA_API": True, "OLLAMA_BASE_URLS": [straight], "OLLAMA_API_CONFIGS": {}}
    page.must("POST", "/ollama/config/update", change, keys["administrator"])
    try:
        page.must("GET", "/api/models?refresh=true", None, keys["user"])
        told = {}
        for path in ("/api/embeddings", "/api/v1/embeddings", "/ollama/api/generate", "/ollama/api/chat", "/api/chat/completions"):
            server.seen.clear()
            page.must("POST", path, BODY, keys["user"])
            told[path] = bool(problems(server))
        # The filter does its part, and only there.
        assert told == {
            "/api/embeddings": True,
            "/api/v1/embeddings": True,
            "/ollama/api/generate": True,
            "/ollama/api/chat": True,
            "/api/chat/completions": False,
        }
    finally:
        page.must("POST", "/ollama/config/update", {**change, "OLLAMA_BASE_URLS": [f"http://127.0.0.1:{pin.port}/0"]}, keys["administrator"])
        page.must("GET", "/api/models?refresh=true", None, keys["user"])
