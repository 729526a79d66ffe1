# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""How the real server is built, and the card that it computes on."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

REAL = Path(__file__).resolve().parents[3] / "lab" / "real"


def program(name, folder=REAL):
    """Return a program of the lab as a module."""
    loader = importlib.machinery.SourceFileLoader(f"lab_real_{name}", str(folder / name))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


build = program("build")
place_card = program("place_card")
lab_card = program("lab_card.py", REAL.parent / "nvml")


@pytest.fixture(scope="module", name="shim")
def compiled_shim(tmp_path_factory):
    """Return the card's library, compiled."""
    if not (shutil.which("cc") or shutil.which("gcc")):
        pytest.skip("no C compiler on this machine")
    root = tmp_path_factory.mktemp("shim")
    path = build.shim(root)
    assert build.shim(root) == path
    return path


# ---- the build --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text,wanted",
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.19 linux/amd64", (1, 19)), ("go version devel", None), ("", None)],
)
def test_go_version(text, wanted):
    assert build.go_version(text) == wanted


@pytest.mark.parametrize(
    "absent,version,said",
    [
        ((), "go version go1.26.8 linux/amd64", []),
        (("go",), "", ["Go is missing"]),
        ((), "go version go1.19.8 linux/amd64", ["Go is 1.19"]),
        (("c++", "g++"), "go version go1.22 linux/amd64", ["C++ compiler are missing"]),
        (("go", "c++", "g++", "make", "gmake"), "", ["Go is missing", "C++ compiler", "make is missing"]),
    ],
)
def test_what_is_missing_is_said_with_how_to_get_it(absent, version, said):
    faults = build.missing_tools(which=lambda name: None if name in absent else f"/usr/bin/{name}", answer=lambda _cmd: version)
    assert len(faults) == len(said)
    assert all(words in fault and ("apt" in fault or "archive from go.dev" in fault) for words, fault in zip(said, faults))


