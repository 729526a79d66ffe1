# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The program vram-guard: reads the host, asks ``_guard.policy`` what to do, does it, keeps the books.

One tick is one short process. It runs every few seconds for years, so what it imports is counted:
a module that the quiet tick does not need is imported where it is used. The HTTP client here is
twenty lines over a socket for that reason (http.client alone costs more CPU than the whole tick may).

The privileged part is ``act()``: started by systemd as root when the guard has left a request, it
believes nothing of that request but its words, and looks at the process again before it touches it.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time

from . import policy

CONFIG_PATH = "/etc/gpufleet/vram-guard.json"
STATE_VERSION = 2
STATUS_VERSION = 1  # of status.json, which other programs read
PAGE_LIMIT = 4 * 1024 * 1024  # bytes of an answer; /api/ps of a full card is a few kB
HTTP_TIMEOUT_S = 5.0
HEALTH_TIMEOUT_S = 2.0
XID_INTERVAL_S = 60
REST_STEP_S = 0.25
DRAIN_FLAG = "/run/gpufleet/drain"
DRAIN_LOOK_S = 15  # a tick is ended by systemd after 60 s
MIB = 1024 * 1024

CONFIG_DEFAULTS = {
    "mode": "dry_run",
    "host": "127.0.0.1",
    "port": 11434,
    "user": "ollama",
    "engine_dir": "/opt/ollama",
    "plan_path": "/etc/gpufleet/plan.json",
    "state_dir": "/var/lib/vram-guard",
    "metrics": False,
    "settings": {},
}


class GuardError(Exception):
    """Something that the guard cannot work with; the text is fit for an operator."""


# --- configuration and books ------------------------------------------------------------------


def load_config(path=CONFIG_PATH):
    """CONFIG_DEFAULTS overlaid by the file, with ``settings`` complete. Raises GuardError."""
    try:
        with open(path, encoding="utf-8") as handle:
            given = json.load(handle)
    except (OSError, ValueError) as error:
        raise GuardError(f"{path} cannot be read ({error}); the role vram_guard lays it down: run it again.") from error
    unknown = set(given) - set(CONFIG_DEFAULTS) | set(given.get("settings", {})) - set(policy.DEFAULTS)
    if unknown:
        raise GuardError(f"{path} has unknown keys {', '.join(sorted(unknown))}; the role vram_guard writes this file: run it again.")
    config = dict(CONFIG_DEFAULTS, **given)
    config["settings"] = complete(config["settings"], policy.DEFAULTS, path)
    if config["mode"] not in ("dry_run", "act"):
        raise GuardError(f"{path} has mode {config['mode']!r}; dry_run or act was wanted.")
    return config


def complete(given, defaults, path):
    """The defaults overlaid by what is given, of the same kinds all the way down. Raises GuardError."""
    settings = dict(defaults)
    for key, value in given.items():
        default = defaults.get(key)
        if isinstance(default, dict) and isinstance(value, dict) and set(value) <= set(default):
            settings[key] = complete(value, default, path)
        elif _alike(value, default):
            settings[key] = value
        else:
            raise GuardError(f"{path} has {key} = {value!r}; something like {default!r} was wanted. Mend it in the inventory.")
    return settings


def _alike(value, default):
    """A text for a text, a number that is not negative for a number; None only where None is the default."""
    if isinstance(default, (str, dict)):
        return isinstance(default, str) and isinstance(value, str)
    return (value is None and default is None) or (_is(value, float) and value >= 0)


