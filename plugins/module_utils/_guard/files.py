# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Files: what others write for the guard (its configuration, the serving plan), and how it replaces one of its own."""

from __future__ import annotations

import json
import os

from .._host.files import read_text
from . import policy

CONFIG_PATH = "/etc/gpufleet/vram-guard.json"
DRAIN_FLAG = "/run/gpufleet/drain"
OWN_DRAIN = "vram-guard restarts "
SIZE_LIMIT = 4 * 1024 * 1024  # bytes of a file or of an answer; /api/ps of a full card is a few kB

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


def write_text(path, text, mode=0o644):
    """Replace a file in one step, so that no reader and no crash sees half of it.

    OSError, and the previous file stays, where that cannot be.
    """
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        rest = text.encode()
        while rest:
            # A disk that fills up takes the first part and reports nothing; asked for the rest, it fails.
            rest = rest[os.write(descriptor, rest) :]
        os.fchmod(descriptor, mode)
    except OSError as error:
        os.unlink(temporary)
        error.filename = path
        raise
    finally:
        os.close(descriptor)
    os.replace(temporary, path)


def is_kind(value, kind):
    """Whether a value of JSON is of that type. float: any number but a boolean, finite and below 1e12."""
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def load_config(path=CONFIG_PATH):
    """CONFIG_DEFAULTS overlaid by the file, with ``settings`` complete. Raises GuardError."""
    try:
        with open(path, encoding="utf-8") as handle:
            given = json.load(handle)
    except (OSError, ValueError) as error:
        raise GuardError(f"{path} cannot be read ({error}); the role vram_guard writes it: run it again.") from error
    unknown = set(given) - set(CONFIG_DEFAULTS) | set(given.get("settings", {})) - set(policy.DEFAULTS)
    if unknown:
        names = ", ".join(sorted(unknown))
        raise GuardError(f"{path} has unknown keys {names}; the role vram_guard writes this file: run it again.")
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
            raise GuardError(
                f"{path} has {key} = {value!r}; something like {default!r} was wanted. Correct it in the inventory."
            )
    return settings


def _alike(value, default):
    """A text for a text, a number that is not negative for a number; None only where None is the default."""
    if isinstance(default, (str, dict)):
        return isinstance(default, str) and isinstance(value, str)
    return (value is None and default is None) or (is_kind(value, float) and value >= 0)


def full_name(name):
    """A model's name with its tag, as /api/ps lists it."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def read_plan(path):
    """{state: ok | absent | invalid, detail, models: {name: MiB}} of the serving plan, as gpu_capacity writes it."""
    try:
        text = read_text(path, SIZE_LIMIT)
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


def drained():
    """Whether somebody else has taken this host out of service (docs/guides/gateway.md, "Draining a host").

    A flag that cannot be read is taken for somebody else's: the guard's own is readable to all.
    """
    try:
        text = read_text(DRAIN_FLAG, SIZE_LIMIT)
    except OSError:
        return True
    return text is not None and not text.startswith(OWN_DRAIN)
