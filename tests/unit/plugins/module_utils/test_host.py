# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import socket
import subprocess
from types import SimpleNamespace

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._host import facts as host_facts

SHOW = """\
MainPID=812
Id=ollama.service
LoadState=loaded
ActiveState=active
SubState=running
UnitFileState=enabled
NeedDaemonReload=no

MainPID=0
Id=absent.service
LoadState=not-found
ActiveState=inactive
SubState=dead
UnitFileState=
NeedDaemonReload=no
"""


def answers(stdout="", returncode=0, stderr=""):
    return lambda *_args, **_kwargs: SimpleNamespace(stdout=stdout, returncode=returncode, stderr=stderr)


def test_units_of_systemctl_show(tmp_path):
    (tmp_path / "proc" / "812").mkdir(parents=True)
    (tmp_path / "proc" / "812" / "environ").write_bytes(b"HOME=/x\0GPUFLEET_CONFIG=0f3b\0SECRET=no\0")
    seen = host_facts.units(["ollama.service", "absent.service"], root=str(tmp_path), run=answers(SHOW))
    assert seen["ollama.service"]["main_pid"] == 812
    assert seen["ollama.service"]["config"] == "0f3b"
    assert seen["absent.service"] == {
        "load_state": "not-found",
        "active_state": "inactive",
        "sub_state": "dead",
        "unit_file_state": "",
        "main_pid": 0,
        "need_daemon_reload": False,
        "config": None,
    }
    assert "SECRET" not in str(seen)


def test_a_host_without_systemd_is_said_to_be_one():
    with pytest.raises(host_facts.HostError, match="a host that systemd runs"):
        host_facts.units(["a.service"], run=answers(returncode=1, stderr="System has not been booted with systemd"))

    def missing(*_args, **_kwargs):
        raise FileNotFoundError("systemctl")

    with pytest.raises(host_facts.HostError, match="a host that systemd runs"):
        host_facts.units(["a.service"], run=missing)
    assert host_facts.systemd_version(run=missing) is None


def test_systemd_version():
    assert host_facts.systemd_version(run=answers("systemd 252 (252.39-1~deb12u1)\n+PAM")) == 252


def test_a_real_listener_is_found_with_its_owner():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        found = host_facts.listeners({port})[port]
    assert [entry["address"] for entry in found] == ["127.0.0.1"]
    assert found[0]["pid"] == os.getpid()
    assert found[0]["command"]


def test_a_free_port_has_no_listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert host_facts.listeners({port}) == {port: []}


@pytest.mark.parametrize(
    ("raw", "address"),
    [
        ("0100007F", "127.0.0.1"),
        ("00000000", "0.0.0.0"),
        ("00000000000000000000000001000000", "::1"),
        ("00000000000000000000000000000000", "::"),
    ],
)
def test_addresses(raw, address):
    assert host_facts.address_of(raw) == address


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/ollama.service\n", "ollama.service"),
        ("12:cpu:/\n1:name=systemd:/docker/abc/system.slice/ollama.service\n", "ollama.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", "session-1.scope"),
        ("0::/\n", None),
    ],
)
def test_unit_of_a_cgroup(text, unit):
    assert host_facts.unit_of(text) == unit


def test_paths(tmp_path):
    (tmp_path / "release").mkdir(mode=0o750)
    (tmp_path / "current").symlink_to("release")
    (tmp_path / "file").write_text("abc")
    assert host_facts.path_state(str(tmp_path / "current"))["target"] == "release"
    assert host_facts.path_state(str(tmp_path / "release"))["mode"] == "0750"
    assert host_facts.path_state(str(tmp_path / "file"))["size"] == 3
    assert host_facts.path_state(str(tmp_path / "none"))["kind"] == "absent"
    assert host_facts.free_mib(str(tmp_path / "not" / "there" / "yet")) == pytest.approx(host_facts.free_mib(str(tmp_path)), rel=0.05)


def test_distribution_and_memory(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n')
    assert host_facts.distribution(str(tmp_path)) == {
        "id": "debian",
        "version_id": "12",
        "pretty_name": "Debian GNU/Linux 12 (bookworm)",
    }
    assert host_facts.distribution(str(tmp_path / "nothing")) == {"id": "", "version_id": "", "pretty_name": ""}
    assert host_facts.memory_mib(str(tmp_path)) == {"total": None, "available": None}


def test_a_look_needs_systemctl_only_where_units_are_asked():
    calls = []

    def run(command, **_kwargs):
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, "systemd 252 (x)\n", "")

    host_facts.observe(paths=["/"], run=run)
    assert calls == [["systemctl", "--version"]]
