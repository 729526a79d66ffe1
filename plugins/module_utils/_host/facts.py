# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What a role's preflight has to know of a host, read in one look.

Everything is read from files below ``root`` (tests give a made-up tree) or from one
call of ``systemctl show``. Nothing here changes the host.
"""

from __future__ import annotations

import grp
import os
import platform
import pwd
import re
import shutil
import stat
import subprocess

from . import folders

LISTEN = "0A"  # TCP_LISTEN, include/net/tcp_states.h of Linux
MIB = 1024 * 1024


class HostError(Exception):
    """The host could not be read; the text is fit for an operator."""


def read_text(path):
    """The file's text, or None where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return None


def distribution(root="/"):
    """{id, version_id, pretty_name} from os-release(5); values are '' where the file does not say."""
    text = read_text(os.path.join(root, "etc/os-release")) or read_text(os.path.join(root, "usr/lib/os-release")) or ""
    found = dict(re.findall(r'^([A-Z_]+)="?([^"\n]*)"?$', text, re.MULTILINE))
    return {key: found.get(key.upper(), "") for key in ("id", "version_id", "pretty_name")}


def memory_mib(root="/"):
    """{total, available} in MiB from /proc/meminfo; None for what it does not say."""
    text = read_text(os.path.join(root, "proc/meminfo")) or ""
    kib = {name: int(value) for name, value in re.findall(r"^(\w+):\s+(\d+) kB", text, re.MULTILINE)}
    return {
        "total": kib["MemTotal"] // 1024 if "MemTotal" in kib else None,
        "available": kib["MemAvailable"] // 1024 if "MemAvailable" in kib else None,
    }


def free_mib(path):
    """MiB that a process of root can still write below path (its nearest parent that exists)."""
    while not os.path.isdir(path):
        parent = os.path.dirname(path.rstrip("/")) or "/"
        if parent == path:
            break
        path = parent
    return shutil.disk_usage(path).free // MIB


def path_state(path):
    """{kind, target, owner, group, mode, size} of a path itself; kind 'absent' where there is nothing."""
    try:
        info = os.lstat(path)
    except OSError:
        return {"kind": "absent", "target": None, "owner": None, "group": None, "mode": None, "size": None}
    kinds = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return {
        "kind": kinds.get(stat.S_IFMT(info.st_mode), "other"),
        "target": os.readlink(path) if stat.S_ISLNK(info.st_mode) else None,
        "owner": _name(pwd.getpwuid, info.st_uid, "pw_name"),
        "group": _name(grp.getgrgid, info.st_gid, "gr_name"),
        "mode": f"{stat.S_IMODE(info.st_mode):04o}",
        "size": info.st_size,
    }


def _name(lookup, number, attribute):
    try:
        return getattr(lookup(number), attribute)
    except KeyError:
        return str(number)


