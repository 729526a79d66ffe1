# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The demonstration: one host, the whole site.yml, an address to look at."""

from __future__ import annotations

import urllib.request

from . import fleet
from .hosts import container
from .shell import LabError, say
from .state import state

NAME = "demo"
HOST = "demo"
PORT = 3000


def up():
    """Bring the demo's lab up."""
    fleet.up(NAME, [{"name": HOST, "front": PORT}])


def address():
    """Return the address of the demo's Open WebUI as seen from the controller."""
    return f"http://{fleet.address(NAME, HOST)}:{PORT}/"


def closing():
    """Print where the demo can be seen, once it has been converged; LabError if its page is not there."""
    where = address()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(where, timeout=20) as answer:
            page = answer.read(200000).decode(errors="replace")
    except OSError as fault:
        raise LabError(
            f"Open WebUI does not answer at {where} ({fault}). Its journal says why: lab/lab exec {NAME} {HOST} -- journalctl -u open-webui -n 50"
        ) from fault
    if "Open WebUI" not in page:
        raise LabError(f"{where} answers, but not with Open WebUI's page: {page[:200]!r}")
    served = state(NAME)["server"]
    say(f"Open WebUI: {where} (as after `ssh -L`: on the host it listens on loopback only)")
    say(
        "Ollama is "
        + ("the real server, computing on a simulated card" if served == "real" else "the lab's stand-in: it shows the way, its answers are canned")
    )
    say(f"A shell on the host: docker exec -it {container(NAME, HOST)} bash. `make demo-down` removes all of it.")


def down():
    """Remove the demo's lab and say what stays."""
    fleet.down(NAME)
    say("Kept for the next run: images, downloads and the mirror's files. `lab/lab clean` removes them too.")
