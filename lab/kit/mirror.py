# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The mirror of a lab: one container that answers for the release server and the model registry, under their own names."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys

from . import ca, engine
from .shell import LAB, LabError, run, say, wait_for

SERVICES = LAB / "services"
GRADES = ("real", "standin")


def grade(asked=None):
    """Return which Ollama server the lab offers, real or standin.

    asked, or else LAB_SERVER: real, standin, or auto (real if it is built).
    """
    asked = asked or os.environ.get("LAB_SERVER") or "auto"
    if asked not in (*GRADES, "auto"):
        raise LabError(f"LAB_SERVER is {asked!r}; wanted is real, standin or auto.")
    if asked == "standin":
        return asked
    build = LAB / "real" / "build"
    built = os.access(build, os.X_OK) and run([build, "--check"], check=False).returncode == 0
    if asked == "real" and not built:
        raise LabError("LAB_SERVER=real, but the real Ollama server is not built on this machine. `make real-server` builds it (about 20 min on 2 cores).")
    return "real" if built else "standin"


def lay_out(root, server, shape):
    """Fill a lab's mirror folder with releases and models. What is up to date stays; large parts come from the cache."""
    script = SERVICES / "make_mirror.py"
    if not script.exists():
        raise LabError(f"{script} is missing: this checkout cannot write a release mirror.")
    root.mkdir(parents=True, exist_ok=True)
    words = [sys.executable, str(script), "--root", str(root), "--server", server, "--shape", shape]
    sys.stdout.flush()
    if subprocess.run(words, stdin=subprocess.DEVNULL, check=False).returncode:
        raise LabError("The mirror could not be written; what make_mirror.py said stands above.")


def start(name, network, tag, root):
    """Run the mirror of a lab over its folder; a mirror that runs already from the same image and program stays."""
    box = f"gpufleet-{name}-mirror"
    certificate, key = ca.certificate()
    program = (SERVICES / "serve.py").read_bytes() + certificate.read_bytes() + tag.encode()
    recipe = hashlib.sha256(program).hexdigest()[:12]
    found = engine.find(box)
    if found and found.status == "running" and found.labels.get("gpufleet.recipe") == recipe:
        return
    engine.remove(box)
    command = "python3 /srv/services/serve.py --root /srv/mirror --cert /etc/lab/mirror.crt --key /etc/lab/mirror.key"
    made = engine.client().containers.create(
        tag,
        f"{command} --port 443 --http-port 80".split(),
        name=box,
        hostname="mirror",
        init=True,
        labels={engine.LABEL: name, "gpufleet.recipe": recipe},
        network=network,
        networking_config={network: engine.client().api.create_endpoint_config(aliases=list(ca.NAMES))},
        volumes=[
            f"{SERVICES}:/srv/services:ro", f"{root}:/srv/mirror",
            f"{certificate}:/etc/lab/mirror.crt:ro", f"{key}:/etc/lab/mirror.key:ro",
        ],
    )  # fmt: skip
    made.start()

    def look():
        made.reload()
        if made.status != "running":
            raise LabError(f"The mirror ended at once:\n{made.logs().decode(errors='replace')}")
        probe = "import socket; socket.create_connection(('127.0.0.1', 443), 2).close()"
        return engine.execute(box, "python3", "-c", probe, check=False).code == 0

    wait_for("The mirror answering on port 443", look, 20)
    say(f"The mirror answers for {', '.join(ca.NAMES)} in lab {name}")
