# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The program of the soak test: puts a load on a server, and looks at the host once a second while it works.

One process on the host, standard library only. Threads: one for each conversation, one that asks /api/ps, one that
samples; what they see goes as JSON lines into ``run.jsonl`` (shapes: ``_soak.verdicts``), what people want to know meanwhile
as lines into ``progress``. SIGINT and SIGTERM end it in an orderly way with what was measured so far. Whatever happens to
the server is written down and never ends the program.

It changes nothing on the host but what its requests make the server do.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

from .._gpu import nvml as gpu_nvml
from .._guard import files as guard_files
from .._guard import gpus as guard_gpus
from .._guard import kernel_log
from .._ollama import client as ollama_client
from .._ollama import names as ollama_names
from . import client as soak_client
from . import load as soak_load
from . import verdicts

CONFIG = {
    "load": None,  # as soak_load.settle() makes it
    "model": "",  # empty: the first of the plan
    "target": "ollama",
    "url": "http://127.0.0.1:11434",
    "ollama_url": "http://127.0.0.1:11434",
    "unit": "ollama.service",
    "plan_path": "/etc/gpufleet/plan.json",
    "guard_state_path": "/var/lib/vram-guard/state.json",
    "interval_s": 1.0,
    "timeout_s": 600.0,
    "token": "",
    "email": "",
    "password": "",
    "ca_file": "",
    "host": "",
}
PS_TIMEOUT_S = 10.0
XID_EVERY_S = 60
YOUNG_S = 3.0  # a process may still be put into another unit
GRACE_S = 120.0  # for answers under way when the time is over
QUIET_S = 10.0  # between two lines of progress of a load that has no rounds
ERROR_PAUSE_S = 5.0
OTHER_MIB = 16
PAGE = os.sysconf("SC_PAGE_SIZE")
MIB = 1024 * 1024
RUNNER_NAMES = frozenset(("llama-server", "ollama", "ollama-runner", "ollama_llama_se"))


