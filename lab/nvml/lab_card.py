#!/usr/bin/python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated card of a lab host: watches who holds VRAM and writes the NVML simulator's state file.

A process holds VRAM of the card in one of two ways:

* it maps /dev/zero privately (as the stand-in server does): the mapping's length is the VRAM. The mapping's offset
  in pages is the card's number; 0, the usual, is the first card with room;
* it is a `llama-server` that computes on lab-gpu.service (the real server): the ledger of that service says how much
  each connection has allocated on each card (lab/real/card_shim.c), and the process at the other end holds it.

Hardware and faults are /etc/nvml-sim/card.json; `lab_card.py set …` changes it and waits until it shows. Where it names a
`kernel`, a folder, the loaded driver is what sys/module/nvidia/version below it says, as lab/driver leaves it there;
persistence and power limits are then what the driver's own programs have set.

    lab_card.py run                                the daemon (root, on the lab host)
    lab_card.py set init_error=18                  nvmlInit fails: 4, 9, 18, 999 …
    lab_card.py set gpu0.lost=true                 fallen off the bus
    lab_card.py set gpu0.hide_processes=true       processes without memory (None)
    lab_card.py set gpu0.tenant_mib=6000           somebody else's process (this daemon's pid)
    lab_card.py set gpu0.trapped_mib=9000          memory that no process owns
    lab_card.py set 'gpu0.throttle=["hw_thermal_slowdown"]' gpu0.temperature_c=88
    lab_card.py set driver=570.86.10               another module than the library: a mismatch
    lab_card.py set gpus=2                         so many cards like the first
    lab_card.py set gpu0.recovery=7                what NVML says the card needs
    lab_card.py clear                              no faults
    lab_card.py hold 4096 [CARD]                   hold VRAM until killed: a tenant with a pid of its own
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import os
import re
import signal
import socket
import struct
import sys
import time
import uuid

CARD = os.environ.get("NVML_SIM_CARD_FILE", "/etc/nvml-sim/card.json")
STATE = os.environ.get("NVML_SIM_STATE", "/run/nvml-sim/state")
PERSISTENCE = "/run/nvidia-persistenced/lab"
LEDGER = os.environ.get("LAB_CARD_LEDGER", "/run/lab-gpu/ledger")
LEDGER_ENTRY = struct.Struct("=ii8q")  # struct client of card_shim.c: pid, port, bytes on each card
PERIOD_S = 0.25
MIB = 1024 * 1024
PAGE = os.sysconf("SC_PAGE_SIZE")
RPC_SERVER = "ggml-rpc-server"
RUNNER = "llama-server"
IDLE_MIB = 1  # what NVML shows of an idle headless card

DEFAULT = {
    "driver": "580.126.09",
    "branch": "r580_00",
    "cuda": 13000,
    "gpus": [{"name": "NVIDIA GeForce RTX 4090"}],
    "faults": {},
}
DEFAULT_GPU = {
    "name": "NVIDIA GeForce RTX 4090",
    "total_mib": 24564,
    "reserved_mib": 354,
    "compute_capability": "8.9",
    "power_limit_w": 450,
    "power_default_limit_w": 450,
    "power_min_limit_w": 150,
    "power_max_limit_w": 600,
    "power_idle_w": 21,
    "temperature_c": 38,
    "ecc": None,
    "persistence": True,
    "pcie": [4, 4, 16, 16],
}
THROTTLE = {
    "gpu_idle": 0x1,
    "sw_power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake": 0x80,
}
TOP_FAULTS = {"init_error": int, "calls_error": int, "driver": str, "library": str, "gpus": int}
GPU_FAULTS = {
    "lost": bool,
    "hide_processes": bool,
    "tenant_mib": int,
    "trapped_mib": int,
    "throttle": list,
    "temperature_c": int,
    "power_w": int,
    "recovery": int,
    "replays": int,
}


class CardError(Exception):
    """The card file or a setting is wrong; the text says what and what would be right."""


