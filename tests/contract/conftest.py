# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The contract with Ollama: its behaviour as this collection relies on it, asked of a server that this suite starts.

    pytest tests/contract --server standin            the lab's stand-in (default)
    pytest tests/contract --server real               the newest that `make real-server` built; real:0.32.0 for one of them
    pytest tests/contract --server /path/to/bin/ollama
    … --record tests/contract/results.json            write the outcome of each case beside those of other servers

Each case says whom it asks. `both`: the stand-in has to do the same, and where it differs, it is wrong. `real`: how the real
server words or prints something that the stand-in does not imitate, or what the stand-in does not do at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SERVICES = REPOSITORY / "lab" / "services"
REAL = REPOSITORY / "lab" / "real"
sys.path[:0] = [str(SERVICES), str(REAL)]

import make_mirror  # noqa: E402
import serve  # noqa: E402
import shapes  # noqa: E402

# Variables of the caller that would change what a server does.
FOREIGN = ("OLLAMA_", "LLAMA_ARG_", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "CUDA_VISIBLE_DEVICES")


def pytest_configure(config):
    """Say what the markers mean."""
    config.addinivalue_line("markers", "both: the real server and the stand-in do the same")
    config.addinivalue_line("markers", "real: only the real server is asked")


def pytest_collection_modifyitems(config, items):
    """Leave out what the stand-in is not asked; a case that does not say is an error."""
    silent = [item.nodeid for item in items if not (item.get_closest_marker("both") or item.get_closest_marker("real"))]
    if silent:
        raise pytest.UsageError(f"neither marked both nor real: {', '.join(silent)}")
    if config.getoption("--server") == "standin":
        left_out = [item for item in items if item.get_closest_marker("real")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_addoption(parser):
    """Add the suite's own options."""
    parser.addoption("--server", default="standin", help="standin, real, real:VERSION, or the path of an ollama command")
    parser.addoption("--record", default="", help="JSON file that takes the outcomes")


class Answer:
    """Status, headers and body of an answer."""

    def __init__(self, status: int, headers, body: bytes):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        """Return the body as one JSON value."""
        return json.loads(self.body)

    def lines(self) -> list:
        """Return the body as JSON lines."""
        return [json.loads(line) for line in self.body.splitlines() if line.strip()]

    def error(self) -> str:
        """Return the text of the error, whether it is the whole body or the last line."""
        found = self.lines()
        return found[-1].get("error", "") if found else ""


class Process:
    """A server that runs for a test, with a home of its own."""

    def __init__(self, command: Path, folder: Path, environment: dict | None = None):
        self.command, self.folder = command, folder
        self.home = folder / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.log = folder / "server.log"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        kept = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
        own = {
            "HOME": str(self.home), "OLLAMA_HOST": f"127.0.0.1:{self.port}", "OLLAMA_NO_CLOUD": "1", "no_proxy": "127.0.0.1",
        }  # fmt: skip
        self.environment = {**kept, **own, **(environment or {})}
        self.environment = {key: value for key, value in self.environment.items() if value is not None}
        self.process: subprocess.Popen | None = None

    @property
    def models(self) -> Path:
        """Return the models folder."""
        return Path(self.environment.get("OLLAMA_MODELS") or self.home / ".ollama" / "models")

    def blob(self, digest: str) -> Path:
        """Return the path of a blob."""
        return self.models / "blobs" / digest.replace(":", "-")

    def manifest(self, name: str, tag: str = "latest", host: str = "registry.ollama.ai", namespace: str = "library") -> Path:
        """Return the path of a manifest."""
        return self.models / "manifests" / host / namespace / name / tag

    def spawn(self) -> subprocess.Popen:
        """Start the server without waiting for it."""
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen([str(self.command), "serve"], env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        return self.process

    def start(self) -> Process:
        """Start the server and wait until it answers."""
        self.spawn()
        until(lambda: self.answers() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.log.read_text()
        return self

    def answers(self) -> bool:
        """Return whether the server answers."""
        try:
            return self.call("GET", "/api/version", timeout=2).status == 200
        except OSError:
            return False

    def stop(self) -> None:
        """End the server and wait for it."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def run(self, *arguments: str) -> subprocess.CompletedProcess:
        """Run the command as a client of this server."""
        words = [str(self.command), *arguments]
        return subprocess.run(words, env=self.environment, capture_output=True, text=True, timeout=60, check=False)

    def call(self, method: str, path: str, body=None, headers: dict | None = None, timeout: float = 120) -> Answer:
        """Ask the server; body: JSON value, or bytes as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        with contextlib.closing(connection):
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())

    def get(self, path: str, **more) -> Answer:
        """GET a path."""
        return self.call("GET", path, **more)

    def post(self, path: str, body, **more) -> Answer:
        """POST a JSON value."""
        return self.call("POST", path, body, **more)

    # -- what most cases need

    def create(self, model: str, **fields) -> Answer:
        """Create a model and insist that it worked."""
        answer = self.post("/api/create", {"model": model, **fields})
        assert answer.status == 200 and answer.lines()[-1] == {"status": "success"}, answer.body
        return answer

    def show(self, model: str, **fields) -> dict:
        """Show a model and insist that it is there."""
        answer = self.post("/api/show", {"model": model, **fields})
        assert answer.status == 200, answer.body
        return answer.json()

    def parameters(self, model: str) -> dict:
        """Return {name: [values as text]} of a model's parameters."""
        found: dict = {}
        for line in self.show(model).get("parameters", "").splitlines():
            key, _space, value = line.partition(" ")
            found.setdefault(key, []).append(value.strip())
        return found

    def tags(self) -> dict:
        """Return {name: entry} of /api/tags."""
        return {entry["name"]: entry for entry in self.get("/api/tags").json()["models"]}

    def digest(self, model: str) -> str:
        """Return the digest of a model, "" if there is none."""
        return self.tags().get(model if ":" in model else f"{model}:latest", {}).get("digest", "")

    def loaded(self) -> list:
        """Return the entries of /api/ps."""
        return self.get("/api/ps").json()["models"]

    def load(self, model: str, **fields) -> Answer:
        """Load a model and insist that it worked."""
        answer = self.post("/api/generate", {"model": model, **fields})
        assert answer.status == 200, answer.body
        return answer

    def unload_all(self) -> None:
        """Unload what can be unloaded by name."""
        for entry in self.loaded():
            self.post("/api/generate", {"model": entry["name"], "keep_alive": 0})
        until(lambda: not self.loaded(), 15)

    def upload(self, path: Path) -> str:
        """Upload a file as a blob unless it is there, as clients do; return its digest."""
        body = path.read_bytes()
        digest = "sha256:" + hashlib.sha256(body).hexdigest()
        if self.call("HEAD", f"/api/blobs/{digest}").status != 200:
            assert self.call("POST", f"/api/blobs/{digest}", body).status in (200, 201)
        return digest

    def runners(self) -> list:
        """Return the process ids of the server's llama-server children."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError, IndexError):
                stat = (entry / "stat").read_text()
                ours = entry.name.isdigit() and int(stat.rpartition(")")[2].split()[1]) == self.process.pid
                if ours and b"llama-server" in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
        return found


def until(condition, seconds: float = 10):
    """Return the condition's value once it is true, or its last value when the time is over."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(0.05)


@pytest.fixture(scope="session")
def command(request, tmp_path_factory) -> Path:
    """Return the ollama command under test."""
    asked = request.config.getoption("--server")
    if asked == "standin":
        return make_mirror.unpack_standin(tmp_path_factory.mktemp("standin"), make_mirror.STANDIN_VERSIONS[0])
    if asked.startswith("real"):
        there = make_mirror.real_releases(None)
        version = asked.partition(":")[2] or next(iter(there), "")
        if version not in there:
            pytest.exit(f"no real server {version} is built (make real-server); there are: {', '.join(there) or 'none'}", 3)
        return there[version] / "bin" / "ollama"
    return Path(asked)


@pytest.fixture(scope="session")
def is_real(request) -> bool:
    """Return whether the server under test is not the stand-in."""
    return request.config.getoption("--server") != "standin"


@pytest.fixture(scope="session")
def gguf(tmp_path_factory) -> dict:
    """Return {kind: path} of the GGUF files that the suite works with."""
    folder = tmp_path_factory.mktemp("gguf")
    files = {"tiny": folder / "tiny.gguf"}
    shapes.write(shapes.TINY, files["tiny"])
    plain = {"tokenizer.chat_template": None}
    files["other"] = with_keys(files["tiny"], folder / "other.gguf", {"general.name": "other", **plain})
    files["embedding"] = with_keys(files["tiny"], folder / "embedding.gguf", {"qwen3.pooling_type": 3, **plain})
    files["plain"] = with_keys(files["tiny"], folder / "plain.gguf", plain)
    files["unstamped"] = with_keys(files["tiny"], folder / "unstamped.gguf", {"general.quantization_version": None, **plain})
    return files


def with_keys(source: Path, target: Path, changes: dict) -> Path:
    """Copy a GGUF file with keys set (int: uint32, str: string) or, with None, left out."""
    body = source.read_bytes()
    _version, tensors, count = struct.unpack_from("<IQQ", body, 4)
    sizes = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}

    def after(at: int, kind: int) -> int:
        if kind == 8:
            return at + 8 + struct.unpack_from("<Q", body, at)[0]
        if kind == 9:
            inner, length = struct.unpack_from("<IQ", body, at)
            at += 12
            for _index in range(length):
                at = after(at, inner)
            return at
        return at + sizes[kind]

    at, kept, tokenizer = 24, [], None
    for _index in range(count):
        start, length = at, struct.unpack_from("<Q", body, at)[0]
        key = body[at + 8 : at + 8 + length].decode()
        at += 8 + length
        at = after(at + 4, struct.unpack_from("<I", body, at)[0])
        if key.startswith("tokenizer.") and tokenizer is None:
            tokenizer = len(kept)
        if key not in changes:
            kept.append(body[start:at])
    infos = at
    for _index in range(tensors):
        at = after(at, 8)
        dims = struct.unpack_from("<I", body, at)[0]
        at += 4 + 8 * dims + 12
    for key, value in changes.items():
        if value is not None:
            packed = struct.pack("<Q", len(key)) + key.encode()
            text = value.encode() if isinstance(value, str) else b""
            packed += struct.pack("<IQ", 8, len(text)) + text if text else struct.pack("<II", 4, value)
            kept.insert(tokenizer, packed)  # where converters put it: /api/tags stops reading at the tokenizer
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(kept)) + b"".join(kept) + body[infos:at]
    target.write_bytes(head.ljust(-(-len(head) // 32) * 32, b"\0") + body[-(-at // 32) * 32 :])
    return target


@pytest.fixture(scope="session")
def server(command, tmp_path_factory, gguf):
    """Return a server with the models base (chat template in the GGUF), plain (none) and vectors (embedding)."""
    running = Process(command, tmp_path_factory.mktemp("server")).start()
    for name, kind in (("base", "tiny"), ("plain", "plain"), ("vectors", "embedding")):
        running.create(name, files={f"{kind}.gguf": running.upload(gguf[kind])})
    yield running
    running.stop()


@pytest.fixture
def fresh(command, tmp_path):
    """Return a function that starts a server of its own: fresh(environment, start=True)."""
    made = []

    def start(environment: dict | None = None, start: bool = True) -> Process:
        running = Process(command, tmp_path / f"own{len(made)}", environment)
        made.append(running)
        return running.start() if start else running

    yield start
    for running in made:
        running.stop()


@pytest.fixture
def quiet(server):
    """Return the shared server with nothing loaded, before and after."""
    server.unload_all()
    yield server
    server.unload_all()


@pytest.fixture
def name(request) -> str:
    """Return a model name that no other test uses."""
    return "t" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12]


class Registry:
    """A registry on a loopback port, without TLS, with what publish() puts there."""

    def __init__(self, root: Path):
        self.root = root
        (root / "registry" / "blobs").mkdir(parents=True)
        self.mirror = serve.Mirror(str(root))
        self.listener = serve.listeners(self.mirror, "127.0.0.1", None, 0, "", "")[0]
        self.host = f"127.0.0.1:{self.listener.server_address[1]}"

    def publish(self, name: str, weights: Path, template: str = "{{ .Prompt }}", tag: str = "latest") -> dict:
        """Put a model there; return its entry: name as pulled, digest, weights."""
        body = weights.read_bytes()
        file = {"path": weights, "digest": hashlib.sha256(body).hexdigest(), "size": len(body)}
        entry = make_mirror.publish(self.root, name, tag, file, template)
        return {**entry, "name": f"{self.host}/library/{name}:{tag}"}

    def blob(self, digest: str) -> Path:
        """Return the file of a blob."""
        return self.root / "registry" / "blobs" / digest.replace(":", "-")

    def rules(self, *rules: dict) -> None:
        """Let requests go wrong from now on."""
        (self.root / "faults.json").write_text(json.dumps({"rules": list(rules)}))

    def requests(self) -> list:
        """Return the access log's entries since the last call, once 0.2 s bring no more: it is written after the answer."""
        log, seen, text = self.root / "access.log", None, ""
        while text != seen:
            time.sleep(0.2)
            seen, text = text, log.read_text() if log.exists() else ""
        log.unlink(missing_ok=True)
        return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def registry(tmp_path):
    """Return a registry for one test."""
    import threading

    made = Registry(tmp_path / "registry")
    thread = threading.Thread(target=made.listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield made
    made.listener.shutdown()
    made.listener.server_close()


# -- the table of outcomes

OUTCOMES: dict = {}


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """Remember each case's outcome."""
    result = yield
    report = result.get_result()
    case = item.nodeid.replace("tests/contract/", "").replace("::", " ").replace("test_", "").replace(".py", ":", 1)
    if report.failed or report.when == "call" or (report.when == "setup" and report.skipped):
        OUTCOMES[case] = "fail" if report.failed else "skip" if report.skipped else OUTCOMES.get(case, "pass")


def pytest_sessionfinish(session):
    """Write the table."""
    target = session.config.getoption("--record")
    command = getattr(session.config, "_contract_column", "")
    if not target or not OUTCOMES or not command:
        return
    path = Path(target)
    table = json.loads(path.read_text()) if path.exists() else {"servers": {}, "cases": {}}
    table["servers"][command] = time.strftime("%Y-%m-%d")
    for row in table["cases"].values():
        row.pop(command, None)
    for case, outcome in OUTCOMES.items():
        table["cases"].setdefault(case, {})[command] = outcome
    rows = [f"  {json.dumps(case)}: {json.dumps(row, sort_keys=True)}" for case, row in sorted(table["cases"].items()) if row]
    head = json.dumps(table["servers"], sort_keys=True)
    path.write_text('{\n "servers": ' + head + ',\n "cases": {\n' + ",\n".join(rows) + "\n }\n}\n")


@pytest.fixture(scope="session", autouse=True)
def column(request, server, is_real):
    """Name the table's column after what serves, by its own word."""
    version = server.get("/api/version").json()["version"]
    stands_in = server.get("/").headers.get("X-Lab-Server") == "standin"
    assert stands_in != is_real
    request.config._contract_column = f"{'standin' if stands_in else 'real'} {version}"


__all__ = ["Answer", "Process", "Registry", "shutil", "signal", "until", "with_keys"]
