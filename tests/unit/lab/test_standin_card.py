# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The stand-in on a simulated card: what it says it holds, the NVML simulator sees. And what can be made to go wrong."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
SERVICES = REPO / "lab/services"
NVML = REPO / "lab/nvml"
sys.path[:0] = [str(SERVICES), str(REPO / "lab/real"), str(REPO / "lab")]

import make_mirror  # noqa: E402
import shapes  # noqa: E402
from standin.store import CONFIG_TYPE, Name, Store, manifest_bytes  # noqa: E402

MIB = 1024 * 1024
CONTEXT_MIB = 457
IDLE_MIB = 1

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler for the NVML simulator")


def until(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


class Host:
    """A card, its watcher, and a stand-in that serves a two-layer model of Qwen3-14B's widths."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        subprocess.run(["sh", str(NVML / "build.sh"), str(folder / "lib")], check=True)
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(("OLLAMA_", "LLAMA_ARG_"))}
        self.card = folder / "card.json"
        self.card.write_bytes((NVML / "card-4090.json").read_bytes())
        self.state = folder / "state"
        self.env.update(NVML_SIM_CARD_FILE=str(self.card), NVML_SIM_STATE=str(self.state))
        self.proc = folder / "proc"
        self.proc.mkdir()
        self.server, self.tenants, self.closing = None, [], False
        threading.Thread(target=self.follow, daemon=True).start()
        words = f"import lab_card; lab_card.run({str(self.card)!r}, {str(self.state)!r}, {str(self.proc)!r})"
        self.watcher = subprocess.Popen([sys.executable, "-c", words], env={**self.env, "PYTHONPATH": str(NVML)})
        assert until(self.state.exists)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        home = folder / "home"
        home.mkdir()
        self.env.update(
            HOME=str(home), LD_LIBRARY_PATH=str(folder / "lib"), OLLAMA_HOST=f"127.0.0.1:{self.port}",
            OLLAMA_KV_CACHE_TYPE="q8_0", OLLAMA_CONTEXT_LENGTH="40960", OLLAMA_MAX_LOADED_MODELS="1",
        )  # fmt: skip
        self.faults_file = home / ".ollama" / "lab-faults.json"
        self.command = make_mirror.unpack_standin(folder / "ollama", "0.32.15")
        self.log = open(folder / "log", "wb")  # noqa: SIM115  (closed in close())
        self.start()
        self.model("big", "qwen3-14b-q4_K_M")
        self.model("other", "qwen3-14b-q8_0")

    def follow(self):
        """Keep a /proc of only this host's processes: other labs on the machine map /dev/zero, too."""
        while not self.closing:
            pids = {str(process.pid) for process in self.tenants}
            if self.server:
                pids.add(str(self.server.pid))
                for task in pathlib.Path(f"/proc/{self.server.pid}/task").glob("*/children"):
                    with contextlib.suppress(OSError):
                        pids.update(task.read_text().split())
            for entry in self.proc.iterdir():
                if entry.name not in pids:
                    entry.unlink()
            for pid in pids:
                with contextlib.suppress(FileExistsError):
                    (self.proc / pid).symlink_to(f"/proc/{pid}")
            time.sleep(0.05)

    def start(self):
        self.server = subprocess.Popen([str(self.command), "serve"], env=self.env, stdout=self.log, stderr=self.log)
        assert until(self.answers)

    def close(self):
        self.faults()
        for process in (self.server, self.watcher):
            process.terminate()
            process.wait(10)
        self.closing = True
        self.log.close()

    def ask(self, method, path, body=None, timeout=30):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, None if body is None else json.dumps(body))
            response = connection.getresponse()
            data = response.read()
            return response.status, json.loads(data) if data.startswith(b"{") else data
        finally:
            connection.close()

    def answers(self):
        try:
            return self.ask("GET", "/api/version", timeout=2)[0] == 200
        except OSError:
            return False

    def model(self, name, shape):
        """Put a model into the store as a file, as the lab does: its weights are a hole."""
        store = Store(str(self.folder / "home" / ".ollama" / "models"))
        half = self.folder / "half.gguf"
        made = shapes.write(shape, half, 2)
        digest = "sha256:" + f"{made['bytes']:064x}"
        os.replace(half, store.blob(digest))
        config = store.put(json.dumps(make_mirror.describe(store.blob(digest))).encode(), CONFIG_TYPE)
        layer = {"mediaType": make_mirror.MEDIA + "model", "digest": digest, "size": made["bytes"]}
        store.write_manifest(Name.parse(name), manifest_bytes(config, [layer]))

    def generate(self, model, **options):
        return self.ask("POST", "/api/generate", {"model": model, "prompt": "x", "stream": False, "options": {"num_predict": 2, **options}})

    def unload(self, model):
        return self.ask("POST", "/api/generate", {"model": model, "keep_alive": 0})

    def loaded(self):
        return self.ask("GET", "/api/ps")[1]["models"]

    def used(self):
        return next(int(line.split()[1]) for line in self.state.read_text().splitlines() if line.startswith("used "))

    def sees(self, mib):
        """Whether NVML shows so much, give or take a MiB of rounding."""
        return until(lambda: abs(self.used() - mib) <= 2, 5)

    def set(self, **faults):
        card = json.loads(self.card.read_text())
        card["faults"] = faults
        half = self.folder / "card.new"
        half.write_text(json.dumps(card))
        os.replace(half, self.card)

    def faults(self, **faults):
        half = self.faults_file.with_suffix(".new")
        half.write_text(json.dumps(faults))
        os.replace(half, self.faults_file)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    made = Host(tmp_path_factory.mktemp("card"))
    yield made
    made.close()


