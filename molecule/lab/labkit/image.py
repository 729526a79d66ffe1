# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of lab hosts: debootstrap from the machine's own APT source, then the machine's world on top."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile

from . import ca, engine, world
from .shell import LabError, as_root, cache, docker, run, say, step

BASE = "gpufleet-lab-base"
READY = "gpufleet-lab"

INCLUDE = ["systemd", "systemd-sysv", "dbus", "python3", "python3-apt", "sudo", "ca-certificates", "iproute2", "procps", "curl"]
"""What a bare Debian server plainly has and minbase lacks. Anything else a role has to install itself."""

MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",  # would take the package lock at a time of their own choosing
    "systemd-networkd.service",
    "systemd-networkd.socket",
    "systemd-networkd-wait-online.service",
    "systemd-resolved.service",
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-modules-load.service",
    "systemd-pstore.service",
    "systemd-binfmt.service",
    "systemd-timesyncd.service",
    "systemd-firstboot.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
    "dev-hugepages.mount",
    "dev-mqueue.mount",
    "getty@tty1.service",
    "console-getty.service",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
]
"""What the container's engine does in their place, or what a container cannot do."""

FINISH = r"""
set -e
rm -f /etc/apt/apt.conf.d/docker-clean /etc/machine-id /var/lib/dbus/machine-id
: > /etc/machine-id
update-ca-certificates >/dev/null
systemctl mask --quiet %(masked)s
apt-get update -q
rm -rf /var/cache/apt/archives/*.deb /var/log/*.log /tmp/*
"""

INIT = """#!/bin/sh
# PID 1 of a lab host, until it becomes systemd. On cgroup v2 the engine mounts the container's own hierarchy read-only.
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ] && [ ! -w /sys/fs/cgroup/cgroup.procs ]; then
    mount -o remount,rw /sys/fs/cgroup
fi
exec /sbin/init "$@"
"""