class Book:
    """The two files of a run, written by several threads."""

    def __init__(self, folder, out=None):
        self._lock = threading.Lock()
        self._run = open(os.path.join(folder, "run.jsonl"), "w", encoding="utf-8")  # noqa: SIM115
        self._progress = open(os.path.join(folder, "progress"), "w", encoding="utf-8")  # noqa: SIM115
        self._out = out
        self.closed = False

    def write(self, kind, entry):
        """One JSON line."""
        text = json.dumps({"k": kind, **entry}, separators=(",", ":"), ensure_ascii=False)
        with self._lock:
            if not self.closed:
                self._run.write(text + "\n")
                self._run.flush()

    def say(self, text):
        """One line for people."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        with self._lock:
            if not self.closed:
                self._progress.write(line + "\n")
                self._progress.flush()
                if self._out:
                    self._out.write(line + "\n")
                    self._out.flush()

    def close(self):
        """No line after this one."""
        with self._lock:
            self.closed = True
            self._run.close()
            self._progress.close()


class Processes:
    """The server and its runners, found in /proc by the unit of their cgroup."""

    def __init__(self, unit, proc="/proc"):
        self.unit, self.proc = unit, proc
        self._known = {}  # pid -> (kind, start, first seen, model, context)
        self._lock = threading.Lock()

    def look(self, now):
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
        if gpu_nvml.unit_of(self._read(pid, "cgroup") or "", self._read("1", "cgroup") or "") != self.unit:
            self._known[pid] = ("stranger", 0, first, None, None)
            return self._known[pid]
        # One of the unit's: it may become a runner at any time, so it is looked at again.
        entry = ("other", 0, first, None, None)
        comm = (self._read(pid, "comm") or "").strip()
        if comm in RUNNER_NAMES:
            argv = (self._read(pid, "cmdline") or "").split("\0")
            kind = guard_gpus.kind_of(comm, argv)
            model = value_after(argv, "--model", "-m")
            if kind == "server" or (kind == "runner" and model):
                start = guard_gpus.process_stat(pid, lambda path: self._read(pid, os.path.basename(path)))["start"]
                context = value_after(argv, "-c", "--ctx-size", "--ctx")
                entry = (kind, start, first, short_model(model), int(context) if str(context).isdigit() else 0)
        self._known[pid] = entry
        return entry

    def _rss_mib(self, pid):
        fields = (self._read(pid, "statm") or "").split()
        return int(fields[1]) * PAGE / MIB if len(fields) > 1 else 0.0

    def _read(self, pid, name):
        try:
            with open(f"{self.proc}/{pid}/{name}", encoding="utf-8", errors="replace") as handle:
                return handle.read()
        except OSError:
            return None


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


class Watch:
    """What the host shows: /api/ps by a thread of its own, everything else once an interval."""

    def __init__(self, config, book, began, nvml=None):
        self.config, self.book, self.began = config, book, began
        self.stop = threading.Event()
        self.processes = Processes(config["unit"])
        self.ps = {"state": verdicts.NOT_ASKED, "models": []}
        self.peak_mib, self.held_mib = 0, None
        self._nvml = nvml or gpu_nvml.client()
        self._seen, self._others, self._guard_at, self._xids = set(), {}, None, set()
        self._lock = threading.Lock()
        if self._nvml is not None:
            try:
                # NVML counts its users: with one more, a sample's own init and shutdown cost nothing.
                self._nvml.nvmlInit()
            except self._nvml.NVMLError:
                pass

    def read_gpus(self):
        """A sample of gpu_nvml, from the module that was found at the start."""
        return gpu_nvml.read(self._nvml, "pynvml") if self._nvml is not None else gpu_nvml.sample()

    def now(self):
        """Seconds since the start."""
        return round(time.monotonic() - self.began, 3)

    def ask_ps(self):
        """Thread: /api/ps, an answer an interval, however long one takes."""
        client = ollama_client.Client(self.config["ollama_url"], timeout=PS_TIMEOUT_S, connect_timeout=PS_TIMEOUT_S, retries=0)
        while not self.stop.is_set():
            begun = time.monotonic()
            try:
                models = [
                    [str(one.get("name")), round(one["size"] / MIB), round(one["size_vram"] / MIB), int(one.get("context_length") or 0)] for one in client.ps()
                ]
                self.ps = {"state": "ok", "models": models}
            except ollama_client.OllamaError as error:
                self.ps = {"state": "down" if error.down else error.kind, "models": []}
            except (KeyError, TypeError, ValueError):
                self.ps = {"state": "error", "models": []}
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
        """Take one sample and write it down."""
        t = self.now()
        raw, seen = self.read_gpus(), self.look()
        cards = [card_of(gpu, self.config["unit"], self.runners()) for gpu in raw["gpus"]]
        self.book.write(
            "sample",
            {
                "t": t,
                "late": round(late, 4),
                "gpus": cards,
                "rss": seen["rss"],
                "runners": [[one["pid"], one["start"]] for one in seen["runners"]],
                "server": seen["server"],
                "ps": self.ps,
                **({"nvml": raw["state"]} if raw["state"] != "ok" else {}),
            },
        )
        held = [card["held"] for card in cards if card["held"] is not None]
        self.held_mib = sum(held) if held else None
        self.peak_mib = max(self.peak_mib, self.held_mib or 0)
        self._note_others(t, raw)
        self._note_guard(t)
        if int(t) % XID_EVERY_S == XID_EVERY_S - 1:
            self.note_xids(t, raw)
        return raw

    def look(self):
        """The processes now; a runner that was not there before is written down, whoever looks."""
        seen = self.processes.look(time.monotonic())
        with self._lock:
            for one in seen["runners"]:
                if (one["pid"], one["start"]) not in self._seen:
                    self._seen.add((one["pid"], one["start"]))
                    self.book.write("generation", {"t": self.now(), **one})
        return seen

    def runners(self):
        """PIDs of the runners that were seen up to now."""
        with self._lock:
            return {pid for pid, _start in self._seen}

    def _note_others(self, t, raw):
        for process in gpu_nvml.processes(raw) or ():
            if not is_other(process, self.config["unit"], self.runners()) or (process["used_mib"] or 0) < OTHER_MIB:
                continue
            if self._others.get(process["pid"]) != process["used_mib"]:
                self._others[process["pid"]] = process["used_mib"]
                entry = {"pid": process["pid"], "comm": process["comm"], "unit": process["unit"], "mib": process["used_mib"]}
                self.book.write("event", {"t": t, "what": "other_process", **entry})

    def _note_guard(self, t):
        path = self.config["guard_state_path"]
        try:
            at = os.stat(path).st_mtime_ns
            if at == self._guard_at:
                return
            first, self._guard_at = self._guard_at is None, at
            record = json.loads(guard_files.read_text(path) or "{}")["last"]["record"]
        except (OSError, ValueError, KeyError, TypeError):
            return
        if not first and record.get("action") not in (None, "none"):
            self.book.write("event", {"t": t, "what": "guard", **{key: record.get(key) for key in ("action", "mode", "rule", "subject", "why", "done")}})

    def note_xids(self, t, raw):
        """Xids of the kernel's log that came since the start and were not noted yet."""
        found = kernel_log.read_xids(guard_gpus.read_gpus(raw)[1], t + 5)
        for event in found["events"]:
            key = (event["at"], event["gpu"], event["xid"])
            if key not in self._xids and float(event["at"]) >= time.time() - t:
                self._xids.add(key)
                self.book.write("event", {"t": t, "what": "xid", "gpu": event["gpu"], "xid": event["xid"]})