def test_without_a_toolchain_the_build_says_so_and_makes_nothing(tmp_path):
    answer = subprocess.run(
        [sys.executable, str(REAL / "build")],
        env={"PATH": str(tmp_path), "GPUFLEET_CACHE": str(tmp_path / "cache"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert "Go is missing" in answer.stderr and "stand-in" in answer.stderr
    assert not (tmp_path / "cache/real/0.32.15").exists()


def test_the_table_names_an_engine_for_each_release():
    table = build.releases()
    assert len(table) >= 2
    for release, entry in table.items():
        assert release.count(".") == 2
        assert entry["engine"].endswith(".0.0") and entry["pinned"].startswith("b")
        assert abs(int(entry["engine"].split(".")[0]) - int(entry["pinned"][1:])) < 10


@pytest.mark.parametrize("line,wanted", [("[ 42%] Building CXX object x.o", 42), ("[100%] Built target y", 100), ("Building wheel", None)])
def test_percent(line, wanted):
    assert build.percent(line) == wanted


def fake_build(root, version="0.32.15", **changes):
    """Lay out something that looks like a finished build."""
    entry = build.releases()[version]
    folder = root / version
    for name in ("bin/ollama", *(f"lib/ollama/{name}" for name in build.ENGINE_PROGRAMS), *(f"lab/{name}" for name in build.LAB_PROGRAMS)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("#!/bin/sh\n", encoding="utf-8")
        path.chmod(0o755)
    (folder / "built.json").write_text(json.dumps({"made_by": dict(build.recipe(version, entry), **changes)}), encoding="utf-8")
    return folder, entry


def test_finished_takes_a_whole_build_of_this_recipe_only(tmp_path):
    folder, entry = fake_build(tmp_path)
    assert build.finished(tmp_path, "0.32.15", entry)
    (folder / "lib/ollama/llama-server").unlink()
    assert not build.finished(tmp_path, "0.32.15", entry)
    fake_build(tmp_path, cmake_args=["-DGGML_RPC=OFF"])
    assert not build.finished(tmp_path, "0.32.15", entry)
    (folder / "built.json").write_text("{", encoding="utf-8")
    assert not build.finished(tmp_path, "0.32.15", entry)


@pytest.mark.parametrize("name,wanted", [("libggml.so.0.20.2", True), ("libllama.so", True), ("llama-server", False), ("_symlinks.json", False)])
def test_is_library(name, wanted):
    assert build.is_library(name) is wanted


def test_a_failing_tool_is_shown_with_the_end_of_its_log(tmp_path):
    with pytest.raises(build.BuildError, match="(?s)ended with 3.*no such thing"):
        build.run(["sh", "-c", "echo no such thing; exit 3"], tmp_path / "log")


# ---- the card ---------------------------------------------------------------------------------------------------------


def memory_mib(shim, **env):
    """Return the physical memory that a program under the shim is told, in MiB."""
    code = "import os; print(os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') // 2**20)"
    said = subprocess.run([sys.executable, "-S", "-c", code], env=dict(os.environ, LD_PRELOAD=str(shim), **env), capture_output=True, text=True, check=True)
    return int(said.stdout)


@pytest.mark.parametrize("text,wanted", [(None, 24210), ("8192 0\n", 8192), ("24210 6144", 18066), ("24210", 24210), ("100 200", 1), ("rubbish", 24210)])
def test_the_card_has_the_size_that_its_file_says(shim, tmp_path, text, wanted):
    env = {}
    if text is not None:
        (tmp_path / "0").write_text(text, encoding="utf-8")
        env["LAB_CARD_DIR"] = str(tmp_path)
    assert memory_mib(shim, **env) == wanted


def test_the_variable_counts_without_a_file(shim):
    assert memory_mib(shim, LAB_CARD_MIB="16000") == 16000


def free_port():
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


CLIENT = """
import ctypes, os, socket, sys
listener = socket.socket(fileno=int(sys.argv[1]))
libc = ctypes.CDLL(None, use_errno=True)
libc.accept.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
while True:
    fd = libc.accept(listener.fileno(), None, None)
    client = socket.socket(fileno=fd)
    buffers = []
    while True:
        asked = client.recv(64).decode()
        if not asked:
            break
        if asked == "free":
            client.send(str(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20).encode())
        else:
            start = ctypes.c_void_p()
            failed = libc.posix_memalign(ctypes.byref(start), 64, int(asked) * 2**20)
            buffers.append(start)
            client.send(str(failed).encode())
    client.close()
"""


def test_clients_are_served_side_by_side_and_share_the_card(shim, tmp_path):
    """A stand-in for ggml-rpc-server that serves one connection after the other becomes, under the shim, a card with several clients."""
    (tmp_path / "cards").mkdir()
    (tmp_path / "cards/0").write_text("1000 0", encoding="utf-8")

    def held():
        entries = lab_card.parse_ledger((tmp_path / "ledger").read_bytes())
        return sorted((port, mibs[0]) for _pid, port, mibs in entries)

    def ask(client, text):
        client.sendall(text.encode())
        return int(client.recv(64))

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.set_inheritable(True)
        address = listener.getsockname()
        card = subprocess.Popen(
            [sys.executable, "-S", "-c", CLIENT, str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env=dict(os.environ, LD_PRELOAD=str(shim), LAB_CARD_DIR=str(tmp_path / "cards"), LAB_CARD_LEDGER=str(tmp_path / "ledger")),
        )
        try:
            with socket.create_connection(address, 10) as first:
                assert ask(first, "free") == 1000
                assert ask(first, "400") == 0
                with socket.create_connection(address, 10) as second:
                    assert ask(second, "free") == 600
                    assert ask(second, "700") != 0, "more than is free was given"
                    assert ask(second, "500") == 0
                    assert ask(first, "free") == 100
                    assert held() == sorted([(first.getsockname()[1], 400), (second.getsockname()[1], 500)])
                    (tmp_path / "cards/0").write_text("2000 0", encoding="utf-8")
                    assert ask(first, "free") == 1100
                deadline = time.monotonic() + 10
                while ask(first, "free") != 1600 and time.monotonic() < deadline:
                    time.sleep(0.02)
                assert ask(first, "free") == 1600, "what a client held is free when it has gone"
        finally:
            card.kill()
            card.wait()


def test_the_cards_of_a_host_are_what_nvml_shows():
    card = {"gpus": [{"total_mib": 24564, "reserved_mib": 354}, {"total_mib": 8546, "reserved_mib": 354}, {}]}
    assert place_card.sizes_of(card) == [24210, 8192, 24210]


def test_the_bundle_of_a_host_is_the_same_for_the_same_files(tmp_path):
    folder, _entry = fake_build(tmp_path)
    shim = tmp_path / "shim.so"
    shim.write_bytes(b"shim")
    first, second = place_card.bundle([folder], shim), place_card.bundle([folder], shim)
    assert first == second
    with tarfile.open(fileobj=io.BytesIO(first[0])) as tar:
        named = {f"opt/lab-gpu/{folder.name}/ggml-rpc-server", "opt/lab-gpu/libcard_shim.so", "opt/lab-gpu/lab-gpu", "etc/systemd/system/lab-gpu.service"}
        assert named <= set(tar.getnames())
        assert tar.extractfile("opt/lab-gpu/default").read().decode() == folder.name
    (folder / "lab/ggml-rpc-server").write_text("changed", encoding="utf-8")
    assert place_card.bundle([folder], shim)[1] != first[1]
    shim.write_bytes(b"another")
    assert place_card.bundle([folder], shim)[1] != second[1]


def built():
    """Return the folders of the releases that are built here; skip where there is none."""
    answer = subprocess.run([str(REAL / "build"), "--path", "all"], capture_output=True, text=True, check=False)
    if answer.returncode:
        pytest.skip("the real server is not built here (make real-server)")
    return [Path(line) for line in answer.stdout.splitlines()]


def test_the_real_server_is_what_it_says():
    """Only where it is built: each binary calls itself by the table's version."""
    for folder in built():
        environment = dict(os.environ, OLLAMA_HOST=f"127.0.0.1:{free_port()}")
        version = subprocess.run([str(folder / "bin/ollama"), "--version"], capture_output=True, text=True, check=False, env=environment)
        assert folder.name in version.stdout + version.stderr


def test_the_engine_sees_cards_of_the_sizes_that_they_have(shim, tmp_path):
    """Only where it is built: two devices of one process are two cards, each with its own size."""
    for number, mib in enumerate((3000, 12345)):
        (tmp_path / str(number)).write_text(f"{mib} 0", encoding="utf-8")
    for folder in built():
        port = free_port()
        card = subprocess.Popen(
            [str(folder / "lab/ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-d", "CPU,CPU"],
            env=dict(os.environ, LD_PRELOAD=str(shim), LAB_CARD_DIR=str(tmp_path)),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            deadline, said = time.monotonic() + 15, ""
            while "RPC1" not in said and time.monotonic() < deadline:
                said = subprocess.run(
                    [str(folder / "lib/ollama/llama-server"), "--list-devices"],
                    env=dict(os.environ, LLAMA_ARG_RPC=f"127.0.0.1:{port}"),
                    capture_output=True,
                    text=True,
                    timeout=30,
                    check=False,
                ).stdout
            sizes = re.findall(r"(RPC\d): .*\((\d+) MiB, (\d+) MiB free\)", said)
            assert sizes == [("RPC0", "3000", "3000"), ("RPC1", "12345", "12345")], said
        finally:
            card.kill()
            card.wait()
