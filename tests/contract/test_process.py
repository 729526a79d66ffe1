# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The process: environment, command line, start, end, and who is left behind."""

from __future__ import annotations

import os
import signal

import pytest
from conftest import until

pytestmark = pytest.mark.both


def test_without_home_it_does_not_start(fresh):
    server = fresh({"HOME": None}, start=False)
    assert server.spawn().wait(20) != 0
    assert "$HOME is not defined" in server.log.read_text()


def test_without_home_it_does_not_start_even_with_models(fresh, tmp_path):
    server = fresh({"HOME": None, "OLLAMA_MODELS": str(tmp_path / "m")}, start=False)
    assert server.spawn().wait(20) != 0


def test_models_elsewhere(fresh, tmp_path, gguf):
    server = fresh({"OLLAMA_MODELS": str(tmp_path / "elsewhere")})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    assert (tmp_path / "elsewhere" / "manifests" / "registry.ollama.ai" / "library" / "m" / "latest").is_file()
    assert not (server.home / ".ollama" / "models").exists()


def test_quotes_and_spaces_around_a_value_are_dropped(fresh, tmp_path):
    server = fresh({"OLLAMA_MODELS": f' "{tmp_path}/quoted" '})
    assert server.get("/api/tags").status == 200 and (tmp_path / "quoted").is_dir()


def test_a_key_pair_is_made_at_the_first_start(fresh):
    server = fresh()
    key = server.home / ".ollama" / "id_ed25519"
    assert key.stat().st_mode & 0o777 == 0o600 and (server.home / ".ollama" / "id_ed25519.pub").exists()
    before = key.read_bytes()
    server.stop()
    server.start()
    assert key.read_bytes() == before


def test_a_port_that_is_taken(fresh, server):
    second = fresh({"OLLAMA_HOST": f"127.0.0.1:{server.port}"}, start=False)
    assert second.spawn().wait(20) == 1
    assert "address already in use" in second.log.read_text()


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "http://127.0.0.1:{}", "localhost:{}", "127.0.0.1:{}/path"])
def test_forms_of_the_address(fresh, form):
    server = fresh(start=False)
    server.environment["OLLAMA_HOST"] = form.format(server.port)
    assert server.start().get("/api/version").status == 200


def test_a_number_that_is_none_is_replaced_with_a_warning(fresh, gguf):
    server = fresh({"OLLAMA_CONTEXT_LENGTH": "8k"})
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    server.load("m")
    assert server.loaded()[0]["context_length"] == 4096
    assert "invalid environment variable, using default" in server.log.read_text()


def test_the_configuration_is_logged_once(fresh):
    server = fresh({"OLLAMA_KEEP_ALIVE": "7m", "OLLAMA_NUM_PARALLEL": "3"})
    line = next(line for line in server.log.read_text().splitlines() if "server config" in line)
    assert "OLLAMA_NUM_PARALLEL:3" in line and "OLLAMA_MODELS:" in line


def test_the_version_is_logged(fresh):
    server = fresh()
    assert f"version {server.get('/api/version').json()['version']})" in server.log.read_text()


def test_sigterm_ends_server_and_children(fresh, gguf):
    server = fresh()
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    server.load("m", keep_alive=-1)
    pids = server.runners()
    server.process.terminate()
    assert server.process.wait(10) == 0
    assert pids and until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 5)


def test_sigkill_leaves_the_children(fresh, gguf):
    server = fresh()
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])})
    server.load("m", keep_alive=-1)
    pids = server.runners()
    try:
        server.process.kill()
        server.process.wait(10)
        assert pids and not until(lambda: not all(os.path.exists(f"/proc/{pid}") for pid in pids), 1.5)
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)


def test_version_of_command_and_server(server):
    said = server.run("--version")
    version = server.get("/api/version").json()["version"]
    assert said.returncode == 0 and said.stdout == f"ollama version is {version}\n"


def test_version_without_a_server(fresh):
    said = fresh(start=False).run("--version")
    lines = said.stdout.splitlines()
    assert lines[0] == "Warning: could not connect to a running Ollama instance"
    assert lines[-1].startswith("Warning: client version is ")


@pytest.mark.real
def test_list_on_the_command_line(server):
    rows = server.run("list").stdout.splitlines()
    assert rows[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert any(row.split()[0] == "plain:latest" and server.digest("plain").startswith(row.split()[1]) for row in rows[1:])


@pytest.mark.real
def test_ps_on_the_command_line(quiet):
    quiet.load("plain", options={"num_ctx": 2048})
    rows = quiet.run("ps").stdout.splitlines()
    assert rows[0].split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert "plain:latest" in rows[1] and "100% CPU" in rows[1] and "2048" in rows[1]


@pytest.mark.real
def test_stop_on_the_command_line(quiet):
    quiet.load("plain")
    assert quiet.run("stop", "plain").returncode == 0
    assert until(lambda: not quiet.loaded())


@pytest.mark.real
def test_an_unknown_command(server):
    said = server.run("nonsense")
    assert said.returncode == 1 and "unknown command" in said.stderr


def test_the_models_survive_a_restart(fresh, gguf):
    server = fresh()
    server.create("m", files={"m.gguf": server.upload(gguf["plain"])}, system="S")
    digest = server.digest("m")
    server.stop()
    server.start()
    assert server.digest("m") == digest and server.show("m")["system"] == "S" and server.loaded() == []