def archive(files):
    """Return a tar stream (bytes) of {path: (text or bytes, mode)}, owned by root; a value may also be ("->", target)."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for path in sorted(files):
            content, mode = files[path]
            entry = tarfile.TarInfo(path.lstrip("/"))
            if content == "->":
                entry.type, entry.linkname = tarfile.SYMTYPE, mode
                tar.addfile(entry)
                continue
            data = content.encode() if isinstance(content, str) else content
            entry.size, entry.mode = len(data), mode
            tar.addfile(entry, io.BytesIO(data))
    return stream.getvalue()


def _digest(thing):
    return hashlib.sha256(json.dumps(thing, sort_keys=True).encode()).hexdigest()[:12]


def exists(tag):
    """Return whether the engine has this image."""
    return docker("image", "inspect", "--format", "{{.Id}}", tag, check=False).returncode == 0


def base(suite, sources):
    """Return the tag of the bare suite, built by debootstrap if the engine does not have it."""
    recipe = {"suite": suite, "include": INCLUDE, "mirror": sources[0][0] if sources else None, "version": 1}
    tag = f"{BASE}:{suite}-{_digest(recipe)}"
    if exists(tag):
        return tag
    work = cache("work")
    work.mkdir(parents=True, exist_ok=True)
    target = tempfile.mkdtemp(prefix=f"{suite}-", dir=work)
    log = cache("log", f"debootstrap-{suite}.log")
    if log.exists():
        log.unlink()
    try:
        with step(f"Building the bare {suite} with debootstrap from this machine's own APT source", "50-90 s"):
            words = ["debootstrap", "--variant=minbase", f"--include={','.join(INCLUDE)}", suite, target]
            if sources:
                words.append(sources[0][0])
            run(as_root(words), log=log)
        with step(f"Importing it as {tag}", "10 s"):
            # /dev is the container's own; .deb files and lists are fetched again where they are needed.
            tar = subprocess.Popen(
                as_root(
                    [
                        "tar",
                        "-C",
                        target,
                        "--numeric-owner",
                        "--exclude=./var/cache/apt/archives/*.deb",
                        "--exclude=./dev/*",
                        "-c",
                        ".",
                    ]
                ),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
            )
            done = subprocess.run(
                ["docker", "import", "--change", 'CMD ["/sbin/init"]', "-", tag],
                stdin=tar.stdout,
                capture_output=True,
                text=True,
                check=False,
            )
            tar.stdout.close()
            if tar.wait() != 0 or done.returncode != 0:
                raise LabError(f"docker import of {suite} failed: {done.stderr.strip()}")
    finally:
        run(as_root(["rm", "-rf", "--one-file-system", target]))
    return tag


def files(suite, sources):
    """Return {path: (content, mode)} that makes a bare suite part of this machine's world and of the lab."""
    options = world.pip_options()
    bundles = [
        options.get("cert"),
        *(os.environ.get(name) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")),
    ]
    lab = (ca.ensure() / "ca.crt").read_text(encoding="utf-8")
    laid = {
        "/etc/pip.conf": (world.pip_configuration(options), 0o644),
        "/usr/local/share/ca-certificates/gpufleet-lab.crt": (lab, 0o644),
        "/usr/local/lib/lab/init": (INIT, 0o755),
        "/etc/lab-host": ("This is a throw-away host of gpufleet.llm's lab.\n", 0o644),
    }
    for number, pem in enumerate(world.authorities(bundles)):
        laid[f"/usr/local/share/ca-certificates/controller-{number:02}.crt"] = (pem + "\n", 0o644)
    if sources:
        lines = [f"deb {uri} {release} main" for uri, release in sources]
        laid["/etc/apt/sources.list"] = ("\n".join(lines) + "\n", 0o644)
    configuration = world.apt_configuration()
    if configuration:
        laid["/etc/apt/apt.conf.d/80controller"] = ("\n".join(configuration) + "\n", 0o644)
    for path in ["/etc/apt/auth.conf", *sorted(_listed("/etc/apt/auth.conf.d"))]:
        if os.path.isfile(path) and os.access(path, os.R_OK):
            with open(path, encoding="utf-8") as handle:
                laid[path] = (handle.read(), 0o600)
    return laid


def _listed(folder):
    return [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []


def build(name):
    """Return the tag of the image debian12 or debian13, built if its recipe or the machine's world has changed."""
    if name not in world.SUITES:
        raise LabError(f"There is no image {name!r}; the lab builds {', '.join(world.SUITES)}.")
    suite = world.SUITES[name]
    sources = world.apt_sources(suite)
    laid = files(suite, sources)
    finish = FINISH % {"masked": " ".join(MASKED)}
    environment = world.proxies(ca.NAMES)
    recipe = {
        "files": {path: [str(part) for part in value] for path, value in laid.items()},
        "finish": finish,
        "environment": environment,
        "include": INCLUDE,
        "sources": sources,
        "version": 1,
    }
    tag = f"{READY}:{name}-{_digest(recipe)}"
    if exists(tag):
        return tag
    if not sources:
        say("This machine has no Debian source: debootstrap's own default mirror serves. LAB_DEBIAN_MIRROR names another.")
    bare = base(suite, sources)
    with step(f"Giving {name} this machine's certificates, APT sources and pip configuration", "10-20 s"):
        words = [word for key, value in sorted(environment.items()) for word in ("--env", f"{key}={value}")]
        made = docker("run", "--detach", "--label", "gpufleet.lab=image", *words, bare, "sleep", "600").stdout.strip()
        try:
            docker("exec", "-i", made, "tar", "-C", "/", "-x", "--no-same-owner", stdin=archive(laid))
            docker("exec", made, "sh", "-c", finish)
            changes = [word for key, value in sorted(environment.items()) for word in ("--change", f"ENV {key}={value}")]
            changes += ["--change", "ENV container=docker", "--change", 'CMD ["/usr/local/lib/lab/init"]']
            docker("commit", *changes, made, tag)
        finally:
            docker("rm", "--force", made)
    say(f"Image {tag} is ready (engine {engine.facts()['version']})")
    return tag
