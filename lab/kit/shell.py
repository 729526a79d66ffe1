# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Saying what is done, and running commands."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

LAB = Path(__file__).resolve().parent.parent
"""lab"""


class LabError(Exception):
    """What was found, what was wanted, what to do; printed without a traceback."""


def cache(*parts):
    """Return a path in the machine's cache folder: $GPUFLEET_CACHE, else ~/.cache/gpufleet."""
    base = os.environ.get("GPUFLEET_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "gpufleet")
    return Path(base).joinpath(*parts)


def say(text):
    """Print one line of progress at once, also into a pipe."""
    print(f"lab: {text}", flush=True)


@contextlib.contextmanager
def step(text, expect=None):
    """Say what a long step does and how long it usually takes, then how long it took."""
    say(f"{text} …" + (f" (usually {expect})" if expect else ""))
    start = time.monotonic()
    yield
    say(f"  done in {time.monotonic() - start:.1f} s")


def as_root(command):
    """Return the command, through sudo where this user is not root."""
    return list(command) if os.geteuid() == 0 else ["sudo", "-n", *command]


def run(command, stdin=None, log=None, check=True, env=None):
    """Run a command and return its CompletedProcess (text; stdin may be str or bytes).

    log: a file that gets its output instead; its last lines are quoted where the command fails.
    """
    command = [str(word) for word in command]
    raw = isinstance(stdin, bytes)
    settings = {"env": env, "text": not raw, "input": stdin}
    if stdin is None:
        settings["stdin"] = subprocess.DEVNULL
        del settings["input"]
    try:
        if log is None:
            done = subprocess.run(command, capture_output=True, check=False, **settings)
        else:
            log.parent.mkdir(parents=True, exist_ok=True)
            with open(log, "ab") as sink:
                done = subprocess.run(command, stdout=sink, stderr=subprocess.STDOUT, check=False, **settings)
    except FileNotFoundError as fault:
        raise LabError(f"The command {command[0]} is not on this machine. `lab engine up` installs what the lab needs.") from fault
    if check and done.returncode != 0:
        if log is not None:
            said = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]) + f"\n(all of it: {log})"
        else:
            said = "\n".join(part if isinstance(part, str) else part.decode(errors="replace") for part in (done.stdout, done.stderr))
        raise LabError(f"`{' '.join(command)[:300]}` ended with {done.returncode}:\n{said.strip()}")
    return done


def wait_for(what, look, seconds, pause=0.3):
    """Call look() until it returns something true; return that. LabError after so many seconds."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise LabError(f"{what}: not seen within {seconds:.0f} s.")
        time.sleep(pause)


def interactive(command):
    """Replace this process by the command (its terminal, signals and exit status are then the command's)."""
    sys.stdout.flush()
    try:
        os.execvp(command[0], command)
    except FileNotFoundError as fault:
        raise LabError(f"The command {command[0]} is not on this machine.") from fault