def clocks():
    """{wall, mono, boot}: wall clock, seconds since boot (suspend included), and which boot that was."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as handle:
            boot = handle.read().strip()
    except OSError:
        boot = ""
    return {"wall": time.time(), "mono": time.clock_gettime(time.CLOCK_BOOTTIME), "boot": boot}


def parse_state(text, clock):
    """(history, now, clock step in s, trouble): the books as of now, on the guard's own clock.

    The guard's clock counts on by the boot clock within a boot and by the wall clock across one, so a
    wall clock that is set back or forward moves no budget and no cool-down. What cannot be trusted (not
    ours, damaged, from the future) is not obeyed: fresh books come instead, and an hour of only watching,
    after which no budget of the lost books can be exceeded. trouble is None or says so.
    """
    if text is None:
        return policy.fresh(policy.DEFAULTS["load_grace_s"], "the guard is new here"), 0.0, 0.0, None
    try:
        state = json.loads(text)
        written = state["written"]
        if state["version"] != STATE_VERSION:
            raise ValueError(f"version {state['version']}, {STATE_VERSION} was wanted")
        history = validated(state["history"])
        wall = _number(written["wall"])
        mono = _number(written["mono"])
        boot = written["boot"]
        if not isinstance(boot, str):
            raise ValueError("boot is no text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        return _lost(f"the state file was damaged ({error})")
    step = 0.0
    if boot == clock["boot"]:
        elapsed = clock["mono"] - mono
        step = (clock["wall"] - wall) - elapsed
    else:
        elapsed = clock["wall"] - wall
        # PIDs, streaks and half-done ladders of another boot say nothing about this one.
        history.update(streaks={}, runners={}, models={}, waiting=None, acts={}, distrust=[], last_sample=None)
        if -300 < elapsed < 0:
            elapsed = 0.0  # a clock that is a little behind after a reboot
    if elapsed < 0:
        return _lost("the state file is from the future")
    return history, history["clock"] + elapsed, step, None


def _lost(reason):
    return policy.fresh(policy.HOUR, reason), 0.0, 0.0, reason


def _number(value):
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e12:
        raise ValueError(f"{value!r} is no time")
    return float(value)


# The type of each part of a history, one level deep, and of what the policy reads below it.
_RECORD = {
    "runners": {"pid": int, "first": float, "seen": float, "busy": float, "sure": bool, "trend": list},
    "models": {"expires_at": str, "used": float},
    "streaks": {"rule": str, "subject": str, "count": int, "since": float, "numbers": dict},
    "acts": {"rung": int, "kind": str, "subject": str, "at": float, "cleared": bool},
}
_OPTIONAL = {
    "runners": {
        "cpu_s": float,
        "used_mib": float,
        "model": str,
        "was": str,
        "context": int,
        "unlisted": float,
        "baseline_mib": float,
    },
    "models": {},
    "streaks": {"target": dict},
    "acts": {},
}


def _is(value, kind):
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def validated(history):
    """The history if every part is what the policy expects; ValueError otherwise."""
    wanted = policy.fresh()
    if set(history) != set(wanted):
        raise ValueError("its keys are " + ", ".join(sorted(history)))
    for key, fields in _RECORD.items():
        optional = _OPTIONAL[key]
        for name, record in history[key].items():
            if set(record) != set(fields) | set(optional):
                raise ValueError(f"{key}.{name} has other keys")
            for field, kind in fields.items():
                if not _is(record[field], kind):
                    raise ValueError(f"{key}.{name}.{field} is {record[field]!r}")
            for field, kind in optional.items():
                if record[field] is not None and not _is(record[field], kind):
                    raise ValueError(f"{key}.{name}.{field} is {record[field]!r}")
    for record in history["runners"].values():
        if not all(len(point) == 2 and _is(point[0], float) and _is(point[1], float) for point in record["trend"]):
            raise ValueError("a trend is none")
    for streak in history["streaks"].values():
        if streak["rule"] not in policy.RULES:
            raise ValueError(f"rule {streak['rule']} is unknown")
    for rule, act in history["acts"].items():
        if rule not in policy.RULES or act["kind"] not in policy.ACTIONS:
            raise ValueError(f"act {rule} is unknown")
    for entry in history["spent"]:
        if len(entry) != 2 or not _is(entry[0], float) or entry[1] not in policy.ACTIONS or entry[0] > history["clock"]:
            raise ValueError(f"spent has {entry!r}")
    for entry in history["xids"]:
        if set(entry) != {"at", "gpu", "xid", "seen"} or not _is(entry["seen"], float) or not _is(entry["xid"], int):
            raise ValueError("xids are none")
    scalars = {"clock": float, "samples": int, "watch_until": float, "flaps": list, "distrust": list}
    for key, kind in scalars.items():
        if not _is(history[key], kind):
            raise ValueError(f"{key} is {history[key]!r}")
    for key, kind in (("mode", str), ("readable", bool), ("last_sample", float), ("watch_reason", str), ("in_flight", int)):
        if history[key] is not None and not _is(history[key], kind):
            raise ValueError(f"{key} is {history[key]!r}")
    if not all(_is(when, float) for when in history["flaps"]):
        raise ValueError("flaps are none")
    for key, fields in (("fence", {"since", "rule", "why"}), ("waiting", {"since", "rule"})):
        value = history[key]
        if value is not None and (set(value) != fields or not _is(value["since"], float)):
            raise ValueError(f"{key} is {value!r}")
    return history


def dump_state(history, clock, last):
    """Text of the state file."""
    return json.dumps({"version": STATE_VERSION, "written": clock, "history": history, "last": last}, separators=(",", ":"))


def read_text(path, limit=PAGE_LIMIT):
    """The file's text, or None where there is none; what is too long or no UTF-8 comes back damaged, not as an error."""
    try:
        with open(path, "rb") as handle:
            return handle.read(limit).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def write_text(path, text, mode=0o644):
    """Replace a file in one step, so that no reader and no crash sees half of it. OSError, and the old file stays, where that cannot be."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        rest = text.encode()
        while rest:
            # A disk that fills up takes the first part and says nothing; asked for the rest, it says so.
            rest = rest[os.write(descriptor, rest) :]
        os.fchmod(descriptor, mode)
    except OSError as error:
        os.unlink(temporary)
        error.filename = path
        raise
    finally:
        os.close(descriptor)
    os.replace(temporary, path)


# --- sources ----------------------------------------------------------------------------------


class HttpError(Exception):
    """An answer that is none; ``kind`` is "down" (nobody listens), "timeout" or "error"."""

    def __init__(self, kind, text):
        super().__init__(text)
        self.kind = kind


def http(host, port, path, body=None, timeout=HTTP_TIMEOUT_S):
    """(status, bytes) of one request in HTTP/1.0: the server closes, nothing is chunked. Raises HttpError.

    The timeout bounds the whole exchange, not each read: a server that drips bytes is a hung server.
    """
    deadline = time.monotonic() + timeout
    verb = "GET" if body is None else "POST"
    lines = [f"{verb} {path} HTTP/1.0", f"Host: {host}:{port}", "User-Agent: vram-guard", "Accept: application/json"]
    if body is not None:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    try:
        # An address needs no name service, and asking it all the same imports its encodings: 3 ms a tick.
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout)
            connection.connect((host, port))
            connection.sendall("\r\n".join([*lines, "", ""]).encode() + (body or b""))
            parts, size = [], 0
            while size <= PAGE_LIMIT:
                connection.settimeout(max(deadline - time.monotonic(), 0.001))
                part = connection.recv(65536)
                if not part:
                    break
                parts.append(part)
                size += len(part)
    except (socket.timeout, TimeoutError) as error:
        raise HttpError("timeout", f"no answer from {host}:{port}{path} within {timeout:g} s") from error
    except ConnectionRefusedError as error:
        raise HttpError("down", f"nobody listens on {host}:{port}") from error
    except OSError as error:
        raise HttpError("error", f"{host}:{port}{path}: {error}") from error
    head, _blank, content = b"".join(parts).partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1][:3].isdigit():
        raise HttpError("error", f"{host}:{port}{path} did not answer in HTTP")
    return int(words[1][:3]), content


def ask_ollama(host, port, wall):
    """The "ollama" part of a sample: what /api/ps lists now."""
    try:
        version = _ask_json(host, port, "/api/version").get("version")
        models = [_model(entry, wall) for entry in _ask_json(host, port, "/api/ps").get("models") or []]
    except HttpError as error:
        return {"state": error.kind, "detail": str(error), "version": None, "models": []}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return {"state": "error", "detail": f"/api/ps answered something else ({error})", "version": None, "models": []}
    return {"state": "ok", "detail": "", "version": version, "models": models}


def _ask_json(host, port, path):
    status, content = http(host, port, path)
    if status != 200:
        raise HttpError("error", f"{path} answered {status}")
    return json.loads(content)


def _model(entry, wall):
    expires = entry.get("expires_at")
    return {
        "name": full_name(entry["name"]),
        "digest": str(entry.get("digest") or ""),
        "size_mib": round(entry["size"] / MIB),
        "size_vram_mib": round(entry["size_vram"] / MIB),
        "context_length": int(entry.get("context_length") or 0),
        "expires_at": str(expires or ""),
        "expires_in_s": seconds_until(expires, wall),
    }


def full_name(name):
    """A model's name with its tag, as /api/ps lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def seconds_until(text, wall):
    """Seconds from the wall clock time to an RFC 3339 time with up to nine decimals; None where it is none.

    By hand: importing datetime costs 3 ms, a twentieth of a tick.
    """
    import re

    match = re.fullmatch(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d):(\d\d):(\d\d)(\.\d+)?(?:[Zz]|([+-])(\d\d):(\d\d))", str(text))
    if not match:
        return None
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    fraction, sign, hours, minutes = match.groups()[6:]
    # Days since 1970 of the proleptic Gregorian calendar, with the year beginning in March.
    year -= month < 3
    of_year = (153 * (month + (9 if month < 3 else -3)) + 2) // 5 + day - 1
    days = year * 365 + year // 4 - year // 100 + year // 400 + of_year - 719468
    offset = 0 if sign is None else int(f"{sign}1") * (int(hours) * 3600 + int(minutes) * 60)
    moment = days * 86400 + hour * 3600 + minute * 60 + second + float(fraction or 0) - offset
    return round(moment - wall, 1)


