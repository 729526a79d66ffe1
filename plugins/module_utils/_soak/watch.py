# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What the host shows while it is under load: a sample a second of cards, processes and /api/ps, and the events."""

from __future__ import annotations

import json
import os
import threading
import time

from .._gpu import client as gpu_client
from .._gpu import sample as gpu_sample
from .._gpu.memory import MIB
from .._guard import gpus as guard_gpus
from .._guard.kernel_log import read_xids
from .._host.files import read_text
from .._ollama import client as ollama_client
from .measure import NOT_ASKED
from .processes import Processes

PS_TIMEOUT_S = 10.0
XID_EVERY_S = 60
OTHER_MIB = 16


class Watch:
    """What the host shows: /api/ps by a thread of its own, everything else once an interval."""

    def __init__(self, config, files, began, nvml=None):
        self.config, self.files, self.began = config, files, began
        self.stop = threading.Event()
        self.processes = Processes(config["unit"])
        self.ps = {"state": NOT_ASKED, "models": []}
        self.peak_mib, self.held_mib = 0, None
        self._nvml = nvml or gpu_client.load()
        self._seen, self._others, self._guard_at, self._xids = set(), {}, None, set()
        self._lock = threading.Lock()
        if self._nvml is not None:
            try:
                # NVML counts its users: with one more, a sample's own init and shutdown cost nothing.
                self._nvml.nvmlInit()
            except self._nvml.NVMLError:
                pass

    def read_gpus(self):
        """A sample of the cards, by the client that was found at the start."""
        return gpu_client.read(self._nvml, "pynvml") if self._nvml is not None else gpu_sample.sample()

    def now(self):
        """Seconds since the start."""
        return round(time.monotonic() - self.began, 3)

    def ask_ps(self):
        """Thread: /api/ps, an answer an interval, however long one takes."""
        client = ollama_client.Client(
            self.config["ollama_url"], timeout=PS_TIMEOUT_S, connect_timeout=PS_TIMEOUT_S, retries=0
        )
        while not self.stop.is_set():
            begun = time.monotonic()
            self.ps = ps_of(client)
            self.stop.wait(max(self.config["interval_s"] - (time.monotonic() - begun), 0.05))

    def sample_all(self):
        """Thread: a sample an interval. What comes late says by how much; what was missed is missing."""
        interval, due = self.config["interval_s"], time.monotonic()
        while not self.stop.is_set():
            self.sample(max(time.monotonic() - due, 0.0))
            due += interval
            behind = time.monotonic() - due
            if behind > interval:
                due += interval * int(behind / interval)
            self.stop.wait(max(due - time.monotonic(), 0.0))

    def sample(self, late=0.0):
        """Take one sample and write it; returns that of the cards. *late*: seconds after its time."""
        t = self.now()
        raw, seen = self.read_gpus(), self.note_runners()
        cards = [card_of(gpu, self.config["unit"], self.runners()) for gpu in raw["gpus"]]
        entry = {
            "t": t,
            "late": round(late, 4),
            "gpus": cards,
            "rss": seen["rss"],
            "runners": [[one["pid"], one["start"]] for one in seen["runners"]],
            "server": seen["server"],
            "ps": self.ps,
        }
        if raw["state"] != "ok":
            entry["nvml"] = raw["state"]
        self.files.write("sample", entry)
        held = [card["held"] for card in cards if card["held"] is not None]
        self.held_mib = sum(held) if held else None
        self.peak_mib = max(self.peak_mib, self.held_mib or 0)
        self._note_others(t, raw)
        self._note_guard(t)
        if int(t) % XID_EVERY_S == XID_EVERY_S - 1:
            self.note_xids(t, raw)
        return raw

    def note_runners(self):
        """The processes now; a runner that was not there before is written, whichever thread finds it."""
        seen = self.processes.sample(time.monotonic())
        with self._lock:
            for one in seen["runners"]:
                if (one["pid"], one["start"]) not in self._seen:
                    self._seen.add((one["pid"], one["start"]))
                    self.files.write("generation", {"t": self.now(), **one})
        return seen

    def runners(self):
        """PIDs of the runners that were seen up to now."""
        with self._lock:
            return {pid for pid, _start in self._seen}

    def _note_others(self, t, raw):
        """Write an event for each process of somebody else whose memory has changed."""
        for process in gpu_sample.processes(raw) or ():
            pid, used = process["pid"], process["used_mib"]
            if not is_other(process, self.config["unit"], self.runners()) or (used or 0) < OTHER_MIB:
                continue
            if self._others.get(pid) != used:
                self._others[pid] = used
                entry = {"pid": pid, "comm": process["comm"], "unit": process["unit"], "mib": used}
                self.files.write("event", {"t": t, "what": "other_process", **entry})

    def _note_guard(self, t):
        """Write an event for each new decision of the VRAM guard; what it had decided before the run is not one."""
        path = self.config["guard_state_path"]
        try:
            at = os.stat(path).st_mtime_ns
            if at == self._guard_at:
                return
            first, self._guard_at = self._guard_at is None, at
            record = json.loads(read_text(path) or "{}")["last"]["record"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not first and record.get("action") not in (None, "none"):
            keys = ("action", "mode", "rule", "subject", "why", "done")
            self.files.write("event", {"t": t, "what": "guard", **{key: record.get(key) for key in keys}})

    def note_xids(self, t, raw):
        """Write the Xids of the kernel's log that came since the start and were not written yet."""
        found = read_xids(guard_gpus.read_gpus(raw)[1], t + 5)
        for event in found["events"]:
            key = (event["at"], event["gpu"], event["xid"])
            if key not in self._xids and float(event["at"]) >= time.time() - t:
                self._xids.add(key)
                self.files.write("event", {"t": t, "what": "xid", "gpu": event["gpu"], "xid": event["xid"]})


def ps_of(client):
    """The "ps" part of a sample: {"state", "models": [[name, size MiB, size_vram MiB, context]]}."""
    try:
        models = [
            [
                str(one.get("name")),
                round(one["size"] / MIB),
                round(one["size_vram"] / MIB),
                int(one.get("context_length") or 0),
            ]
            for one in client.ps()
        ]
        return {"state": "ok", "models": models}
    except ollama_client.OllamaError as error:
        return {"state": "down" if error.down else error.kind, "models": []}
    except (KeyError, TypeError, ValueError):
        return {"state": "error", "models": []}


def is_other(process, unit, runners):
    """Whether a process of the card is not the server's.

    One that is just ending has no unit any more: then it counts that it was a runner.
    """
    return process["unit"] != unit and not (process["unit"] is None and process["pid"] in runners)


def card_of(gpu, unit, runners=frozenset()):
    """A card's part of a sample. *runners*: PIDs that were the server's.

    `held` is what the card holds for the server: used, less what others' processes own.
    """
    others = [process["used_mib"] for process in gpu["processes"] or () if is_other(process, unit, runners)]
    known = None if gpu["processes"] is None or None in others else sum(others)
    used = gpu["used_mib"]
    return {
        "i": gpu["index"],
        "state": gpu["state"],
        "used": used,
        "held": None if used is None else max(used - (known or 0), 0),
        "others": known,
        "temp": gpu["temperature_c"],
        "w": gpu["power_w"],
        "util": gpu["gpu_util_percent"],
        "thr": gpu["throttle_reasons"],
    }
