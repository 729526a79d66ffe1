# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The conversations of a load, each in a thread."""

from __future__ import annotations

import threading
import time

from . import load as soak_load
from .answers import AskError, loop_of
from .client import Target

QUIET_S = 10.0  # between two lines of progress of a load that has no rounds
ERROR_PAUSE_S = 5.0


class Conversations:
    """Asks what the load says, writes what became of each request, and reports progress."""

    def __init__(self, config, watch, files):
        self.config, self.watch, self.files, self.load = config, watch, files, config["load"]
        self.stop = threading.Event()
        self.rounds, self.said_at, self.began = 0, 0.0, 0.0
        self.targets = []
        self._lock = threading.Lock()

    def start(self):
        """Start the threads and return them. The time of a load counts from here."""
        threads, self.began = [], self.watch.now()
        options = {key: self.config[key] for key in ("token", "email", "password", "ca_file", "timeout_s")}
        for conversation in range(1, self.load["conversations"] + 1):
            target = Target(
                self.config["target"],
                self.config["url"],
                self.config["model"],
                embed_model=self.load["embed_model"],
                **options,
            )
            self.targets.append(target)
            name = f"chat {conversation}"
            threads.append(threading.Thread(target=self._converse, args=(conversation, target), daemon=True, name=name))
        for thread in threads:
            thread.start()
        return threads

    def end(self):
        """Send no more, and cut what is under way."""
        self.stop.set()
        for target in self.targets:
            target.close()

    def elapsed(self):
        """Seconds since the first question."""
        return self.watch.now() - self.began

    def over(self):
        """Whether no new request is to be sent."""
        return self.stop.is_set() or bool(self.load["duration_s"] and self.elapsed() >= self.load["duration_s"])

    def _converse(self, conversation, target):
        for request in soak_load.requests(self.load, conversation):
            if self.over():
                return
            record = self._ask(request, target)
            if self.stop.is_set() and record["status"] != "ok":
                return  # it was us who cut it
            self.watch.note_runners()
            self.files.write("request", record)
            self._report(record)
            pause = self.load["pause_s"] if record["status"] == "ok" else max(self.load["pause_s"], ERROR_PAUSE_S)
            self.stop.wait(pause)

    def _ask(self, request, target):
        """A REQUEST of the measure."""
        record = {"t": self.watch.now(), **{key: request[key] for key in ("conversation", "round", "kind")}}
        empty = dict.fromkeys(("ttft", "tokens_in", "tokens_out", "s_per_token", "load_s", "done_reason", "loop"))
        try:
            answer = target.ask(request)
        except AskError as error:
            total = round(self.watch.now() - record["t"], 3)
            return {**record, **empty, "status": "error", "error": str(error), "http": error.status, "total": total}
        loop = loop_of(answer.pop("text"))
        return {**record, "status": "ok", "error": "", "http": 200, **answer, "loop": loop}

    def _report(self, record):
        with self._lock:
            self.rounds += 1
            bound, now = self.load["rounds"], time.monotonic()
            if record["status"] == "ok" and not bound and now - self.said_at < QUIET_S:
                return
            self.said_at = now
            self.files.say(self._line(record))

    def _line(self, record):
        """A line of progress."""
        share = soak_load.share_done(self.load, self.elapsed(), self.rounds)
        number = f"{record['round']} of {self.load['rounds']}" if self.load["rounds"] else f"{record['round']}"
        text = f"{share:4.0%} {record['kind']} {record['conversation']}, round {number}: "
        if record["status"] != "ok":
            text += f"failed after {record['total']:.1f} s: {record['error'][:160]}"
        else:
            tokens_in, tokens_out = record["tokens_in"] or 0, record["tokens_out"] or 0
            text += f"{tokens_in:,} tokens in, {tokens_out:,} out in {record['total']:.1f} s"
            text += f", {1000 * record['s_per_token']:.1f} ms a token" if record["s_per_token"] else ""
            text += ", REPEATS ITSELF" if record["loop"] else ""
        if self.watch.held_mib is not None:
            text += f"; {self.watch.held_mib:,} MiB, peak {self.watch.peak_mib:,}"
        return text