def parse_proc_net(text):
    """[(address in the kernel's hex, port, inode)] of the listening sockets in a /proc/net/tcp text."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN:
            address, _colon, port = fields[1].rpartition(":")
            found.append((address, int(port, 16), fields[9]))
    return found


def address_of(raw):
    """Text form of an address as /proc/net/tcp prints it: 32-bit words in host order, little endian here."""
    import ipaddress

    words = [bytes.fromhex(raw[start : start + 8])[::-1] for start in range(0, len(raw), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def unit_of(cgroup_text):
    """systemd unit in the text of /proc/PID/cgroup (v1 or v2), or None.

    >>> unit_of("0::/system.slice/ollama.service")
    'ollama.service'
    """
    for line in cgroup_text.splitlines():
        for part in reversed(line.split(":", 2)[-1].split("/")):
            if part.endswith((".service", ".scope", ".socket")):
                return part
    return None


def listeners(ports, root="/"):
    """{port: [{address, pid, command, unit}]} for the TCP ports asked; pid None where it cannot be seen."""
    proc = os.path.join(root, "proc")
    sockets = [entry for name in ("tcp", "tcp6") for entry in parse_proc_net(read_text(os.path.join(proc, "net", name)) or "") if entry[1] in ports]
    owners = _socket_owners({inode for _address, _port, inode in sockets}, proc) if sockets else {}
    found = {port: [] for port in ports}
    for address, port, inode in sockets:
        pid = owners.get(inode)
        found[port].append(
            {
                "address": address_of(address),
                "pid": pid,
                "command": (read_text(f"{proc}/{pid}/comm") or "").strip() or None if pid else None,
                "unit": unit_of(read_text(f"{proc}/{pid}/cgroup") or "") if pid else None,
            }
        )
    return found


def _socket_owners(inodes, proc):
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    owners = {}
    for pid in filter(str.isdigit, os.listdir(proc)):
        folder = os.path.join(proc, pid, "fd")
        try:
            descriptors = os.listdir(folder)
        except OSError:
            continue
        for descriptor in descriptors:
            try:
                inode = wanted.get(os.readlink(os.path.join(folder, descriptor)))
            except OSError:
                continue
            if inode:
                owners.setdefault(inode, int(pid))
    return owners


UNIT_PROPERTIES = ("Id", "LoadState", "ActiveState", "SubState", "UnitFileState", "MainPID", "NeedDaemonReload")


def parse_units(text):
    """{unit: {load_state, active_state, sub_state, unit_file_state, main_pid, need_daemon_reload}} of `systemctl show`."""
    found = {}
    for block in text.strip().split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if "Id" in values:
            found[values["Id"]] = {
                "load_state": values.get("LoadState", ""),
                "active_state": values.get("ActiveState", ""),
                "sub_state": values.get("SubState", ""),
                "unit_file_state": values.get("UnitFileState", ""),
                "main_pid": int(values.get("MainPID") or 0),
                "need_daemon_reload": values.get("NeedDaemonReload") == "yes",
            }
    return found


def config_mark(pid, root="/"):
    """Value of GPUFLEET_CONFIG in the environment of a running process, or None.

    Roles write it into a service's environment file as the fingerprint of its whole
    configuration; so a process that still runs with an older one is seen on the next run,
    also where the run that changed the files was cut off before the restart.
    """
    text = read_text(os.path.join(root, f"proc/{pid}/environ")) if pid else None
    for entry in (text or "").split("\0"):
        if entry.startswith("GPUFLEET_CONFIG="):
            return entry.partition("=")[2]
    return None


def units(names, root="/", run=subprocess.run):
    """State of the units named, with the configuration that their main process runs with."""
    if not names:
        return {}
    command = ["systemctl", "show", "--no-pager", "--property=" + ",".join(UNIT_PROPERTIES), *names]
    try:
        done = run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HostError(f"`systemctl show` could not be asked ({error}); the roles need a host that systemd runs.") from error
    if done.returncode:
        raise HostError(f"`systemctl show` answered {done.returncode} ({done.stderr.strip()}); the roles need a host that systemd runs.")
    found = parse_units(done.stdout)
    for state in found.values():
        state["config"] = config_mark(state["main_pid"], root)
    return found


def systemd_version(run=subprocess.run):
    """Version of systemd as a whole number, or None where there is none."""
    try:
        done = run(["systemctl", "--version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.match(r"systemd (\d+)", done.stdout)
    return int(match.group(1)) if match else None


def observe(paths=(), ports=(), unit_names=(), commands=(), root="/", run=subprocess.run):
    """All of it in one dict; keys as in the RETURN of the module host_info."""
    return {
        "distribution": distribution(root),
        "architecture": platform.machine(),
        "kernel": platform.release(),
        "systemd": systemd_version(run),
        "memory_mib": memory_mib(root),
        "paths": {path: dict(path_state(path), free_mib=free_mib(path), refusal=folders.refusal(path)) for path in paths},
        "listeners": listeners(set(ports), root),
        "units": units(list(unit_names), root, run),
        "commands": {name: shutil.which(name, path=SEARCH_PATH) for name in commands},
        "uid": os.geteuid(),
    }


SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
