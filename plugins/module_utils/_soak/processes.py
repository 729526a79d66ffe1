# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The server's processes, found in /proc by the unit of their cgroup."""

from __future__ import annotations

import os
import threading

from .._gpu.memory import MIB
from .._guard.gpus import arguments, kind_of, process_stat
from .._host.files import text_or_none
from .._host.processes import unit_of_pid

YOUNG_S = 3.0  # a process may still be moved to another unit
PAGE = os.sysconf("SC_PAGE_SIZE")
RUNNER_NAMES = frozenset(("llama-server", "ollama", "ollama-runner", "ollama_llama_se"))


class Processes:
    """The server of a unit and its runners. Cheap to ask every second: what is known of a process is kept."""

    def __init__(self, unit, proc="/proc"):
        self.unit, self.proc = unit, proc
        self._known = {}  # pid -> (kind, start, first seen, model, context)
        self._lock = threading.Lock()

    def sample(self, now):
        """{"server": pid or None, "runners": [{pid, start, model, context}], "rss": MiB of them all}."""
        with self._lock:
            pids = [int(name) for name in os.listdir(self.proc) if name.isdigit()]
            for gone in set(self._known) - set(pids):
                del self._known[gone]
            server, runners, rss = None, [], 0.0
            for pid in pids:
                kind, start, _first, model, context = self._about(pid, now)
                if kind == "server":
                    server = pid
                elif kind == "runner":
                    runners.append({"pid": pid, "start": start, "model": model, "context": context})
                if kind in ("server", "runner"):
                    rss += self._rss_mib(pid)
            return {"server": server, "runners": runners, "rss": round(rss, 1)}

    def _about(self, pid, now):
        known = self._known.get(pid)
        if known and (known[0] in ("server", "runner") or (known[0] == "stranger" and now - known[2] > YOUNG_S)):
            return known
        first = known[2] if known else now
        if unit_of_pid(pid, self.proc) != self.unit:
            self._known[pid] = ("stranger", 0, first, None, None)
        else:
            self._known[pid] = self._of_the_unit(pid, first)
        return self._known[pid]

    def _of_the_unit(self, pid, first):
        """What a process of the unit is: server, runner, or other, which may become a runner at any time."""
        comm = (text_or_none(f"{self.proc}/{pid}/comm") or "").strip()
        if comm in RUNNER_NAMES:
            argv = arguments(pid, self.proc)
            kind = kind_of(comm, argv)
            model = value_after(argv, "--model", "-m")
            if kind == "server" or (kind == "runner" and model):
                start = process_stat(pid, self.proc)["start"]
                context = value_after(argv, "-c", "--ctx-size", "--ctx")
                return kind, start, first, short_model(model), int(context) if str(context).isdigit() else 0
        return "other", 0, first, None, None

    def _rss_mib(self, pid):
        fields = (text_or_none(f"{self.proc}/{pid}/statm") or "").split()
        return int(fields[1]) * PAGE / MIB if len(fields) > 1 else 0.0


def value_after(argv, *names):
    """The word after one of these options, None where there is none of them."""
    for index, word in enumerate(argv[:-1]):
        if word in names:
            return argv[index + 1]
    return None


def short_model(path):
    """What names a model's weights in a table: twelve digits of the blob's digest, else the file's name."""
    name = os.path.basename(path or "")
    return name[7:19] if name.startswith("sha256-") else name