def read_plan(path):
    """{state: ok | absent | invalid, detail, models: {name: MiB}} of the serving plan, as gpu_capacity writes it."""
    try:
        text = read_text(path)
        if text is None:
            return {"state": "absent", "detail": f"no {path}", "models": {}}
        plan = json.loads(text)
        plan = plan.get("plan", plan)
        models = {full_name(model["name"]): float(model["total_mib"]) for model in plan["models"]}
        if not all(0 < size < 1e9 for size in models.values()):
            raise ValueError("a size is out of range")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return {"state": "invalid", "detail": f"{path}: {error}", "models": {}}
    return {"state": "ok", "detail": "", "models": models}


def read_gpus(sample):
    """The "nvml" and "gpus" parts of a sample from that of ``_gpu.nvml.sample()``."""
    state = sample["state"]
    gpus, trouble = [], []
    for gpu in sample["gpus"]:
        whole = None not in (gpu["total_mib"], gpu["used_mib"], gpu["free_mib"]) and gpu["processes"] is not None
        recovery = gpu["recovery_action"]
        gpus.append(
            {
                "uuid": gpu["uuid"] or f"index-{gpu['index']}",
                "pci": gpu["pci_bus_id"],
                "state": "lost" if gpu["state"] == "lost" else "ok" if gpu["state"] == "ok" and whole else "unreadable",
                "total_mib": gpu["total_mib"],
                "used_mib": gpu["used_mib"],
                "free_mib": gpu["free_mib"],
                "utilisation": gpu["gpu_util_percent"],
                "recovery": None if recovery in (None, "none") else recovery,
            }
        )
        if gpu["message"]:
            trouble.append(gpu["message"])
    return {"state": state, "detail": sample["message"] or " ".join(trouble)}, gpus


def read_processes(sample, user, read=read_text):
    """The "processes" part of a sample. NVML gives PID and MiB; /proc says who that is."""
    owner = account(user)
    found = []
    for gpu in sample["gpus"]:
        for process in gpu["processes"] or []:
            stat = process_stat(process["pid"], read)
            argv = (_try(read, f"/proc/{process['pid']}/cmdline") or "").split("\0")
            found.append(
                {
                    "pid": process["pid"],
                    "start": stat["start"],
                    "gpu": gpu["uuid"] or f"index-{gpu['index']}",
                    "used_mib": process["used_mib"],
                    "unit": process["unit"],
                    "kind": kind_of(process["comm"], argv),
                    "uid_ok": owner is not None and process["uid"] == owner.pw_uid,
                    "ppid": process["ppid"],
                    "age_s": process["age_s"],
                    "cpu_s": stat["cpu_s"],
                    "proc_state": stat["state"],
                    "health": None,
                    "port": port_of(argv),
                }
            )
    return found


def _try(read, path):
    try:
        return read(path)
    except OSError:
        return None


def account(user):
    """The user's entry in the password database (pwd.struct_passwd), None where there is no such user."""
    import pwd

    try:
        return pwd.getpwnam(user)
    except KeyError:
        return None


def process_stat(pid, read=read_text):
    """{state, start, cpu_s} of /proc/PID/stat: state letter, start in ticks after boot (0 unknown), CPU seconds."""
    text = _try(read, f"/proc/{pid}/stat") or ""
    # The name in brackets may hold anything; what follows the last bracket starts at field 3 (man proc).
    fields = text.rpartition(")")[2].split()
    if len(fields) < 20:
        return {"state": None, "start": 0, "cpu_s": None}
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return {"state": fields[0].upper(), "start": int(fields[19]), "cpu_s": cpu}


