# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the faults of the catalogue share: a way onto the host, its server, its card.

A fault is an executable beside this file with a second line that says what it does, and a call of main(inject, heal).
`lab fault NAME HOST [ARGUMENT…]` and `lab heal HOST` call it with LAB_CONTAINER, LAB_MIRROR and LAB_SERVER set.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

CARD = "/usr/local/lib/nvml-sim/lab_card.py"
UNIT = "ollama.service"


class FaultError(Exception):
    """Why a fault cannot be injected or healed, in one sentence."""


def served():
    """Return which server the lab has: real or standin."""
    return os.environ.get("LAB_SERVER", "standin")


def only_standin(fault):
    """Refuse a fault that a real server cannot be made to show."""
    if served() != "standin":
        raise FaultError(f"{fault} is a fault of the stand-in alone: the real server does not do that on demand. LAB_SERVER=standin makes a lab of it.")


def host(script, *words, check=True, data=None):
    """Run a shell script on the host; return its standard output, or (check=False) the finished process."""
    box = os.environ.get("LAB_CONTAINER")
    if not box:
        raise FaultError("LAB_CONTAINER is not set: call faults by `lab/lab fault NAME HOST`.")
    done = subprocess.run(
        ["docker", "exec", "-i", box, "sh", "-c", script, "sh", *map(str, words)],
        input=data,
        stdin=None if data is not None else subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if not check:
        return done
    if done.returncode:
        raise FaultError(f"{box}: {(done.stderr or done.stdout).strip()[-400:] or f'ended with {done.returncode}'}")
    return done.stdout


RUNNERS = """
for dir in /proc/[0-9]*; do
    read -r name 2>/dev/null < "$dir/comm" || continue
    [ "$name" = llama-server ] && grep -qs "ollama" "$dir/cgroup" && echo "${dir#/proc/}"
done
true
"""


def runners():
    """Return the PIDs of the server's runners, as the host numbers them."""
    return [int(pid) for pid in host(RUNNERS).split()]


def some_runners():
    """Return the PIDs of the runners; FaultError if there is none."""
    found = runners()
    if not found:
        raise FaultError("No runner is there to break: load a model first (`ollama run`, or one request).")
    return found


ASK = """
import json, os, re, sys, urllib.error, urllib.request
path, body, limit = sys.argv[1], sys.argv[2], float(sys.argv[3])
address = sys.argv[4] if len(sys.argv) > 4 else ""
for file in ("/etc/gpufleet/ollama.env",) if not address else ():
    try:
        found = re.search(r"^OLLAMA_HOST=[\\"']?([^\\"'\\n]+)", open(file).read(), re.M)
    except OSError:
        found = None
    if found:
        address = re.sub(r"^https?://", "", found.group(1)).replace("0.0.0.0", "127.0.0.1")
address = address or "127.0.0.1:11434"
address += "" if re.search(r":\\d+$", address) else ":11434"
request = urllib.request.Request("http://" + address + path, data=body.encode() if body else None, headers={"Content-Type": "application/json"})
try:
    with urllib.request.urlopen(request, timeout=limit) as answer:
        print(json.dumps([answer.status, answer.read().decode("utf-8", "replace")]))
except urllib.error.HTTPError as error:
    print(json.dumps([error.code, error.read().decode("utf-8", "replace")]))
except Exception as error:
    print(json.dumps([0, str(getattr(error, "reason", error))]))
"""


def ask(path, body=None, limit_s=600, at=""):
    """Ask the host's server, or one at another address of the host, as a client there would; return (status, text), status 0 for no answer."""
    text = json.dumps(body) if body is not None else ""
    said = host('exec python3 -I - "$@"', path, text, limit_s, at, data=ASK)
    status, answer = json.loads(said)
    return status, answer


def loaded():
    """Return /api/ps: the models that the server believes to be loaded."""
    status, text = ask("/api/ps", limit_s=20)
    if status != 200:
        raise FaultError(f"/api/ps answered {status}: {text[:200]}")
    return json.loads(text).get("models", [])


def unload_all():
    """Unload every model and wait until no runner is left; return the names."""
    names = [model["name"] for model in loaded()]
    for name in names:
        ask("/api/generate", {"model": name, "keep_alive": 0}, 60)
    wait("the runners to end", lambda: not runners(), 60)
    return names


def load(name):
    """Load a model with its own settings."""
    status, text = ask("/api/generate", {"model": name}, 600)
    if status != 200:
        raise FaultError(f"loading {name} answered {status}: {text[:300]}")


def wait(what, condition, seconds):
    """Wait until a condition holds; FaultError after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise FaultError(f"Waited {seconds} s for {what}.")
        time.sleep(0.2)


def restart_server():
    """Restart the server, whatever its unit's start limit has counted, and wait until it answers."""
    host(f"systemctl reset-failed {UNIT} 2>/dev/null; systemctl restart {UNIT}")
    server_answers()


def server_answers():
    """Wait until the server answers again."""
    wait("the server to answer", lambda: ask("/api/version", limit_s=5)[0] == 200, 90)


def card(*settings):
    """Set faults of the card that NVML shows, for example gpu0.lost=true."""
    host(f'exec python3 -I {CARD} set "$@"', *settings)


def card_memory(index, size_mib=None, taken_mib=None):
    """Set the size of the card that the real server computes on, or what a tenant holds of it; None keeps. No such card: nothing."""
    host(
        'f=/etc/lab-gpu/$1; [ -e "$f" ] || exit 0; read -r size taken < "$f"; '
        '[ "$2" = keep ] || size=$2; [ "$3" = keep ] || taken=$3; printf "%s %s\\n" "$size" "${taken:-0}" > "$f"',
        index,
        "keep" if size_mib is None else size_mib,
        "keep" if taken_mib is None else taken_mib,
    )


def remember(fault, text):
    """Keep on the host what healing needs."""
    host('mkdir -p /var/lib/lab/faults; cat > "/var/lib/lab/faults/$1"', fault, data=text)


def recall(fault):
    """Return what remember() kept and forget it; None if the fault is not there."""
    text = host('f=/var/lib/lab/faults/$1; [ ! -e "$f" ] || { cat "$f"; rm "$f"; }', fault)
    return text or None


def number(words, default, what):
    """Return the first argument of a fault as a positive number."""
    if not words:
        return default
    try:
        value = int(words[0])
    except ValueError:
        value = 0
    if value <= 0:
        raise FaultError(f"{what} is a positive number, not {words[0]!r}.")
    return value


def main(inject, heal):
    """Run the verb that was asked for; exit 1 with one sentence if it cannot be."""
    verb, words = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("", [])
    try:
        if verb == "inject":
            inject(words)
        elif verb == "heal":
            heal()
        else:
            raise FaultError(f"{os.path.basename(sys.argv[0])} inject [ARGUMENT…] | heal")
    except FaultError as fault:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {fault}")