def is_other(process, unit, runners):
    """Whether a process of the card is not the server's. One that is just ending has no unit any more: then it counts that it was a runner."""
    return process["unit"] != unit and not (process["unit"] is None and process["pid"] in runners)


def card_of(gpu, unit, runners=frozenset()):
    """A card's part of a sample. `held` is what it holds for the server: used, less what others' processes own. `runners`: PIDs that were the server's."""
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


class Load:
    """The conversations of a load, each in a thread."""

    def __init__(self, config, watch, book):
        self.config, self.watch, self.book, self.load = config, watch, book, config["load"]
        self.stop = threading.Event()
        self.rounds, self.said_at, self.began = 0, 0.0, 0.0
        self.targets = []
        self._lock = threading.Lock()

    def start(self):
        """Start the threads and return them. The time of a load counts from here."""
        threads, self.began = [], self.watch.now()
        for conversation in range(1, self.load["conversations"] + 1):
            keys = ("token", "email", "password", "ca_file", "timeout_s")
            options = {key: self.config[key] for key in keys}
            target = soak_client.Target(
                self.config["target"], self.config["url"], self.config["model"], embed_model=self.load["embed_model"], **options
            )  # fmt: skip
            self.targets.append(target)
            threads.append(threading.Thread(target=self._converse, args=(conversation, target), daemon=True, name=f"chat {conversation}"))
        for thread in threads:
            thread.start()
        return threads

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
            self.watch.look()
            self.book.write("request", record)
            self._tell(record)
            pause = self.load["pause_s"] if record["status"] == "ok" else max(self.load["pause_s"], ERROR_PAUSE_S)
            self.stop.wait(pause)

    def _ask(self, request, target):
        record = {"t": self.watch.now(), **{key: request[key] for key in ("conversation", "round", "kind")}}
        empty = dict.fromkeys(("ttft", "tokens_in", "tokens_out", "s_per_token", "load_s", "done_reason", "loop"))
        try:
            answer = target.ask(request)
        except soak_client.AskError as error:
            total = round(self.watch.now() - record["t"], 3)
            return {**record, **empty, "status": "error", "error": str(error), "http": error.status, "total": total}
        loop = verdicts.loop_of(answer.pop("text"))
        return {**record, "status": "ok", "error": "", "http": 200, **answer, "loop": loop}

    def _tell(self, record):
        with self._lock:
            self.rounds += 1
            bound, now = self.load["rounds"], time.monotonic()
            if record["status"] == "ok" and not bound and now - self.said_at < QUIET_S:
                return
            self.said_at = now
            self.book.say(self._line(record))

    def _line(self, record):
        share = soak_load.share_done(self.load, self.elapsed(), self.rounds)
        number = f"{record['round']} of {self.load['rounds']}" if self.load["rounds"] else f"{record['round']}"
        text = f"{share:4.0%} {record['kind']} {record['conversation']}, round {number}: "
        if record["status"] != "ok":
            text += f"failed after {record['total']:.1f} s: {record['error'][:160]}"
        else:
            text += f"{record['tokens_in'] or 0:,} tokens in, {record['tokens_out'] or 0:,} out in {record['total']:.1f} s"
            text += f", {1000 * record['s_per_token']:.1f} ms a token" if record["s_per_token"] else ""
            text += ", REPEATS ITSELF" if record["loop"] else ""
        watch = self.watch
        if watch.held_mib is not None:
            text += f"; {watch.held_mib:,} MiB, peak {watch.peak_mib:,}"
        return text


