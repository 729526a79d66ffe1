# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._host import distribution as os_release
from ansible_collections.gpufleet.llm.plugins.module_utils._host import facts, files, listeners, paths, processes, units

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
    seen = units.units(["ollama.service", "absent.service"], root=str(tmp_path), run=answers(SHOW))
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
    with pytest.raises(units.HostError, match="a host that systemd runs"):
        units.units(["a.service"], run=answers(returncode=1, stderr="System has not been booted with systemd"))

    def missing(*_args, **_kwargs):
        raise FileNotFoundError("systemctl")

    with pytest.raises(units.HostError, match="a host that systemd runs"):
        units.units(["a.service"], run=missing)
    assert units.systemd_version(run=missing) is None


def test_systemd_version():
    assert units.systemd_version(run=answers("systemd 252 (252.39-1~deb12u1)\n+PAM")) == 252


def test_a_real_listener_is_found_with_its_owner():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        found = listeners.listeners({port})[port]
    assert [entry["address"] for entry in found] == ["127.0.0.1"]
    assert found[0]["pid"] == os.getpid()
    assert found[0]["command"]


def test_a_free_port_has_no_listener():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
        assert listeners.listeners({port}) == {port: []}


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
    assert listeners.address_of(raw) == address


@pytest.mark.parametrize(
    ("text", "init", "unit"),
    [
        ("0::/system.slice/ollama.service\n", "0::/init.scope\n", "ollama.service"),
        ("0::/system.slice/ollama.service\n", "", "ollama.service"),
        ("0::/system.slice/system-getty.slice/getty@tty1.service\n", "", "getty@tty1.service"),
        ("0::/user.slice/user-0.slice/session-1.scope\n", "", "session-1.scope"),
        ("4:memory:/x.service\n1:name=systemd:/system.slice/ollama.service\n0::/\n", "", "ollama.service"),
        # What follows the unit is its own: a group of a service with Delegate=, a unit of a user's manager.
        ("0::/system.slice/ollama.service/runner\n", "", "ollama.service"),
        ("0::/system.slice/ollama.service/payload.scope/inner.service\n", "", "ollama.service"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n", "", "user@1000.service"),
        # A container's processes are the container's, seen from the host; inside it pid 1 tells where it begins.
        ("0::/system.slice/docker-ab.scope/system.slice/ollama.service\n", "0::/init.scope\n", "docker-ab.scope"),
        ("0::/system.slice/docker-ab.scope/system.slice/ollama.service\n", "0::/system.slice/docker-ab.scope/init.scope\n", "ollama.service"),
        ("12:cpu:/\n1:name=systemd:/docker/ab/system.slice/ollama.service\n", "1:name=systemd:/docker/ab/init.scope\n", "ollama.service"),
        ("1:name=systemd:/docker/ab/system.slice/ollama.service\n", "1:name=systemd:/init.scope\n", None),
        ("0::/system.slice/docker-ab.scope\n", "0::/init.scope\n", "docker-ab.scope"),
        ("1:name=systemd:/docker/ab\n", "", None),
        ("0::/system.slice\n", "", None),
        ("0::/\n", "", None),
        ("", "", None),
        ("nonsense", "nonsense", None),
    ],
)
def test_the_unit_of_a_cgroup_is_the_one_that_the_system_manager_knows(text, init, unit):
    assert processes.unit_of(text, init) == unit


@given(st.text(max_size=80))
def test_any_cgroup_text(text):
    assert (processes.unit_of(text, text) or "a.service").endswith(processes.UNIT_KINDS)


def made_up_proc(folder, inits_group="/init.scope"):
    """A /proc with pid 1 and with pid 4711, an Ollama of user 997 and group 994 that listens on 11434 over IPv6 only."""
    header = "  sl  local_address rem_address st tx_queue rx_queue tr tm->when retrnsmt uid timeout inode\n"
    row = "   0: {}:2CAA {}:0000 0A 00000000:00000000 00:00000000 00000000 997 0 {} 1 0 100 0 0 10 0\n"
    everywhere = "0" * 32
    for path, text in {
        "1/cgroup": f"0::{inits_group}\n",
        "4711/cgroup": f"0::{inits_group.replace('/init.scope', '')}/system.slice/ollama.service/runner\n",
        "4711/comm": "ollama\n",
        "4711/status": "Name:\tollama\nPPid:\t31\nUid:\t997\t996\t995\t995\nGid:\t994\t994\t994\t994\n",
        "4711/stat": "4711 (ol) lama) S 31 " + " ".join(["0"] * 17) + f" {600 * processes.ticks_per_second()} 0 0\n",
        "uptime": "1000.5 2000.0\n",
        "net/tcp": header,
        "net/tcp6": header + row.format(everywhere, everywhere, 77),
    }.items():
        (folder / "proc" / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / "proc" / path).write_text(text)
    (folder / "proc/4711/fd").mkdir()
    (folder / "proc/4711/fd/3").symlink_to("socket:[77]")
    (folder / "proc/4711/exe").symlink_to("/opt/ollama/bin/ollama")


def test_a_listener_on_ipv6_alone_is_seen_with_its_unit(tmp_path):
    made_up_proc(tmp_path)
    entry = {"address": "::", "pid": 4711, "command": "ollama", "unit": "ollama.service"}
    assert listeners.listeners({11434, 443}, str(tmp_path)) == {11434: [entry], 443: []}


def test_a_listener_inside_a_container_has_the_unit_of_its_own_systemd(tmp_path):
    made_up_proc(tmp_path, "/system.slice/docker-ab.scope/init.scope")
    assert listeners.listeners({11434}, str(tmp_path))[11434][0]["unit"] == "ollama.service"


def test_a_real_listener_on_ipv6_is_found():
    with socket.socket(socket.AF_INET6) as server:
        try:
            server.bind(("::1", 0))
        except OSError:
            pytest.skip("this machine has no IPv6")
        server.listen()
        port = server.getsockname()[1]
        assert [(entry["address"], entry["pid"]) for entry in listeners.listeners({port})[port]] == [("::1", os.getpid())]


def test_a_process_is_described_by_its_own_numbers(tmp_path):
    made_up_proc(tmp_path)
    assert processes.describe(4711, str(tmp_path / "proc")) == {
        "unit": "ollama.service", "ppid": 31, "uid": 997, "comm": "ollama", "exe": "/opt/ollama/bin/ollama", "age_s": 400.5,
    }  # fmt: skip


def test_a_process_of_this_host():
    found = processes.describe(os.getpid())
    assert (found["ppid"], found["uid"]) == (os.getppid(), os.getuid())
    assert os.path.realpath(found["exe"]) == os.path.realpath(sys.executable)
    assert 0 <= found["age_s"] < 100000
    assert set(processes.describe(2**22 + 1).values()) == {None}


def test_absent_and_unreadable_are_two_things(tmp_path):
    (tmp_path / "text").write_bytes(b"caf\xe9 1234")
    (tmp_path / "folder").mkdir()
    assert files.read_text(str(tmp_path / "text")) == "caf\ufffd 1234"
    assert files.read_text(str(tmp_path / "text"), 3) == "caf"
    assert files.read_text(str(tmp_path / "none")) is None
    with pytest.raises(IsADirectoryError):
        files.read_text(str(tmp_path / "folder"))
    assert files.text_or_none(str(tmp_path / "folder")) is None
    assert files.text_or_none(str(tmp_path / "none")) is None
    assert files.text_or_none(str(tmp_path / "text"), 3) == "caf"
    assert files.names_in(str(tmp_path)) == ["folder", "text"]
    assert files.names_in(str(tmp_path / "text")) == []


def test_paths(tmp_path):
    (tmp_path / "release").mkdir(mode=0o750)
    (tmp_path / "current").symlink_to("release")
    (tmp_path / "file").write_text("abc")
    assert paths.path_state(str(tmp_path / "current"))["target"] == "release"
    assert paths.path_state(str(tmp_path / "release"))["mode"] == "0750"
    assert paths.path_state(str(tmp_path / "file"))["size"] == 3
    assert paths.path_state(str(tmp_path / "none"))["kind"] == "absent"


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path, monkeypatch):
    sizes = {str(tmp_path): 3 * 2**30 + 5 * 2**20 + 7, "/": 11 * 2**20}
    monkeypatch.setattr(paths.shutil, "disk_usage", lambda path: SimpleNamespace(free=sizes[path]))
    assert paths.free_mib(str(tmp_path / "not" / "there" / "yet")) == paths.free_mib(str(tmp_path)) == 3077
    (tmp_path / "file").write_text("abc")
    assert paths.free_mib(str(tmp_path / "file")) == 3077
    assert paths.free_mib("/not/there") == 11