# ---- the card file ---------------------------------------------------------------------------------------------------


def load_card(text):
    """The card of a JSON text, defaults filled in; raises CardError."""
    try:
        card = dict(DEFAULT, **json.loads(text or "{}"))
        faults = dict(card["faults"])
        gpus = [dict(DEFAULT_GPU, **gpu) for gpu in card["gpus"]]
    except (ValueError, TypeError) as error:
        raise CardError(f"card.json is not what card-4090.json shows: {error}") from None
    for key, value in faults.items():
        check_fault(key, value)
    count = faults.get("gpus", len(gpus))
    gpus = [dict(gpus[min(index, len(gpus) - 1)]) for index in range(count)] if gpus else []
    for index, gpu in enumerate(gpus):
        # No two cards of a fleet have one UUID, and a host's card keeps its own.
        gpu.setdefault("uuid", f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{socket.gethostname()}/{index}')}")
        gpu.setdefault("pci_bus_id", f"00000000:{index + 1:02X}:00.0")
        prefix = f"gpu{index}."
        gpu["faults"] = {key[len(prefix) :]: value for key, value in faults.items() if key.startswith(prefix)}
    return dict(card, gpus=gpus, faults=faults)


def check_fault(key, value):
    """Raises CardError for a fault that there is not, or a value of another type."""
    gpu = re.fullmatch(r"gpu\d+\.(\w+)", key)
    kind = GPU_FAULTS.get(gpu.group(1)) if gpu else TOP_FAULTS.get(key)
    if kind is None:
        known = ", ".join(sorted(TOP_FAULTS) + sorted(f"gpuN.{name}" for name in GPU_FAULTS))
        raise CardError(f"There is no fault '{key}'; there are: {known}")
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise CardError(f"{key}={value!r} is no {kind.__name__}")
    if kind is list and not set(value) <= set(THROTTLE):
        raise CardError(f"{key}={value!r}: the reasons are {', '.join(THROTTLE)}")


# ---- who holds what --------------------------------------------------------------------------------------------------


def parse_stat(text):
    """``(comm, start ticks, virtual bytes)`` of a /proc/PID/stat."""
    head, _bracket, tail = text.rpartition(")")
    fields = tail.split()
    return head.partition("(")[2], int(fields[19]), int(fields[20])


def parse_maps(text):
    """``[(address, MiB, card number)]`` of the private mappings of /dev/zero in a /proc/PID/maps."""
    held = []
    for line in text.splitlines():
        if not line.endswith("/dev/zero"):
            continue
        span, mode, offset = line.split()[:3]
        start, end = (int(part, 16) for part in span.split("-"))
        if mode[3] == "p":
            held.append((start, (end - start) // MIB, int(offset, 16) // PAGE))
    return held


def place(mappings, cards, before):
    """``{key: card}`` for mappings ``{key: (MiB, wanted card)}``.

    Card 0 stands for the first with room; a mapping stays where it was ``before``, as memory does.
    """
    placed = {key: before[key] for key in mappings if key in before}
    room = list(cards)
    for key, card in placed.items():
        room[card] -= mappings[key][0]
    for key in sorted(set(mappings) - set(placed)):
        mib, wanted = mappings[key]
        if not room:
            break
        card = min(wanted, len(room) - 1)
        if not wanted:
            card = next((index for index, free in enumerate(room) if free >= mib), 0)
        placed[key] = card
        room[card] -= mib
    return placed


def parse_ledger(raw):
    """``[(pid, port, [MiB a card])]`` of the connections that hold something."""
    whole = raw[: len(raw) - len(raw) % LEDGER_ENTRY.size]
    return [(pid, port, [size // MIB for size in held]) for pid, port, *held in LEDGER_ENTRY.iter_unpack(whole) if pid and any(held)]


def other_end(port, pids, proc="/proc"):
    """The one of ``pids`` that has a connection from this port of 127.0.0.1, or None."""
    near = f"0100007F:{port:04X}"
    sockets = {f"socket:[{fields[9]}]" for fields in map(str.split, slurp(f"{proc}/net/tcp").splitlines()) if len(fields) > 9 and fields[1] == near}
    for pid in pids:
        try:
            if any(os.readlink(f"{proc}/{pid}/fd/{name}") in sockets for name in os.listdir(f"{proc}/{pid}/fd")):
                return pid
        except OSError:
            continue  # it ended while we looked
    return None


def read_maps(folder):
    """The text of FOLDER/maps, or None.

    Of another user's process that wants CAP_SYS_PTRACE. Where a container lacks it, the process's own identity will do.
    """
    try:
        return slurp(f"{folder}/maps")
    except PermissionError:
        return read_as_owner(folder)
    except OSError:
        return None


def read_as_owner(folder):
    try:
        owner = os.stat(folder)
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
        return slurp(f"{folder}/maps")
    except OSError:
        return None
    finally:
        os.seteuid(os.getuid())
        os.setegid(os.getgid())


def slurp(path):
    with open(path, encoding="utf-8", errors="replace") as handle:
        return handle.read()


class Watcher:
    """Remembers of each process what it held when its size last changed, so that a look costs one read a process."""

    def __init__(self, proc="/proc", ledger=LEDGER):
        self.proc, self.ledger = proc, ledger
        self.known = {}  # (pid, start) -> (virtual bytes, [(address, MiB, card)])
        self.placed = {}
        self.owners = {}  # (pid, start) that serves a connection -> (pid, start) at its other end

    def look(self, cards):
        """Per card of ``cards`` (usable MiB each) a list of ``(pid, MiB)`` and the MiB used without a process."""
        alive, rpc, runners = {}, {}, {}
        for entry in os.listdir(self.proc):
            if not entry.isdigit():
                continue
            try:
                comm, start, size = parse_stat(slurp(f"{self.proc}/{entry}/stat"))
            except (OSError, ValueError, IndexError):
                continue  # it ended while we looked
            key = (int(entry), start)
            alive[key] = self._held(key, size)
            if comm == RPC_SERVER and size:  # a zombie has no memory left
                rpc[int(entry)] = key
            elif comm == RUNNER:
                runners[int(entry)] = key
        self.known = alive
        return self._tally(cards, self._connections(rpc, runners))

    def _connections(self, rpc, runners):
        """``[(pid or None, [MiB a card])]``: who holds what by a connection to the service that is the real server's cards."""
        try:
            with open(self.ledger, "rb") as handle:
                entries = parse_ledger(handle.read())
        except OSError:
            return []
        self.owners = {server: owner for server, owner in self.owners.items() if rpc.get(server[0]) == server and runners.get(owner[0]) == owner}
        held = []
        for pid, port, mibs in entries:
            if pid not in rpc:
                continue
            if rpc[pid] not in self.owners:
                owner = other_end(port, runners, self.proc)
                if owner:
                    self.owners[rpc[pid]] = runners[owner]
            held.append((self.owners.get(rpc[pid], (None,))[0], mibs))
        return held

    def _held(self, key, size):
        before = self.known.get(key)
        if before and before[0] == size:
            return before
        text = read_maps(f"{self.proc}/{key[0]}")
        return size, parse_maps(text) if text and "/dev/zero" in text else []

    def _tally(self, cards, connections):
        holders = [{} for _card in cards]
        ownerless = [0 for _card in cards]
        mappings = {(key, address): (mib, card) for key, (_size, held) in self.known.items() for address, mib, card in held}
        self.placed = place(mappings, cards, {k: c for k, c in self.placed.items() if c < len(cards)})
        for (key, address), card in self.placed.items():
            holders[card][key[0]] = holders[card].get(key[0], 0) + mappings[(key, address)][0]
        for pid, mibs in connections:
            for card, mib in enumerate(mibs[: len(cards)]):
                if pid is None:
                    ownerless[card] += mib
                elif mib:
                    holders[card][pid] = holders[card].get(pid, 0) + mib
        return [(sorted(held.items()), rest) for held, rest in zip(holders, ownerless)]


# ---- the state file --------------------------------------------------------------------------------------------------


def dash(value, factor=1):
    """The state file's word for a number, a flag or nothing."""
    return "-" if value is None else str(int(value * factor))


def with_kernel(card):
    """The card with what the simulated kernel and the driver's programs say now; the card itself where it names no kernel."""
    if not card.get("kernel"):
        return card
    version = (read_text(os.path.join(card["kernel"], "sys/module/nvidia/version")) or "").strip()
    faults = dict(card["faults"]) if version else dict(card["faults"], init_error=9)
    gpus = []
    for index, gpu in enumerate(card["gpus"]):
        limit = read_text(os.path.join(os.path.dirname(STATE), f"limit-{index}"))
        gpus.append(dict(gpu, persistence=os.path.exists(PERSISTENCE), power_limit_w=int(limit) if limit else gpu["power_default_limit_w"]))
    branch = version.partition(".")[0] or "580"
    return dict(card, driver=version or card["driver"], branch=f"r{branch}_00", cuda=13000 if branch == "580" else 13010, faults=faults, gpus=gpus)


def fingerprint(card_text):
    """The line of the state file that tells of which card.json it is."""
    return "# card " + hashlib.sha256((card_text or "").encode()).hexdigest()[:16]


def render(card, seen, own_pid):
    """The lines of the state file. ``seen`` is what Watcher.look gave, one entry a card."""
    faults = card["faults"]
    lines = [
        f"driver {faults.get('driver', card['driver'])}",
        f"branch {card['branch']}",
        f"cuda {card['cuda']}",
        f"init {faults.get('init_error', 0)}",
        f"calls {faults.get('calls_error', 0)}",
    ]
    library = faults.get("library", card.get("library"))
    if library:
        lines.append(f"library {library}")
    for gpu, (holders, ownerless) in zip(card["gpus"], seen):
        lines += render_gpu(gpu, holders, ownerless, own_pid)
    return lines


def render_gpu(gpu, holders, ownerless, own_pid):
    faults = gpu["faults"]
    tenant = faults.get("tenant_mib", 0)
    holders = list(holders) + ([(own_pid, tenant)] if tenant else [])
    used = IDLE_MIB + ownerless + faults.get("trapped_mib", 0) + sum(mib for _pid, mib in holders)
    busy = bool(holders)
    usable = gpu["total_mib"] - gpu["reserved_mib"]
    temperature = faults.get("temperature_c", gpu["temperature_c"] + (17 if busy else 0))
    power = faults.get("power_w", gpu["power_idle_w"] + (34 if busy else 0))
    bits = sum(THROTTLE[name] for name in faults.get("throttle", [] if busy else ["gpu_idle"]))
    hide = faults.get("hide_processes", False)
    lines = [
        "gpu",
        f"uuid {gpu['uuid']}",
        f"name {gpu['name']}",
        f"pci {gpu['pci_bus_id']}",
        "capability {} {}".format(*gpu["compute_capability"].split(".")),
        f"total {gpu['total_mib']}",
        f"reserved {gpu['reserved_mib']}",
        f"used {min(used, usable)}",
        f"load {3 if busy else 0} {1 if busy else 0}",
        f"temperature {temperature}",
        f"power {dash(power, 1000)}",
        f"limit {dash(gpu['power_limit_w'], 1000)}",
        f"default {dash(gpu['power_default_limit_w'], 1000)}",
        f"enforced {dash(gpu['power_limit_w'], 1000)}",
        f"range {dash(gpu['power_min_limit_w'], 1000)} {dash(gpu['power_max_limit_w'], 1000)}",
        f"throttle {bits:#x}",
        f"ecc {dash(gpu['ecc'])}",
        f"persistence {dash(gpu['persistence'])}",
        "pcie {} {} {} {}".format(*gpu["pcie"]),
        f"replays {faults.get('replays', 0)}",
        f"recovery {faults.get('recovery', 0)}",
    ]
    if faults.get("lost"):
        lines.append("lost 1")
    return lines + [f"process {pid} {'-' if hide else mib}" for pid, mib in holders]


def write_atomically(path, text, mode=0o644):
    """Replaces the file in one step: a reader sees the old text or the new one."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{os.getpid()}"
    with open(part, "w", encoding="utf-8") as handle:
        handle.write(text)
    os.chmod(part, mode)
    os.replace(part, path)


def read_text(path):
    try:
        return slurp(path)
    except OSError:
        return None


# ---- commands --------------------------------------------------------------------------------------------------------


def run(card_file=CARD, state_file=STATE, proc="/proc", turns=None):
    """The daemon: looks every PERIOD_S, writes when something changed. ``turns`` ends it early, for tests."""
    watcher, card_text, card, written = Watcher(proc), None, None, None
    while turns is None or turns > 0:
        text = read_text(card_file)
        if card is None or text != card_text:
            card_text = text
            try:
                card = load_card(text)
            except CardError as error:  # keep the card that we had: the writer is told by `set`
                print(f"lab_card: {error}", file=sys.stderr, flush=True)
                card = card or load_card("")
        seen = watcher.look([gpu["total_mib"] - gpu["reserved_mib"] for gpu in card["gpus"]])
        state = "\n".join([fingerprint(card_text), *render(with_kernel(card), seen, os.getpid()), "end", ""])
        if state != written or not os.path.exists(state_file):
            write_atomically(state_file, state)
            written = state
        if turns is not None:
            turns -= 1
        time.sleep(PERIOD_S)


def parse_setting(text):
    """``(key, value)`` of KEY=JSON; a word that is no JSON is a text."""
    key, equals, value = text.partition("=")
    if not equals:
        raise CardError(f"'{text}' is no KEY=VALUE")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def change(faults, card_file=CARD, state_file=STATE, wait_s=10):
    """Sets the faults (a value of None takes one away; ``faults`` None takes all) and waits for the daemon to show them."""
    text = read_text(card_file) or "{}"
    raw = json.loads(text)
    new = {} if faults is None else dict(raw.get("faults", {}), **faults)
    raw["faults"] = {key: value for key, value in new.items() if value is not None}
    wanted = json.dumps(raw, indent=2) + "\n"
    load_card(wanted)  # refuse what the daemon would not understand
    write_atomically(card_file, wanted)
    deadline = time.monotonic() + wait_s
    while fingerprint(wanted) not in (read_text(state_file) or "").splitlines():
        if time.monotonic() > deadline:
            raise CardError(f"{state_file} does not show the change after {wait_s} s; is lab-card.service running?")
        time.sleep(PERIOD_S / 5)


def hold(mib, card=0):
    """Maps so many MiB of /dev/zero, as a process that uses the card does, and waits to be killed."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    handle = os.open("/dev/zero", os.O_RDONLY)
    prot_none, map_private = 0, 2
    address = libc.mmap(None, mib * MIB, prot_none, map_private, handle, card * PAGE)
    if address in (None, ctypes.c_void_p(-1).value):
        raise CardError(f"mmap of {mib} MiB failed: {os.strerror(ctypes.get_errno())}")
    print(f"{os.getpid()} holds {mib} MiB", flush=True)
    signal.pause()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("run")
    commands.add_parser("set").add_argument("settings", nargs="+", metavar="KEY=VALUE")
    commands.add_parser("clear")
    holder = commands.add_parser("hold")
    holder.add_argument("mib", type=int)
    holder.add_argument("card", type=int, nargs="?", default=0)
    arguments = parser.parse_args()
    try:
        if arguments.command == "run":
            run()
        elif arguments.command == "set":
            change(dict(parse_setting(text) for text in arguments.settings))
        elif arguments.command == "clear":
            change(None)
        else:
            hold(arguments.mib, arguments.card)
    except CardError as error:
        sys.exit(f"lab_card: {error}")


if __name__ == "__main__":
    main()
