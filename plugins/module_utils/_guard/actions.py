# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What the guard does itself (an unload) and what it asks of the privileged part. Imported when something is due."""

from __future__ import annotations

import json
import os

from . import state
from .files import write_text
from .ollama import HttpError, http


def carry_out(decision, config, clock):
    """Do it, or leave it for the privileged part. Returns what can be said now, in words."""
    action, target = decision["action"], decision["target"]
    if action == "unload":
        return unload(target["model"], config)
    if action == "fence":
        return "fenced: nothing more is done until `vram-guard unfence`"
    try:
        if action == "restart":
            # By now generations may have been waited for: the request is as old as this moment.
            ask_for(action, dict(target, go=True), config, state.clocks())
        else:
            ask_for(action, target, config, clock)
    except OSError as error:
        return f"failed: the request cannot be written: {error}"
    return "requested"


def unload(model, config):
    """Ask the server to unload a model; what came of it, in words."""
    body = json.dumps({"model": model, "keep_alive": 0, "stream": False}).encode()
    try:
        status, content = http(config["host"], config["port"], "/api/generate", body)
    except HttpError as error:
        return f"failed: {error}"
    return "asked" if status == 200 else f"failed: {status} {content[:200].decode('utf-8', 'replace')}"


def request_path(config):
    """The file through which the guard and its privileged part talk."""
    return os.path.join(config["state_dir"], "request.json")


def ask_for(kind, target, config, clock):
    """Leave a request for the privileged part. A restart is asked for twice: when it is due (it drains from then on)
    and to go.
    """
    request = {"kind": kind, "boottime": clock["mono"], "boot": clock["boot"], **target}
    write_text(request_path(config), json.dumps(request))


def withdraw(config):
    """The restart that was due no longer is."""
    try:
        os.unlink(request_path(config))
    except FileNotFoundError:
        pass
