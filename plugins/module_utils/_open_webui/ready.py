# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Waiting until Open WebUI serves, and what its unit said where it does not."""

from __future__ import annotations

import subprocess
import time

from .client import OpenWebuiError


def wait_ready(client, wait_s, given_up=lambda: "", clock=time.monotonic, sleep=time.sleep):
    """Return the seconds until /ready said yes.

    Raises OpenWebuiError after ``wait_s``, or as soon as ``given_up()`` says why it never will.
    """
    started = clock()
    while True:
        try:
            client.call("GET", "/ready")
            return clock() - started
        except OpenWebuiError as error:
            reason = given_up()
            if reason:
                raise OpenWebuiError(reason, error.status) from error
            if clock() - started >= wait_s:
                told = (
                    f"Open WebUI at {client.url} was not ready within {wait_s} s: {error} See `journalctl -u "
                    "open-webui`."
                )
                raise OpenWebuiError(told, error.status) from error
        sleep(0.5)


def last_words(unit, run=subprocess.run, lines=6):
    """'' while systemd keeps the unit going, else a sentence with what it said last."""
    try:
        state = run(
            ["systemctl", "is-failed", unit], capture_output=True, text=True, timeout=20, check=False
        ).stdout.strip()
        if state != "failed":
            return ""
        # What the service said itself; by --unit the lines would be systemd's own on its restarts.
        argv = ["journalctl", f"_SYSTEMD_UNIT={unit}", "--no-pager", "--output", "cat", "--lines", str(lines)]
        said = run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    told = " | ".join(line.strip()[:200] for line in said.splitlines() if line.strip())
    return f"{unit} has failed and systemd does not start it again. Its last words: {told}"