def test_owner_and_group_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("abc")
    seen = list(os.lstat(tmp_path / "file"))
    seen[4:6] = [1, 2**31 - 7]  # uid, gid
    monkeypatch.setattr(os, "lstat", lambda _path: os.stat_result(seen))
    state = paths.path_state(str(tmp_path / "file"))
    assert (state["owner"], state["group"]) == (pwd.getpwuid(1).pw_name, str(2**31 - 7))
    seen[4:6] = [2**31 - 7, 1]
    state = paths.path_state(str(tmp_path / "file"))
    assert (state["owner"], state["group"]) == (str(2**31 - 7), grp.getgrgid(1).gr_name)


def test_os_release_of_the_first_root_that_has_one(tmp_path):
    (tmp_path / "vendor/usr/lib").mkdir(parents=True)
    (tmp_path / "vendor/usr/lib/os-release").write_text("# a comment\nID='ubuntu'\nVERSION_ID=\"24.04\"\n")
    wanted = {"id": "ubuntu", "version_id": "24.04", "pretty_name": ""}
    assert os_release.distribution(str(tmp_path / "nothing"), str(tmp_path / "vendor")) == wanted
    assert os_release.distribution(str(tmp_path / "vendor"), "/") == wanted


def test_distribution_and_memory(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "os-release").write_text('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n')
    assert os_release.distribution(str(tmp_path)) == {
        "id": "debian",
        "version_id": "12",
        "pretty_name": "Debian GNU/Linux 12 (bookworm)",
    }
    assert os_release.distribution(str(tmp_path / "nothing")) == {"id": "", "version_id": "", "pretty_name": ""}
    assert facts.memory_mib(str(tmp_path)) == {"total": None, "available": None}


def test_systemctl_is_asked_only_where_units_are_asked():
    calls = []

    def run(command, **_kwargs):
        calls.append(command)
        return subprocess.CompletedProcess(command, 0, "systemd 252 (x)\n", "")

    facts.observe(paths=["/"], run=run)
    assert calls == [["systemctl", "--version"]]