@pytest.fixture
def calm(host):
    """The host with nothing loaded and nothing wrong."""
    yield host
    host.faults()
    for entry in host.loaded():
        host.unload(entry["name"])
    assert until(lambda: not host.loaded()) is True or host.loaded() == []
    assert host.sees(IDLE_MIB)


def test_nvml_sees_what_ps_says_and_a_context(calm):
    assert calm.generate("big")[0] == 200
    entry = calm.loaded()[0]
    assert entry["size"] == entry["size_vram"] > 0
    assert calm.sees(entry["size_vram"] // MIB + CONTEXT_MIB + IDLE_MIB)
    calm.unload("big")
    assert calm.sees(IDLE_MIB)


def test_the_process_is_called_llama_server(calm):
    calm.generate("big")
    assert until(lambda: "\nprocess " in calm.state.read_text())
    pid = next(text.split()[1] for text in calm.state.read_text().splitlines() if text.startswith("process "))
    assert pathlib.Path(f"/proc/{pid}/comm").read_text() == "llama-server\n"
    assert pathlib.Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].endswith(b"/llama-server")


def test_a_full_card_gets_a_part_of_the_model(calm):
    words = [sys.executable, str(NVML / "lab_card.py"), "hold", "21800"]
    tenant = subprocess.Popen(words, env=calm.env, stdout=subprocess.DEVNULL)
    calm.tenants.append(tenant)
    try:
        assert calm.sees(21800 + IDLE_MIB)
        assert calm.generate("other")[0] == 200, "no error: that is what makes it dangerous"
        entry = calm.loaded()[0]
        assert 0 <= entry["size_vram"] < entry["size"]
    finally:
        calm.tenants.clear()
        tenant.kill()
        tenant.wait()


def test_another_context_is_another_process_and_frees_the_first(calm):
    calm.generate("big")
    first = calm.loaded()[0]
    assert calm.sees(first["size_vram"] // MIB + CONTEXT_MIB + IDLE_MIB), "seen before, or the server waits 5 s for the freed"
    calm.generate("big", num_ctx=8192)
    second = calm.loaded()[0]
    assert second["size_vram"] < first["size_vram"] and second["context_length"] == 8192
    assert calm.sees(second["size_vram"] // MIB + CONTEXT_MIB + IDLE_MIB)


def test_a_killed_runner_frees_the_card_and_is_replaced(calm):
    calm.generate("big")
    assert until(lambda: "\nprocess " in calm.state.read_text())
    pid = next(int(text.split()[1]) for text in calm.state.read_text().splitlines() if text.startswith("process "))
    os.kill(pid, signal.SIGKILL)
    assert calm.sees(IDLE_MIB)
    assert calm.loaded(), "listed until the next request"


def test_a_leak_grows_by_the_request(calm):
    calm.generate("big")
    base = calm.loaded()[0]["size_vram"] // MIB + CONTEXT_MIB + IDLE_MIB
    calm.faults(leak_mib_per_request=100)
    for round_ in (1, 2):
        calm.generate("big")
        assert calm.sees(base + 100 * round_)
    assert calm.loaded()[0]["size_vram"] // MIB + CONTEXT_MIB + IDLE_MIB == base, "/api/ps knows nothing of it"


def test_trapped_memory_goes_with_the_server(calm):
    calm.generate("big")
    calm.faults(trapped_mib_after_unload=3000)
    calm.unload("big")
    assert calm.sees(3000 + IDLE_MIB) and until(lambda: calm.loaded() == [])
    calm.server.terminate()
    calm.server.wait(10)
    assert calm.sees(IDLE_MIB)
    calm.faults()
    calm.start()


def test_stuck_stopping_is_listed_as_expired_and_holds_the_card(calm):
    calm.generate("big")
    calm.faults(stuck_stopping=True)
    assert calm.unload("big")[0] == 200
    assert until(lambda: calm.loaded()[0]["expires_at"][:19] < time.strftime("%Y-%m-%dT%H:%M:%S"))
    assert until(lambda: calm.used() > 1000)
    calm.faults()
    assert until(lambda: calm.loaded() == [])


def test_a_lost_driver_means_the_cpu(calm):
    calm.set(init_error=18)
    try:
        assert until(lambda: "init 18" in calm.state.read_text())
        calm.generate("big")
        assert calm.loaded()[0]["size_vram"] == 0
    finally:
        calm.set()
        until(lambda: "init 0" in calm.state.read_text())


def test_answers_that_go_wrong(calm):
    calm.faults(status_500=["/api/tags"])
    assert calm.ask("GET", "/api/tags") == (500, {"error": "lab fault: status_500"})
    assert calm.ask("GET", "/api/version")[0] == 200


def test_the_dry_run_of_its_llama_server_says_what_a_load_takes(calm):
    blob = next((calm.folder / "home" / ".ollama" / "models" / "blobs").glob("sha256-000*"))
    words = "-c 40960 -np 1 -b 1024 -ub 1024 --cache-type-k q8_0 --cache-type-v q8_0 --flash-attn on --port 0".split()
    command = calm.command.parent.parent / "lib" / "ollama" / "llama-server"
    process = subprocess.Popen([str(command), "--model", str(blob), *words], env=calm.env, stderr=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stderr if "projected to use" in line)
        assert int(line.split("projected to use ")[1].split()[0]) > 1000
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
