# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Images of lab hosts: a bare system by debootstrap or from an official image, then the machine's world on top."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
import tempfile

from . import ca, engine, world
from .shell import LabError, as_root, cache, run, say, step

BASE = "gpufleet-lab-base"
READY = "gpufleet-lab"

INCLUDE = ["systemd", "systemd-sysv", "dbus", "python3", "python3-apt", "sudo", "ca-certificates", "iproute2", "kmod", "procps", "curl"]
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

PREPARE = r"""
set -e
export DEBIAN_FRONTEND=noninteractive
# An official image throws packages away, keeps services down and leaves manuals out, as no server does.
rm -f /etc/apt/apt.conf.d/docker-* /etc/dpkg/dpkg.cfg.d/docker-* /etc/dpkg/dpkg.cfg.d/excludes
rm -f /etc/update-motd.d/60-unminimize
if [ -s /etc/apt/lab.list ]; then
    rm -f /etc/apt/sources.list.d/*
    mv /etc/apt/lab.list /etc/apt/sources.list
fi
apt-get update -q
apt-get install -q -y --no-install-recommends %(include)s
# Last: while packages were installed it kept their services from being started in a container without systemd.
rm -f /usr/sbin/policy-rc.d
rm -rf /var/lib/apt/lists/* /var/cache/apt/archives/*.deb
"""
"""What makes of an official image what debootstrap makes; /etc/apt/lab.list is there where this machine knows a source."""

SCRIPTS = {"debian": "sid", "ubuntu": "gutsy"}
"""debootstrap's script for a suite that is younger than debootstrap; those of all recent suites are links to it."""

KEYRINGS = {"debian": "/usr/share/keyrings/debian-archive-keyring.gpg", "ubuntu": "/usr/share/keyrings/ubuntu-archive-keyring.gpg"}

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


def base(name, sources):
    """Return the tag of a platform's bare image, made if the engine does not have it."""
    if world.way_to_base(sources) == "registry":
        return _base_from_registry(name, sources)
    return _base_from_debootstrap(name, sources)


def _base_from_registry(name, sources):
    """Return the tag of a bare image that is an official one made complete by APT."""
    official = world.base_image(name)
    if not engine.image(official):
        with step(f"Pulling {official}", "10-60 s"):
            engine.client().images.pull(official)
    labels = {engine.LABEL: "image"}
    read = engine.client().containers.run(official, ["cat", "/etc/os-release"], remove=True, labels=labels).decode()
    if world.platform_of(read) != name:
        said = ", ".join(line for line in read.splitlines() if line.startswith(("ID=", "VERSION_ID="))) or "no os-release"
        raise LabError(f"The image {official} has {said}; {name} was wanted. Correct LAB_BASE_PREFIX, or remove that image and let the lab pull it.")
    identity = engine.image(official).id
    placed = _apt_files(name, sources, "/etc/apt/lab.list")
    environment = world.proxies(ca.NAMES)
    script = PREPARE % {"include": " ".join(INCLUDE)}
    tag = f"{BASE}:{name}-{_digest([identity, script, _plain(placed), environment])}"
    if engine.image(tag):
        return tag
    log = cache("log", f"base-{name}.log")
    if log.exists():
        log.unlink()
    with step(f"Making {official} a server: systemd, Python and what else a bare one has", "30-90 s"):
        _commit(official, placed, script, environment, tag, ['CMD ["/sbin/init"]'], log)
    return tag


def _commit(source, files, script, environment, tag, changes, log=None):
    """Make an image of another one: files put into a container of it, a script run there, and the result kept as the tag."""
    made = engine.client().containers.run(source, ["sleep", "1800"], detach=True, labels={engine.LABEL: "image"}, environment=environment)
    try:
        if files:
            made.put_archive("/", archive(files))
        engine.execute(made.name, "sh", "-c", script, log=log)
        repository, _colon, version = tag.partition(":")
        made.commit(repository, version, changes=changes)
    finally:
        made.remove(force=True)