def read_plan(path):
    """{models, gpus} of the serving plan, as far as a run has to know it; None where there is none that can be read."""
    try:
        plan = json.loads(guard_files.read_text(path) or "")
        plan = plan.get("plan", plan)
        keys = ("name", "total_mib", "scratch_mib", "effective_num_ctx", "num_parallel", "kv_cache_type")
        models = [{key: model.get(key) for key in keys} for model in plan["models"]]
        return {"models": models, "gpus": [{key: gpu.get(key) for key in ("index", "planned_mib", "budget_mib")} for gpu in plan["gpus"]]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def heading(config, raw, plan, versions):
    """The first line of a run."""
    planned = {gpu["index"]: gpu["planned_mib"] for gpu in (plan or {}).get("gpus", ())}
    gpus = [
        {**{key: gpu[key] for key in ("index", "name", "uuid", "total_mib", "reserved_mib")}, "planned_mib": planned.get(gpu["index"])} for gpu in raw["gpus"]
    ]
    return {
        "schema": verdicts.SCHEMA,
        "host": config["host"] or os.uname().nodename,
        "at": round(time.time(), 1),
        "load": config["load"],
        "target": {"kind": config["target"], "url": config["url"]},
        "model": config["model"],
        "interval_s": config["interval_s"],
        "gpus": gpus,
        "nvml": {"state": raw["state"], "source": raw["source"]},
        "plan": plan,
        "versions": {"driver": raw["driver_version"], "kernel": os.uname().release, "python": sys.version.split()[0], **versions},
    }


def server_versions(config):
    """{ollama, digest} as far as the server tells; it may be down."""
    client = ollama_client.Client(config["ollama_url"], timeout=PS_TIMEOUT_S, retries=0)
    found = {"ollama": None, "digest": None}
    try:
        found["ollama"] = client.version()
        digests = [one.get("digest") for one in client.tags() if ollama_names.same_name(str(one.get("name")), config["model"])]
        found["digest"] = digests[0] if digests else None
    except ollama_client.OllamaError:
        pass
    finally:
        client.close()
    return found


def run(config, folder, out=None, nvml=None, stop=None):
    """Do a whole run; the reason of its end. ``stop`` is an event that ends it early."""
    stop = stop or threading.Event()
    book, began, cpu = Book(folder, out), time.monotonic(), time.process_time()
    watch = Watch(config, book, began, nvml)
    load = Load(config, watch, book)
    book.write("start", heading(config, watch.read_gpus(), read_plan(config["plan_path"]), server_versions(config)))
    watchers = [threading.Thread(target=target, daemon=True) for target in (watch.ask_ps, watch.sample_all)]
    for thread in watchers:
        thread.start()
    reason, detail = "done", ""
    try:
        book.say(f"Loading {config['model']}, so that its first measure is that of a model at rest")
        trouble = loaded(config, stop)
        if trouble:
            # Not the end: the requests will say the same, and maybe it mends itself.
            book.say(trouble)
        # /api/ps and a sample are to have seen the loaded model: the start value of the table.
        stop.wait(2 * config["interval_s"])
        book.write("event", {"t": watch.now(), "what": "ready"})
        stop.wait(config["interval_s"])
        chats = load.start()
        while any(thread.is_alive() for thread in chats) and not stop.is_set():
            if load.load["duration_s"] and load.elapsed() > load.load["duration_s"] + GRACE_S:
                break
            stop.wait(0.2)
        if stop.is_set():
            reason, detail = "stopped", "a signal asked for it"
    except Exception as error:  # a program that measures writes down its own failure, too
        reason, detail = "failed", f"{type(error).__name__}: {error}"
    load.stop.set()
    for target in load.targets:
        target.close()
    watch.stop.set()
    watchers[1].join(2 * config["interval_s"] + 5)
    raw = watch.sample()
    watch.note_xids(watch.now(), raw)
    book.say(f"Ended ({reason}{': ' + detail if detail else ''}) after {watch.now():,.0f} s, {load.rounds} requests, peak {watch.peak_mib:,} MiB")
    book.write("end", {"t": watch.now(), "reason": reason, "detail": detail, "cpu_s": round(time.process_time() - cpu, 3)})
    book.close()
    return reason


def loaded(config, stop):
    """Load the model with its own settings, in a thread so that a signal is not kept waiting; None, or why it could not be."""
    problems = []

    def work():
        client = ollama_client.Client(config["ollama_url"], timeout=config["timeout_s"], retries=0)
        try:
            client.generate_load(config["model"])
        except ollama_client.OllamaError as error:
            problems.append(str(error))
        finally:
            client.close()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    while thread.is_alive() and not stop.is_set():
        thread.join(0.1)
    return problems[0] if problems else None


def main(argv):
    """`_soak FOLDER`: run what FOLDER/config.json says; 0 done, 1 failed, 2 bad configuration, 3 stopped."""
    folder = argv[0] if argv else "."
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stop.set())
    try:
        given = json.loads(guard_files.read_text(os.path.join(folder, "config.json")) or "")
        config = {**CONFIG, **given}
        load = dict(config["load"])
        config["load"] = soak_load.settle(load.pop("preset"), load)
        config["model"] = config["model"] or (read_plan(config["plan_path"]) or {"models": [{"name": ""}]})["models"][0]["name"]
        if not config["model"] or config["target"] not in soak_client.PATHS:
            raise soak_load.LoadError("A model (named, or in a serving plan) and a target of ollama, openai or open_webui were wanted.")
    except (OSError, ValueError, KeyError, IndexError, TypeError, soak_load.LoadError) as error:
        sys.stderr.write(f"{folder}/config.json cannot be worked with: {error}\n")
        return 2
    reason = run(config, folder, sys.stdout, stop=stop)
    return {"done": 0, "stopped": 3}.get(reason, 1)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # a request that hangs must not keep the program
