# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the server reads from its environment and from the lab, what it writes to its log, errors for a client."""

from __future__ import annotations

import datetime
import json
import os
import re
import sys

MIB = 1024 * 1024
FOREVER_S = float(2**63 - 1) / 1e9
UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"[+-]?(0|((\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h))+)")


class ApiError(Exception):
    """An error that a client is to see: HTTP status and text."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status, self.message = status, message


def log(level: str, message: str, **fields) -> None:
    """One line in the server's own form on standard error."""
    now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
    extra = "".join(f" {key}={json.dumps(str(value)) if ' ' in str(value) else value}" for key, value in fields.items())
    say(f"time={now} level={level} source=standin.py msg={json.dumps(message)}{extra}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def compact(value) -> str:
    """JSON without spaces, as the server writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


def duration(text: str) -> float:
    """Seconds of a Go duration such as "5m" or "1h30m"; ValueError for anything else."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f'time: invalid duration "{text}"')
    total = sum(float(part) * UNIT_S[unit] for part, unit in re.findall(r"(\d+\.?\d*|\.\d+)([nuµm]?s|m|h)", text))
    return -total if text.startswith("-") else total


def rfc3339(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(min(seconds, 1.1e10)).astimezone().isoformat().replace("+00:00", "Z")


def env(name: str) -> str:
    """A variable as the server reads it: trimmed of spaces and of quotes around it."""
    return os.environ.get(name, "").strip().strip("\"'")


def env_bool(name: str) -> bool:
    """Whether a variable is on; what is not a boolean counts as true."""
    return env(name).lower() not in ("", "0", "f", "false")


def env_uint(name: str, default: int) -> int:
    """Unset or unreadable: the default, the latter with a warning."""
    text = env(name)
    if text and not text.isdigit():
        log("WARN", "invalid environment variable, using default", key=name, value=text, default=default)
    return int(text) if text.isdigit() else default


def env_duration(name: str, default_s: float) -> float:
    """A duration or a number of seconds; negative means for ever."""
    text = env(name)
    try:
        seconds = duration(text) if not re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        return default_s
    return FOREVER_S if seconds < 0 else seconds


def host_and_port() -> tuple[str, int]:
    """OLLAMA_HOST as a pair; scheme and path are only for clients."""
    scheme, found, rest = env("OLLAMA_HOST").rpartition("://")
    default = {"http": 80, "https": 443}.get(scheme, 11434) if found else 11434
    match = re.fullmatch(r"(\[[^\]]*\]|[^:/]*)(?::(\d+))?(/.*)?", rest)
    if not match:
        log("WARN", "invalid port, using default", port=rest, default=default)
        return rest.partition(":")[0], default
    host = match.group(1).strip("[]") or ("127.0.0.1" if match.group(2) is None else "")
    return host, int(match.group(2) or default)


def home() -> str:
    """$HOME; without it the real server does not start either."""
    return os.environ.get("HOME") or sys.exit("Error: $HOME is not defined")


def models_dir() -> str:
    """$OLLAMA_MODELS or ~/.ollama/models."""
    return env("OLLAMA_MODELS") or os.path.join(home(), ".ollama", "models")


class Faults:
    """lab-faults.json beside the models folder.

    leak_mib_per_request      the runner maps so much more at each generation
    trapped_mib_after_unload  the server goes on holding so much after each unload
    stuck_stopping            an unload never comes to its end: /api/ps lists the model, expired
    status_500                true, or a list of path prefixes, that answer 500
    token_delay_s             seconds between two tokens (0.002)
    answer_tokens             length of an answer that no limit cuts (32)
    thought_tokens            how many of them, at its head, a thinking model thinks (4)
    pull_retry_base_s         first pause between attempts of a download (1, as the real one)
    """

    def __init__(self, path: str = ""):
        folder = os.path.dirname(os.path.abspath(models_dir())) if not path else ""
        self.path = path or os.path.join(folder, "lab-faults.json")

    def get(self, name: str, default=0):
        try:
            with open(self.path, encoding="utf-8") as handle:
                return json.load(handle).get(name, default)
        except FileNotFoundError:
            return default

    def hits(self, name: str, path: str) -> bool:
        value = self.get(name, False)
        return any(path.startswith(prefix) for prefix in value) if isinstance(value, list) else bool(value)


def message_of(error: Exception) -> str:
    """What a client is told; of a file that could not be written `write: no space left on device`."""
    if isinstance(error, OSError) and error.errno:
        return f"{f'open {error.filename}' if error.filename else 'write'}: {os.strerror(error.errno).lower()}"
    return str(error)