def _base_from_debootstrap(name, sources):
    """Return the tag of a bare image that debootstrap makes."""
    suite, distribution = world.PLATFORMS[name]["suite"], world.PLATFORMS[name]["distribution"]
    recipe = {"suite": suite, "include": INCLUDE, "mirror": sources[0][0] if sources else None, "version": 1}
    tag = f"{BASE}:{suite}-{_digest(recipe)}"
    if engine.image(tag):
        return tag
    keyring = os.environ.get(f"LAB_{distribution.upper()}_KEYRING") or KEYRINGS[distribution]
    if not os.path.exists(keyring):
        raise LabError(
            f"{keyring} is not on this machine, so packages of {suite} could not be verified. Let LAB_{distribution.upper()}_KEYRING name the "
            f"keyring of {distribution}'s archive (package {distribution}-{'archive-' if distribution == 'debian' else ''}keyring), or set LAB_BASE=registry."
        )
    work = cache("work")
    work.mkdir(parents=True, exist_ok=True)
    target = tempfile.mkdtemp(prefix=f"{suite}-", dir=work)
    log = cache("log", f"debootstrap-{suite}.log")
    if log.exists():
        log.unlink()
    try:
        with step(f"Building the bare {suite} with debootstrap from {'its APT source' if sources else 'its own default mirror'}", "50-90 s"):
            words = ["debootstrap", "--variant=minbase", f"--keyring={keyring}", f"--include={','.join(INCLUDE)}", suite, target]
            words += debootstrap_words(distribution, suite, sources)
            run(as_root(words), log=log)
        with step(f"Importing it as {tag}", "10 s"):
            # /dev is the container's own; .deb files and lists are fetched again where they are needed.
            words = ["tar", "-C", target, "--numeric-owner", "--exclude=./var/cache/apt/archives/*.deb", "--exclude=./dev/*", "-c", "."]
            tar = subprocess.Popen(as_root(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
            repository, _colon, version = tag.partition(":")
            engine.client().api.import_image_from_stream(tar.stdout, repository, version, ['CMD ["/sbin/init"]'])
            tar.stdout.close()
            if tar.wait() != 0 or not engine.image(tag):
                raise LabError(f"The import of {suite} failed: tar ended with {tar.returncode}.")
    finally:
        run(as_root(["rm", "-rf", "--one-file-system", target]))
    return tag


def debootstrap_words(distribution, suite, sources, scripts="/usr/share/debootstrap/scripts"):
    """Return the last arguments of debootstrap: the mirror, and a script where it has none of the suite's name."""
    words = [sources[0][0]] if sources else []
    if not os.path.exists(os.path.join(scripts, suite)):
        if not words:
            raise LabError(
                f"This machine's debootstrap does not know {suite}, nor is there a source of it. "
                f"Set {world.DISTRIBUTIONS[distribution]['mirror']}, or LAB_BASE=registry."
            )
        words.append(os.path.join(scripts, SCRIPTS[distribution]))
    return words


def _apt_files(name, sources, path):
    """Return {path: (content, mode)} of what APT has to know to reach the sources; path: of their list."""
    placed = {}
    if sources:
        components = world.DISTRIBUTIONS[world.PLATFORMS[name]["distribution"]]["components"]
        lines = [f"deb {uri} {release} {components}" for uri, release in sources]
        placed[path] = ("\n".join(lines) + "\n", 0o644)
    configuration = world.apt_configuration()
    if configuration:
        placed["/etc/apt/apt.conf.d/80controller"] = ("\n".join(configuration) + "\n", 0o644)
    for secret in ["/etc/apt/auth.conf", *sorted(_listed("/etc/apt/auth.conf.d"))]:
        if os.path.isfile(secret) and os.access(secret, os.R_OK):
            with open(secret, encoding="utf-8") as handle:
                placed[secret] = (handle.read(), 0o600)
    return placed


def _plain(placed):
    return {path: [str(part) for part in value] for path, value in placed.items()}


def files(name, sources):
    """Return {path: (content, mode)} that makes a bare suite part of this machine's world and of the lab."""
    options = world.pip_options()
    bundles = [
        options.get("cert"),
        *(os.environ.get(name) for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")),
    ]
    lab = (ca.ensure() / "ca.crt").read_text(encoding="utf-8")
    placed = {
        "/etc/pip.conf": (world.pip_configuration(options), 0o644),
        "/usr/local/share/ca-certificates/gpufleet-lab.crt": (lab, 0o644),
        "/usr/local/lib/lab/init": (INIT, 0o755),
        "/etc/lab-host": ("This is a throw-away host of gpufleet.llm's lab.\n", 0o644),
    }
    for number, pem in enumerate(world.authorities(bundles)):
        placed[f"/usr/local/share/ca-certificates/controller-{number:02}.crt"] = (pem + "\n", 0o644)
    placed.update(_apt_files(name, sources, "/etc/apt/sources.list"))
    return placed


def _listed(folder):
    return [os.path.join(folder, name) for name in os.listdir(folder)] if os.path.isdir(folder) else []


def build(name):
    """Return the tag of a platform's image, built if its recipe or the machine's world has changed."""
    if name not in world.PLATFORMS:
        raise LabError(f"There is no image {name!r}; the lab builds {', '.join(world.PLATFORMS)}.")
    sources = world.apt_sources(name)
    way = world.way_to_base(sources)
    placed = files(name, sources)
    finish = FINISH % {"masked": " ".join(MASKED)}
    environment = world.proxies(ca.NAMES)
    recipe = {
        "files": _plain(placed),
        "finish": finish,
        "environment": environment,
        "include": INCLUDE,
        "sources": sources,
        "version": 1,
    }
    if way == "registry":
        recipe["official"] = world.base_image(name)
    tag = f"{READY}:{name}-{_digest(recipe)}"
    if engine.image(tag):
        return tag
    if not sources:
        say(f"This machine has no APT source for {name}: " + ("the image's own serve" if way == "registry" else "debootstrap's own default serves"))
    bare = base(name, sources)
    with step(f"Giving {name} this machine's certificates, APT sources and pip configuration", "10-20 s"):
        changes = [f"ENV {key}={value}" for key, value in sorted(environment.items())]
        changes += ["ENV container=docker", 'CMD ["/usr/local/lib/lab/init"]']
        _commit(bare, placed, finish, environment, tag, changes)
    say(f"Image {tag} is ready (engine {engine.facts()['version']})")
    return tag
