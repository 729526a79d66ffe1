# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a host of the lab is, as data: what may be asked of it, and how its container is made."""

from __future__ import annotations

import pathlib
import re

from . import world
from .shell import LabError, cache

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,30}$")

DEFAULTS = {"image": "debian12", "card": None, "tmpfs": {}, "front": None, "cgroup": None, "bare": None}
"""What may be said of a host besides its name.

image: the system. card: a file of lab/nvml. tmpfs: {path: options}. front: a port that leads to Open WebUI. cgroup: 2 for
cgroup v2 whatever the machine has. bare: true makes a host without a driver, which takes one from the lab's packages and
can be rebooted.
"""

CONTAINER = {
    # What a host's root has and a container's lacks: mounts for the sandboxes of units, addresses, and a look into other
    # users' processes.
    "cap_add": ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE"],
    "security_opt": ["seccomp=unconfined", "apparmor=unconfined"],
    "stop_signal": "SIGRTMIN+3",
}
TMPFS = {"/run": "", "/run/lock": "", "/tmp": "exec"}

BRANCH = "gpufleet-lab"
"""Below it are the control groups of hosts that have v2 on a machine with v1."""

INIT = "/usr/local/lib/lab/init"
INIT_V2 = f"""#!/bin/sh
# PID 1 of a lab host with cgroup v2 on a machine that itself has v1: a branch of its own of the machine's v2 hierarchy, which
# carries no controllers there, but the filters for addresses and devices that systemd hangs on it.
set -e
mkdir -p /mnt/cgroup
mount -t cgroup2 none /mnt/cgroup
mkdir -p "/mnt/cgroup/{BRANCH}/$LAB_BRANCH"
echo $$ > "/mnt/cgroup/{BRANCH}/$LAB_BRANCH/cgroup.procs"
umount /mnt/cgroup
exec unshare -C sh -c 'umount -R /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup; exec /sbin/init'
"""


def network(name):
    """Return the name of a lab's network."""
    return f"gpufleet-{name}"


def container(name, host):
    """Return the name of a host's container; the inventories build the same."""
    return f"gpufleet-{name}-{host}"


def parse(text):
    """Return the host of NAME[:IMAGE[:CARD]] on the command line."""
    return dict(zip(("name", "image", "card"), [part for part in text.split(":") if part]))


def check_name(name):
    """Refuse a lab name that cannot be part of a container's name."""
    if not NAME.match(name):
        raise LabError(f"{name!r} cannot name a lab: wanted are small letters, digits and dashes.")


def check(hosts):
    """Return the hosts with defaults filled in; LabError where one is not understood."""
    checked = []
    for host in hosts:
        unknown = set(host) - {"name", *DEFAULTS}
        if unknown:
            known = ", ".join(sorted({"name", *DEFAULTS}))
            raise LabError(f"Host {host.get('name')!r} of the lab has unknown keys {', '.join(sorted(unknown))}; known are {known}.")
        full = {**DEFAULTS, **{key: value for key, value in host.items() if value is not None}}
        if not NAME.match(full.get("name", "")) or full["name"] == "mirror":
            raise LabError(f"{full.get('name')!r} cannot be a host of the lab: wanted are small letters, digits and dashes, and not `mirror`.")
        if full["image"] not in world.PLATFORMS:
            raise LabError(f"Host {full['name']} of the lab asks for image {full['image']!r}; there are {', '.join(world.PLATFORMS)}.")
        checked.append(full)
    if len({host["name"] for host in checked}) != len(checked):
        raise LabError("Two hosts of the lab have the same name.")
    return checked


def cgroup_settings(cgroup, host):
    """Return (settings of the container, words of PID 1) that let systemd manage its own control groups without --privileged.

    cgroup: what the machine has.
    """
    if cgroup == 2:
        return {"cgroupns": "private"}, [INIT]
    if host["cgroup"] == 2:
        if "cgroup2" not in pathlib.Path("/proc/filesystems").read_text(encoding="utf-8").split():
            raise LabError("A host of the lab asks for cgroup v2, and this machine's kernel has none. Run that host on another machine.")
        return {}, [f"{INIT}-v2"]
    # systemd 256 and 257 refuse cgroup v1 unless told on their command line; 258 and later cannot use it at all.
    if host["image"] == "ubuntu2604":
        raise LabError("This machine has cgroup v1, and systemd of ubuntu2604 needs cgroup v2. Run that host on a machine with v2, or take another image.")
    words = ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"] if host["image"] == "debian13" else []
    return {"volumes": ["/sys/fs/cgroup/systemd:/sys/fs/cgroup/systemd:rw"]}, [INIT, *words]


def container_settings(name, host, cgroup):
    """Return (settings, command) for docker's `containers.create`: everything but the image and the network."""
    box = container(name, host["name"])
    shared, command = cgroup_settings(cgroup, host)
    archives, pip = cache("apt", f"{name}-{host['name']}-{host['image']}"), cache("pip")
    for path in (archives, pip):
        path.mkdir(parents=True, exist_ok=True)
    volumes = [*shared.pop("volumes", []), f"{pip}:/root/.cache/pip", f"{archives}:/var/cache/apt/archives"]
    again = {"restart_policy": {"Name": "unless-stopped"}} if host["bare"] else {}  # so a host that reboots comes back
    settings = {
        **CONTAINER, **shared, **again, "name": box, "hostname": host["name"], "volumes": volumes,
        "labels": {"gpufleet.lab": name, "gpufleet.host": host["name"]}, "tmpfs": {**TMPFS, **host["tmpfs"]},
        "environment": {"LAB_BRANCH": box},
    }  # fmt: skip
    return settings, command