def kind_of(comm, argv):
    """A process's kind by the names that Ollama gave its own: server, runner (before 0.30 both `ollama`) or other."""
    if comm == "ollama":
        return "server" if "serve" in argv else "runner" if "runner" in argv else "other"
    return "runner" if comm in ("llama-server", "ollama_llama_se", "ollama-runner") else "other"


def port_of(argv):
    """The port that a runner was told to listen on, None where it was told none."""
    for index, word in enumerate(argv[:-1]):
        if word == "--port" and argv[index + 1].isdigit():
            return int(argv[index + 1]) or None
    return None


def probe(processes, unit):
    """Fill ``health`` of the unit's runners: a busy llama-server answers /health, a stopped or hung one does not."""
    answers = {}
    for process in processes:
        port = process["port"]
        if process["kind"] != "runner" or process["unit"] != unit or port is None:
            continue
        if port not in answers:
            try:
                http("127.0.0.1", port, "/health", timeout=HEALTH_TIMEOUT_S)
                answers[port] = "ok"
            except HttpError as error:
                answers[port] = error.kind
        process["health"] = answers[port]


def under_way(processes, unit):
    """How many generations the unit's runners are at; None where one of them cannot be asked.

    llama-server tells of its slots on /slots (on by default, tools/server/README.md); runners before Ollama 0.30 do not.
    What a hung runner was at is lost anyway, so it is not asked.
    """
    runners = [one for one in processes if one["kind"] == "runner" and one["unit"] == unit]
    if any(one["port"] is None for one in runners):
        return None
    busy = 0
    for port in {one["port"] for one in runners if one["health"] == "ok"}:
        try:
            status, content = http("127.0.0.1", port, "/slots", timeout=HEALTH_TIMEOUT_S)
            if status == 200:
                busy += sum(bool(slot["is_processing"]) for slot in json.loads(content))
            elif status == 503:
                busy += 1  # it loads, for somebody
            else:
                return None
        except HttpError as error:
            busy += error.kind != "down"  # down: it has ended since; else it answers when its batch is done
        except (ValueError, KeyError, TypeError):
            return None
    return busy


def await_rest(look, patience_s, clock_s=time.monotonic, sleep=time.sleep):
    """The last answer of look(), which is under_way(): 0 once it was 0 twice in a row.

    Twice, because requests that queue in the server are at no slot for the moment between two generations.
    """
    deadline = clock_s() + patience_s
    before, now = None, look()
    while not (before == 0 and now == 0) and clock_s() < deadline:
        sleep(REST_STEP_S)
        before, now = now, look()
    return now


