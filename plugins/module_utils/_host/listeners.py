# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Who listens on which TCP port, by /proc/net."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from typing import Any

from .files import names_in, text_or_none
from .processes import unit_of_pid

TCP_LISTEN = "0A"  # include/net/tcp_states.h of Linux
TABLES = ("tcp", "tcp6")


def listeners(ports: Iterable[int], root: str = "/") -> dict[int, list[dict[str, Any]]]:
    """{port: [{address, pid, command, unit}]} for the TCP ports asked; pid None where it cannot be seen."""
    proc = os.path.join(root, "proc")
    found: dict[int, list[dict[str, Any]]] = {port: [] for port in ports}
    texts = (text_or_none(os.path.join(proc, "net", name)) or "" for name in TABLES)
    sockets = [entry for text in texts for entry in parse_proc_net(text) if entry[1] in found]
    owners = _socket_owners({inode for _address, _port, inode in sockets}, proc) if sockets else {}
    for address, port, inode in sockets:
        pid = owners.get(inode)
        found[port].append(
            {
                "address": address_of(address),
                "pid": pid,
                "command": (text_or_none(f"{proc}/{pid}/comm") or "").strip() or None if pid else None,
                "unit": unit_of_pid(pid, proc) if pid else None,
            }
        )
    return found


def parse_proc_net(text: str) -> list[tuple[str, int, str]]:
    """[(address in the kernel's hex, port, inode)] of the listening sockets in a /proc/net/tcp text."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == TCP_LISTEN:
            address, _colon, port = fields[1].rpartition(":")
            found.append((address, int(port, 16), fields[9]))
    return found


def address_of(raw: str) -> str:
    """Text form of an address as /proc/net/tcp prints it: 32-bit words in host order, little endian here."""
    words = [bytes.fromhex(raw[start : start + 8])[::-1] for start in range(0, len(raw), 8)]
    return str(ipaddress.ip_address(b"".join(words)))


def _socket_owners(inodes: set[str], proc: str) -> dict[str, int]:
    """{inode: pid} of the processes that hold these sockets."""
    links = {f"socket:[{inode}]": inode for inode in inodes}
    owners: dict[str, int] = {}
    for pid in filter(str.isdigit, names_in(proc)):
        folder = os.path.join(proc, pid, "fd")
        for descriptor in names_in(folder):
            try:
                inode = links.get(os.readlink(os.path.join(folder, descriptor)))
            except OSError:
                continue
            if inode:
                owners.setdefault(inode, int(pid))
    return owners
