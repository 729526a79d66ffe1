# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The command line of vram-guard.

One tick is one short process. It runs every few seconds for years, so what it imports is counted (bench/guard.py): a
module that a quiet tick does not need is imported where it is used.
"""

from __future__ import annotations

import json
import os
import sys

from . import tick
from .files import CONFIG_PATH, GuardError, load_config
from .report import say

USAGE = """vram-guard [--config FILE] COMMAND
  status      what the guard sees, what it decided, what is left of its budgets
  explain     its rules and this host's thresholds
  unfence     remove a fence when its cause is removed
  --dry-run   check and decide now, print the decision, change nothing
  tick        one tick, as vram-guard.service runs it
  act         do what the guard has asked for, as vram-guard-act.service runs it"""


def run(command, config):
    """Do one command; its text, None for a tick, which reports by itself. KeyError for one that there is not."""
    if command == "tick":
        tick.tick(config)
        return None
    if command == "--dry-run":
        return json.dumps(tick.tick(config, dry_run=True), indent=2)
    if command == "act":
        from . import act

        return f"<4>{json.dumps({'done': act.act(config)})}"
    from . import commands, state

    for_people = {
        "status": lambda: commands.status_text(config, state.clocks()),
        "explain": lambda: commands.rules_text(config["settings"]),
        "unfence": lambda: commands.lift_fence(config, state.clocks()),
    }
    return for_people[command]()


def main(argv):
    """The command line; returns the exit status."""
    path, words = CONFIG_PATH, list(argv)
    if words[:1] == ["--config"] and len(words) > 1:
        path = words[1]
        words = words[2:]
    if words in (["--help"], ["-h"]):
        say(USAGE)
        return 0
    try:
        config = load_config(path)
        if len(words) != 1 or words[0] not in ("status", "explain", "unfence", "--dry-run", "tick", "act"):
            say(USAGE, sys.stderr)
            return 2
        text = run(words[0], config)
        if text is not None:
            say(text)
    except (GuardError, OSError) as error:
        say(f"<3>{error}" if os.environ.get("JOURNAL_STREAM") else f"vram-guard: {error}", sys.stderr)
        return 1
    return 0
