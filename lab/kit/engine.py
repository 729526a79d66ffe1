# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The container engine: use the one that runs, else start one, and stop only what was started."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import time
from typing import NamedTuple

import docker
from docker.errors import DockerException, ImageNotFound, NotFound

from .shell import LabError, as_root, cache, run, say, step, wait_for

LABEL = "gpufleet.lab"
"""Whose containers and networks are ours: the lab's name, `image` for what only builds one."""

PACKAGES = {
    "docker": "docker.io",
    "dockerd": "docker.io",
    "debootstrap": "debootstrap",
    "gcc": "gcc",
    "gpg": "gnupg",
    "openssl": "openssl",
    "zstd": "zstd",
    "iptables": "iptables",
    "ip": "iproute2",
}
"""Commands that the lab calls on the controller, and the Debian package of each."""

HEADERS = ("/usr/include/stdio.h", "libc6-dev")
KEYRING = ("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring")


def _which(command):
    return shutil.which(command, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


def missing_packages():
    """Return the Debian packages that this machine lacks for the lab, sorted."""
    wanted = {package for command, package in PACKAGES.items() if not _which(command)}
    if answers():  # an engine of whatever origin serves; its daemon's package is then not ours to install
        wanted.discard("docker.io")
        wanted.discard("iptables")
    for path, package in (HEADERS, KEYRING):
        if not os.path.exists(path):
            wanted.add(package)
    return sorted(wanted)


def install():
    """Install what is missing, saying so."""
    packages = missing_packages()
    if not packages:
        return
    if not _which("apt-get"):
        raise LabError(f"This machine lacks {', '.join(packages)} and has no apt-get to install them with. Install them, or run the lab on Debian or Ubuntu.")
    log = cache("log", "apt.log")
    with step(f"Installing {', '.join(packages)} on this machine", "10-60 s"):
        env = dict(os.environ, DEBIAN_FRONTEND="noninteractive")
        run(as_root(["apt-get", "update", "-q"]), log=log, env=env)
        run(as_root(["apt-get", "install", "-q", "-y", "--no-install-recommends", *packages]), log=log, env=env)


@functools.lru_cache(maxsize=1)
def client():
    """Return the engine's client; no limit of time, for builds take minutes."""
    return docker.from_env(timeout=None)


def answers():
    """Return whether a Docker engine answers."""
    try:
        return client().ping()
    except DockerException:
        client.cache_clear()
        return False


def facts():
    """Return {"version", "cgroup": 1 or 2, "root": its data folder} of the engine that answers."""
    if not answers():
        raise LabError("No Docker engine answers. Start one, or let `lab engine up` do it.")
    info = client().info()
    return {"version": info.get("ServerVersion"), "cgroup": int(info.get("CgroupVersion") or 1), "root": info.get("DockerRootDir")}


def find(box):
    """Return a container by its name, None if there is none."""
    try:
        return client().containers.get(box)
    except NotFound:
        return None


def runs(box):
    """Return whether a container is there and runs."""
    found = find(box)
    return found is not None and found.status == "running"


def image(tag):
    """Return an image by its tag, None if the engine does not have it."""
    try:
        return client().images.get(tag)
    except ImageNotFound:
        return None


def containers(lab=None):
    """Return the containers of one lab; of all of them without a name."""
    return client().containers.list(all=True, filters={"label": f"{LABEL}={lab}" if lab else LABEL})


class Answer(NamedTuple):
    """What a command in a container ended with and said, standard output and standard error."""

    code: int
    out: str
    err: str


def execute(box, *words, check=True, log=None):
    """Run a command in a container; LabError where it fails and check is on.

    log: a file that gets the output as it comes, both kinds; the answer then has none.
    """
    api = client().api
    run_id = api.exec_create(box, [str(word) for word in words])["Id"]
    if log:
        with open(log, "ab") as sink:
            for piece in api.exec_start(run_id, stream=True):
                sink.write(piece)
                sink.flush()
        out, err = b"", b"\n".join(log.read_bytes().splitlines()[-15:]) + f"\n(all of it: {log})".encode()
    else:
        out, err = api.exec_start(run_id, demux=True)
    answer = Answer(api.exec_inspect(run_id)["ExitCode"], *(text.decode(errors="replace") if text else "" for text in (out, err)))
    if check and answer.code:
        raise LabError(f"`{' '.join(map(str, words))[:300]}` in {box} ended with {answer.code}:\n{answer.out}{answer.err}".strip())
    return answer


def remove(box):
    """Remove a container with its anonymous volumes, if it is there."""
    found = find(box)
    if found:
        found.remove(force=True, v=True)


def _record():
    return cache("engine", "started.json")


def up():
    """See to it that an engine answers."""
    install()
    if not answers() and os.path.isdir("/run/systemd/system"):
        # The package starts its own service where systemd runs.
        run(as_root(["systemctl", "start", "docker.service"]), check=False)
    if answers():
        found = facts()
        say(f"Docker engine {found['version']} answers, cgroup v{found['cgroup']}")
        return
    log = cache("log", "dockerd.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with step(f"No Docker engine runs: starting one, its output goes to {log}", "2-5 s"):
        with open(log, "ab") as sink:
            # Its own session and no file of the caller's: it must outlive a pipeline that waits for our output.
            process = subprocess.Popen(
                as_root(["dockerd"]),
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                close_fds=True,
                cwd="/",
            )

        def look():
            if process.poll() is not None:
                tail = "\n".join(log.read_text(encoding="utf-8", errors="replace").splitlines()[-10:])
                raise LabError(f"dockerd ended with {process.returncode}:\n{tail}\n(all of it: {log})")
            return answers()

        wait_for("The Docker engine", look, 60)
        _record().parent.mkdir(parents=True, exist_ok=True)
        _record().write_text(json.dumps({"pid": process.pid}) + "\n", encoding="utf-8")


def _is_ours(pid):
    """Return whether this process is still a dockerd (or the sudo that runs it)."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as handle:
            return b"dockerd" in handle.read()
    except OSError:
        return False


def down():
    """Stop the engine if the lab started it."""
    try:
        pid = json.loads(_record().read_text(encoding="utf-8"))["pid"]
    except FileNotFoundError:
        say("The Docker engine was not started by the lab: it is left running" if answers() else "No Docker engine runs")
        return
    if _is_ours(pid):
        with step("Stopping the Docker engine that the lab started"):
            run(as_root(["kill", f"-{signal.SIGTERM.value}", str(pid)]))
            end = time.monotonic() + 60
            while _is_ours(pid) and not _reaped(pid):
                if time.monotonic() > end:
                    raise LabError(f"dockerd (pid {pid}) did not end within 60 s of SIGTERM. See {cache('log', 'dockerd.log')}.")
                time.sleep(0.2)
    _record().unlink()


def _reaped(pid):
    """Return whether the process is gone or only waits for its parent to notice."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:
            return handle.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