def read_xids(gpus, since_s, run=None):
    """The "xids" part of a sample: NVIDIA's lines of the kernel log within the last since_s seconds."""
    import re
    import subprocess

    command = ["journalctl", "--dmesg", "--quiet", "--no-pager", "--output=short-unix", f"--since=-{int(since_s)}s"]
    try:
        done = (run or subprocess.run)(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return {"state": "unreadable", "events": []}
    if done.returncode not in (0, 1):
        return {"state": "unreadable", "events": []}
    by_pci = {short_pci(gpu["pci"]): gpu["uuid"] for gpu in gpus if gpu["pci"]}
    events = []
    for line in done.stdout.decode("utf-8", "replace").splitlines():
        match = re.match(r"(\d+\.\d+) .*NVRM: Xid \(PCI:([0-9A-Fa-f:.]+)\): (\d+)", line)
        if match:
            when, pci, number = match.groups()
            events.append({"at": when, "gpu": by_pci.get(short_pci(pci), pci), "xid": int(number)})
    return {"state": "ok", "events": events}


def short_pci(text):
    """Domain, bus and device in one spelling: the kernel says 0000:01:00, NVML 00000000:01:00.0."""
    parts = text.lower().split(".")[0].split(":")
    return ":".join([parts[0][-4:].rjust(4, "0"), *parts[1:]])


def ask_nvml():
    """A sample of ``_gpu.nvml``, by the library itself.

    Not by pynvml, which costs as much as the rest of a tick: it makes 171 structures when it is imported. So the
    guard needs no package beside its Python, and none that an upgrade could break.
    """
    from .._gpu import nvml as gpu_nvml

    return gpu_nvml.read(gpu_nvml.BareLibrary("libnvidia-ml.so.1"), "libnvidia-ml")


def take_sample(config, wall, step, xids_due, nvml=None):
    """One look at everything, each source by itself; see ``_guard.policy`` for the shape."""
    settings = config["settings"]
    raw = (nvml or ask_nvml)()
    state, gpus = read_gpus(raw)
    processes = read_processes(raw, config["user"]) if state["state"] == "ok" else []
    probe(processes, settings["unit"])
    xids = read_xids(gpus, 2 * XID_INTERVAL_S) if xids_due else {"state": "skipped", "events": []}
    return {
        "nvml": state,
        "gpus": gpus,
        "processes": processes,
        "ollama": ask_ollama(config["host"], config["port"], wall),
        "xids": xids,
        "in_flight": None,
        "clock_step_s": step,
    }


# --- one tick ---------------------------------------------------------------------------------


def think(history, sample, plan, config, now, mode):
    """(decision, history): the whole of a tick that is pure, so that traces can be played through it."""
    settings = config["settings"]
    history = policy.change_mode(history, mode)
    history = policy.remember(history, sample, plan, settings, now)
    budget = {"limits": settings["budgets"], "spent": history["spent"]}
    decision = policy.decide(history, plan, budget, now, settings)
    return decision, policy.note(history, decision, now, settings, dry_run=mode == "dry_run")


def tick(config, dry_run=False, nvml=None, clock=None, out=None):
    """Look, decide, do, remember, tell. Returns the record that was (or would have been) logged.

    dry_run: only look and tell; not even the books are kept.
    """
    clock = clock or clocks()
    state_path = os.path.join(config["state_dir"], "state.json")
    history, now, step, trouble = parse_state(read_text(state_path), clock)
    if trouble and not dry_run:
        os.replace(state_path, os.path.join(config["state_dir"], "state.bad.json"))
    last = _last(state_path)
    xids_due = clock["wall"] - last.get("xids_at", 0) >= XID_INTERVAL_S or clock["wall"] < last.get("xids_at", 0)
    plan = read_plan(config["plan_path"])
    sample = take_sample(config, clock["wall"], step, xids_due, nvml)
    mode = config["mode"]
    decision, new = think(history, sample, plan, config, now, mode)
    if "restart" in (decision["action"], decision.get("due")):
        # A restart is due as soon as no generation is under way. Waiting for that moment is most of this tick's time.
        if mode == "act" and not dry_run:
            ask_for("restart", {"unit": decision["target"]["unit"], "go": False}, config, clock)
        patience = 0 if dry_run else min(config["settings"]["interval_s"] - 3, DRAIN_LOOK_S)
        sample["in_flight"] = await_rest(lambda: under_way(sample["processes"], config["settings"]["unit"]), patience)
        decision, new = think(history, sample, plan, config, now, mode)
    elif history["waiting"] and mode == "act" and not dry_run:
        withdraw(config)
    history = new
    done = None
    if mode == "act" and not dry_run and decision["action"] in policy.ACTIONS:
        # Booked before it is done: what cannot be booked would be done again at every look, beyond every budget.
        keep_books(state_path, history, clock, last)
        done = carry_out(decision, config, clock)
    record = journal_record(decision, sample, plan, mode, done, trouble, config)
    if dry_run:
        return record
    summary = {
        "at": clock["wall"],
        "xids_at": clock["wall"] if xids_due else last.get("xids_at", 0),
        "xids": sample["xids"]["state"] if xids_due else last.get("xids", "skipped"),
        "gpus": sample["gpus"],
        "ollama": {key: sample["ollama"][key] for key in ("state", "detail", "version", "models")},
        "nvml": sample["nvml"],
        "plan": plan,
        "record": record,
        "totals": _totals(last.get("totals"), decision),
    }
    summary["said"], say = _worth_saying(last.get("said"), record, clock["wall"])
    keep_books(state_path, history, clock, summary)
    if say:
        _say(f"<{priority(record)}>{json.dumps(record)}", out)
    publish(config, history, now, clock, record)
    if config["metrics"]:
        write_metrics(config["state_dir"], history, summary, clock)
    return record


def keep_books(path, history, clock, last):
    """Write the state file. GuardError where that cannot be: a guard without books does nothing."""
    try:
        write_text(path, dump_state(history, clock, last))
    except OSError as error:
        raise GuardError(f"{path} cannot be written ({error}); without its books the guard does nothing. Make room or mend the file system there.") from error


def _last(path):
    """What the last tick left for people and metrics; {} where that cannot be read (it decides nothing)."""
    try:
        last = json.loads(read_text(path) or "{}").get("last")
    except (ValueError, AttributeError):
        return {}
    return last if isinstance(last, dict) else {}


def _totals(before, decision):
    totals = {kind: int((before or {}).get(kind, 0)) for kind in policy.ACTIONS}
    if decision["action"] in totals:
        totals[decision["action"]] += 1
    return totals


def _worth_saying(said, record, wall):
    """({what, at}, whether): a line when the decision changes, for each action, and once an hour."""
    what = [record["action"], record["rule"], record["subject"], record["plan"], record["nvml"], record["ollama"]]
    fresh = said and said.get("what") == what and 0 <= wall - said.get("at", 0) < policy.HOUR
    if fresh and record["action"] not in policy.ACTIONS:
        return said, False
    return {"what": what, "at": wall}, True


def journal_record(decision, sample, plan, mode, done, trouble, config):
    """One flat-ish dict: the decision, and the numbers that led to it."""
    record = {
        "action": decision["action"],
        "mode": mode,
        "rule": decision["rule"],
        "subject": decision["subject"],
        "target": decision["target"],
        "why": decision["why"],
        "nvml": sample["nvml"]["state"],
        "ollama": sample["ollama"]["state"],
        "plan": plan["state"],
        "gpus": [{"uuid": gpu["uuid"], "state": gpu["state"], "used_mib": gpu["used_mib"], "free_mib": gpu["free_mib"]} for gpu in sample["gpus"]],
        "models": [{"name": model["name"], "size_vram_mib": model["size_vram_mib"]} for model in sample["ollama"]["models"]],
        "alerts": decision["alerts"],
    }
    if decision.get("due"):
        record["due"] = decision["due"]
    if plan["state"] == "absent":
        record["plan"] = "no plan"
    if decision["action"] in policy.ACTIONS:
        record["done"] = done if mode == "act" else "dry run: not done"
    if trouble:
        record["trouble"] = trouble
    return record


def priority(record):
    """syslog priority of a line: 2 critical, 4 warning, 5 notice (LogLevelMax of the unit lets these through)."""
    if record["action"] == "fence":
        return 2
    return 5 if record["action"] == "none" else 4


def carry_out(decision, config, clock):
    """Do it, or leave it for the privileged part. Returns what can be said now, in words."""
    action, target = decision["action"], decision["target"]
    if action == "unload":
        body = json.dumps({"model": target["model"], "keep_alive": 0, "stream": False}).encode()
        try:
            status, content = http(config["host"], config["port"], "/api/generate", body)
        except HttpError as error:
            return f"failed: {error}"
        return "asked" if status == 200 else f"failed: {status} {content[:200].decode('utf-8', 'replace')}"
    if action == "fence":
        return "fenced: nothing more is done until `vram-guard unfence`"
    try:
        ask_for(action, dict(target, go=True) if action == "restart" else target, config, clocks() if action == "restart" else clock)
    except OSError as error:
        return f"failed: the request cannot be written: {error}"
    return "requested"


def ask_for(kind, target, config, clock):
    """Leave a request for the privileged part. A restart is asked for twice: when it is due (it drains from then on) and to go."""
    request = {"kind": kind, "boottime": clock["mono"], "boot": clock["boot"], **target}
    write_text(os.path.join(config["state_dir"], "request.json"), json.dumps(request))


def withdraw(config):
    """The restart that was due is so no more."""
    try:
        os.unlink(os.path.join(config["state_dir"], "request.json"))
    except FileNotFoundError:
        pass


def publish(config, history, now, clock, record):
    """What other programs read (docs/guides/vram_guard.md, "What others can read"): status.json, and a file that is there while fenced."""
    folder = config["state_dir"]
    fence = history["fence"]
    status = {
        "version": STATUS_VERSION,
        "at": round(clock["wall"], 3),
        "mode": config["mode"],
        "fenced": fence is not None,
        "fence": None if fence is None else {"rule": fence["rule"], "why": fence["why"], "since": round(clock["wall"] - (now - fence["since"]), 3)},
        "draining": record["action"] == "wait" and record.get("due") == "restart",
        "budget_left": budget_left(history, config["settings"], now),
        "decision": record,
    }
    write_text(os.path.join(folder, "status.json"), json.dumps(status))
    flag = os.path.join(folder, "fenced")
    if fence is not None:
        write_text(flag, f"{fence['why']}\n")
    elif os.path.lexists(flag):
        os.unlink(flag)


def budget_left(history, settings, now):
    """{kind: {hour, day}}: how many actions may still be taken."""
    left = {}
    for kind, limits in settings["budgets"].items():
        ages = [now - when for when, what in history["spent"] if what == kind]
        left[kind] = {
            "hour": max(0, limits["hour"] - sum(1 for age in ages if age < policy.HOUR)),
            "day": max(0, limits["day"] - sum(1 for age in ages if age < policy.DAY)),
        }
    return left


def write_metrics(folder, history, summary, clock):
    """vram_guard.prom for the textfile collector of node_exporter."""
    lines = []

    def metric(name, kind, text, samples):
        lines.append(f"# HELP vram_guard_{name} {text}")
        lines.append(f"# TYPE vram_guard_{name} {kind}")
        for labels, value in samples:
            shown = ",".join(f'{key}="{_escape(value_)}"' for key, value_ in labels.items())
            lines.append(f"vram_guard_{name}{'{' + shown + '}' if shown else ''} {value}")

    record = summary["record"]
    metric("last_tick_timestamp_seconds", "gauge", "When the guard last looked.", [({}, round(clock["wall"], 3))])
    metric("fenced", "gauge", "1 while the guard waits for a person.", [({}, int(history["fence"] is not None))])
    draining = record["action"] == "wait" and record.get("due") == "restart"
    metric("draining", "gauge", "1 while a restart waits for running generations.", [({}, int(draining))])
    metric("acting", "gauge", "1 in act mode, 0 in a dry run.", [({}, int(history["mode"] == "act"))])
    sources = {"nvml": summary["nvml"]["state"], "ollama": summary["ollama"]["state"], "plan": summary["plan"]["state"]}
    sources["kernel_log"] = summary["xids"]
    metric(
        "source_readable",
        "gauge",
        "1 where the last read worked.",
        [({"source": key}, int(value == "ok")) for key, value in sources.items()],
    )
    gpus = [gpu for gpu in summary["gpus"] if gpu["state"] == "ok"]
    metric(
        "gpu_memory_used_bytes",
        "gauge",
        "VRAM in use, without what driver and firmware reserve.",
        [({"uuid": gpu["uuid"]}, gpu["used_mib"] * MIB) for gpu in gpus],
    )
    metric("gpu_memory_free_bytes", "gauge", "VRAM that is free.", [({"uuid": gpu["uuid"]}, gpu["free_mib"] * MIB) for gpu in gpus])
    planned = [({"model": name}, int(size * MIB)) for name, size in sorted(summary["plan"]["models"].items())]
    metric("model_memory_planned_bytes", "gauge", "VRAM that the serving plan gives a model.", planned)
    firing = {alert["rule"] for alert in record["alerts"]}
    metric("signal", "gauge", "1 while a rule holds.", [({"rule": rule}, int(rule in firing)) for rule in policy.RULES])
    metric(
        "actions_total",
        "counter",
        "What the guard did, or in a dry run would have done.",
        [({"action": kind}, value) for kind, value in summary["totals"].items()],
    )
    try:
        write_text(os.path.join(folder, "vram_guard.prom"), "\n".join(lines) + "\n")
    except OSError as error:
        _say(f"<4>{json.dumps({'trouble': f'metrics could not be written: {error}'})}")


def _escape(value):
    return str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


# --- the privileged part ----------------------------------------------------------------------

REQUEST_KEYS = {
    "restart": {"kind", "boottime", "boot", "unit", "go"},
    "end": {"kind", "boottime", "boot", "pid", "start"},
}


def checked_request(text, config, clock):
    """The request if it is one of the two that exist, fresh, and about our unit; GuardError otherwise."""
    try:
        request = json.loads(text)
        kind = request["kind"]
        if set(request) != REQUEST_KEYS[kind]:
            raise ValueError("other keys than wanted")
        age = clock["mono"] - _number(request["boottime"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GuardError(f"The request is none ({error}); nothing was done.") from error
    if config["mode"] != "act":
        raise GuardError("A request came although the mode is dry_run; nothing was done.")
    if request["boot"] != clock["boot"] or not -1 <= age <= 60:
        raise GuardError(f"The request is {age:.0f} s old or of another boot; one of the last minute was wanted. Nothing was done.")
    if kind == "restart" and request["unit"] != config["settings"]["unit"]:
        raise GuardError(f"The request names {request['unit']!r}; only {config['settings']['unit']} may be restarted. Nothing was done.")
    if kind == "restart" and not isinstance(request["go"], bool):
        raise GuardError("The request does not say whether to go; nothing was done.")
    if kind == "end" and not (_is(request["pid"], int) and request["pid"] > 1 and _is(request["start"], int)):
        raise GuardError("The request names no process; nothing was done.")
    return request


def read_request(path, owner):
    """Text of the request, if it is a small plain file of the guard's own user; GuardError otherwise."""
    import stat

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise GuardError(f"{path} cannot be read ({error}); nothing was done.") from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != owner or info.st_nlink != 1 or info.st_size > 4096:
            raise GuardError(f"{path} is not a small plain file of UID {owner}; nothing was done.")
        return os.read(descriptor, 4096).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def end_process(request, config, clock_s=time.monotonic, sleep=time.sleep):
    """End one runner: SIGTERM, up to ten seconds, SIGKILL; all through a pidfd, after looking again who it is.

    The calling process is the server's user from then on, for good.
    """
    import signal

    from .._gpu import nvml as gpu_nvml

    pid = request["pid"]
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return f"PID {pid} was gone already"
    try:
        # From here on the handle is the process, whatever becomes of its number.
        seen = gpu_nvml.describe_process(pid)
        user = account(config["user"])
        if user is not None:
            # From here on the kernel, too, lets it touch no other user's process.
            # The kernel names the program to that user, or to root where the unit has a user namespace.
            become(user.pw_uid, user.pw_gid)
            seen["exe"] = seen["exe"] or gpu_nvml.describe_process(pid)["exe"]
        stat = process_stat(pid)
        argv = (_try(read_text, f"/proc/{pid}/cmdline") or "").split("\0")
        faults = objections(request, dict(seen, start=stat["start"], kind=kind_of(seen["comm"], argv)), config)
        if faults:
            raise GuardError(f"PID {pid} was not ended: {'; '.join(faults)}.")
        for number, patience in ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0)):
            try:
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return f"PID {pid} ended"
            if _gone(handle, patience):
                return f"PID {pid} ended after {signal.Signals(number).name}"
        raise GuardError(f"PID {pid} does not end, not even by SIGKILL: it hangs in the driver. Only a reboot helps.")
    finally:
        os.close(handle)


def become(uid, gid):
    """Be another user for good, without groups. With root's real or saved user ID the kernel would still take its signals (kill(2))."""
    if os.getresuid() == (uid, uid, uid):
        return
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _gone(handle, patience_s):
    """Whether the process of a pidfd ends within the time (a pidfd becomes readable then)."""
    import select

    return bool(select.select([handle], [], [], patience_s)[0])


def objections(request, seen, config):
    """Why a process must not be ended: [] if it is a runner of our server, by start time, user, program and unit."""
    faults = []
    if seen["start"] != request["start"]:
        faults.append("its number now belongs to another process")
    user = account(config["user"])
    if user is None or seen["uid"] != user.pw_uid:
        faults.append(f"its user is {seen['uid']}, not {config['user']}")
    folder = os.path.realpath(config["engine_dir"]) + os.sep
    if not (seen["exe"] or "").startswith(folder):
        faults.append(f"its program is {seen['exe']}, not one below {folder}")
    if seen["kind"] != "runner":
        faults.append("it is no runner")
    unit = config["settings"]["unit"]
    if seen["unit"] != unit and seen["ppid"] != 1:
        faults.append(f"it is in {seen['unit']}, not in {unit}, and its parent lives")
    return faults


def act(config, clock=None, run=None):
    """What vram-guard-act.service does as root. Returns the words for the journal."""
    import subprocess

    clock = clock or clocks()
    path = os.path.join(config["state_dir"], "request.json")
    owner = os.stat(config["state_dir"]).st_uid
    request = checked_request(read_request(path, owner), config, clock)
    if request["kind"] == "end":
        return end_process(request, config)
    mine = lay_drain_flag(request["unit"])
    try:
        if not await_go(request, lambda: checked_request(read_request(path, owner), config, clocks()), config["settings"]["drain_s"] + 120):
            return f"{request['unit']} was not restarted: it was due no more"
        done = (run or subprocess.run)(["systemctl", "restart", request["unit"]], timeout=300, check=False)
    finally:
        if mine:
            os.unlink(DRAIN_FLAG)
    if done.returncode:
        raise GuardError(f"systemctl restart {request['unit']} ended with {done.returncode}; `journalctl -u {request['unit']}` says why.")
    return f"{request['unit']} restarted"


def lay_drain_flag(unit):
    """Ask the gateway to take no new requests (docs/guides/gateway.md, "Draining a host"). False where it drains already, for somebody else."""
    try:
        os.makedirs(os.path.dirname(DRAIN_FLAG), exist_ok=True)
        with open(DRAIN_FLAG, "x", encoding="utf-8") as flag:
            flag.write(f"vram-guard restarts {unit}\n")
    except FileExistsError:
        return False
    os.chmod(DRAIN_FLAG, 0o644)
    return True


def await_go(request, look, patience_s, clock_s=time.monotonic, sleep=time.sleep):
    """Whether the restart is to go: the guard says so as soon as nothing is under way, and takes its request back when it is due no more.

    The guard renews its request at every tick, so one that grows old is that of a guard that is gone.
    """
    deadline = clock_s() + patience_s
    while not request["go"]:
        if clock_s() > deadline:
            return False
        sleep(0.05)
        try:
            request = look()
        except GuardError:
            return False
        if request["kind"] != "restart":
            return False
    return True


# --- for people -------------------------------------------------------------------------------


def status_text(config, clock):
    """What `vram-guard status` prints."""
    text = read_text(os.path.join(config["state_dir"], "state.json"))
    if text is None:
        return "vram-guard has not run yet: `systemctl status vram-guard.timer` says when it will."
    history, now, _step, trouble = parse_state(text, clock)
    last = _last(os.path.join(config["state_dir"], "state.json"))
    if trouble or not last:
        return f"The books cannot be used: {trouble or 'nothing of the last tick in them'}; the next tick starts new ones."
    record, settings = last["record"], config["settings"]
    lines = [
        f"vram-guard, {'acting' if config['mode'] == 'act' else 'dry run: it only says what it would do'}; looked {clock['wall'] - last['at']:.0f} s ago",
        f"sources    nvml {last['nvml']['state']}, ollama {last['ollama']['state']} {last['ollama']['version'] or ''}, "
        f"plan {record['plan']}, kernel log {last['xids']}",
        "",
        f"{'GPU':<44}{'total':>9}{'used':>9}{'free':>9}  MiB",
    ]
    for gpu in last["gpus"]:
        shown = [gpu["total_mib"], gpu["used_mib"], gpu["free_mib"]] if gpu["state"] == "ok" else [gpu["state"], "?", "?"]
        lines.append(f"{gpu['uuid']:<44}" + "".join(f"{value:>9}" for value in shown))
    lines += ["", f"{'model':<44}{'planned':>9}{'server':>9}{'measured':>9}{'beyond':>9}  MiB"]
    runners = {(runner["model"] or "").rpartition("@")[0]: runner for runner in history["runners"].values()}
    for model in last["ollama"]["models"]:
        planned = last["plan"]["models"].get(model["name"])
        runner = runners.get(model["name"])
        measured = runner["used_mib"] if runner else None
        server = round(policy.by_server(model, 1, settings))
        explained = max(server, planned or 0, (runner or {}).get("baseline_mib") or 0)
        beyond = None if measured is None else max(0, round(measured - explained))
        cells = [None if planned is None else round(planned), server, measured, beyond]
        lines.append(f"{model['name']:<44}" + "".join(f"{'-' if cell is None else cell:>9}" for cell in cells))
    if not last["ollama"]["models"]:
        lines.append("none is loaded")
    lines += ["", f"decision   {record['action']}: {record['why']}"]
    for alert in record["alerts"]:
        lines.append(f"  {alert['rule']:<18}for {alert['for_s']} s: {json.dumps(alert['numbers'])}")
    if history["fence"]:
        lasted = round(now - history["fence"]["since"])
        lines.append(f"FENCED     for {lasted} s: {history['fence']['why']}; `vram-guard unfence` when it is mended")
    for kind, left in budget_left(history, settings, now).items():
        limits = settings["budgets"][kind]
        lines.append(f"budget     {kind:<8} {left['hour']} of {limits['hour']} left this hour, {left['day']} of {limits['day']} this day")
    totals = _totals(last.get("totals"), {"action": None})
    lines.append("so far     " + ", ".join(f"{kind} {count}" for kind, count in totals.items()) + "; what a dry run would have done is counted")
    return "\n".join(lines)


def rules_text(settings):
    """What `vram-guard explain` prints: the rule table, with this host's thresholds."""
    lines = []
    for name, rule in policy.RULES.items():
        count = rule.get("debounce", settings["debounce"])
        ladder = " → ".join(rule["ladder"]) or "only told"
        lines.append(f"{name} ({ladder}; after {count} sample{'s' if count > 1 else ''} in a row)")
        lines.append(f"    {rule['means']}.")
        lines.append(f"    {rule['why_not']}.")
    lines.append("")
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(lines)


def lift_fence(config, clock):
    """Take the fence away; root, or the guard's own user, which the calling process is from then on, for good."""
    path = os.path.join(config["state_dir"], "state.json")
    text = read_text(path)
    history, now, _step, trouble = parse_state(text, clock)
    if text is None or trouble:
        raise GuardError(f"There are no books to change ({trouble or 'vram-guard has not run yet'}); the next tick starts new ones.")
    if not history["fence"]:
        return "There was no fence."
    history = dict(policy.unfence(history), clock=now)
    last = json.loads(text)["last"]
    # Root in a folder of somebody else's could be led astray by a link; as that user it can do no harm.
    owner = os.stat(config["state_dir"])
    become(owner.st_uid, owner.st_gid)
    write_text(path, dump_state(history, clock, last))
    publish(config, history, now, clock, last["record"])
    return "The fence is down; the next tick looks again, with a fresh ladder and what is left of the budgets."


def _say(text, out=None):
    """One line to the journal or the terminal, at once."""
    stream = out or sys.stdout
    stream.write(f"{text}\n")
    stream.flush()


USAGE = """vram-guard [--config FILE] COMMAND
  status      what the guard sees, what it decided, what is left of its budgets
  explain     its rules and this host's thresholds
  unfence     take down a fence when the cause is mended
  --dry-run   look and decide now, print the decision, change nothing
  tick        one tick, as vram-guard.service runs it
  act         do what the guard has asked for, as vram-guard-act.service runs it"""


def main(argv):
    """The command line; returns the exit status."""
    path = CONFIG_PATH
    words = list(argv)
    if words[:1] == ["--config"] and len(words) > 1:
        path = words[1]
        words = words[2:]
    if words in (["--help"], ["-h"]):
        _say(USAGE)
        return 0
    try:
        config = load_config(path)
        if words == ["tick"]:
            tick(config)
        elif words == ["--dry-run"]:
            _say(json.dumps(tick(config, dry_run=True), indent=2))
        elif words == ["status"]:
            _say(status_text(config, clocks()))
        elif words == ["explain"]:
            _say(rules_text(config["settings"]))
        elif words == ["unfence"]:
            _say(lift_fence(config, clocks()))
        elif words == ["act"]:
            _say(f"<4>{json.dumps({'done': act(config)})}")
        else:
            _say(USAGE, sys.stderr)
            return 2
    except (GuardError, OSError) as error:
        _say(f"<3>{error}" if os.environ.get("JOURNAL_STREAM") else f"vram-guard: {error}", sys.stderr)
        return 1
    return 0
