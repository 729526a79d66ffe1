# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a lab host has that a container has not: a GPU that NVML shows, its device nodes, the kernel's files about it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile

from . import engine, image
from .shell import LAB, LabError, cache, run, say

NVML = LAB / "nvml"
LIBRARY = "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
ROOTFS = "/var/lib/lab/rootfs"
SIMULATOR = "/usr/local/lib/nvml-sim"
PLACE = "/usr/local/lib/lab/place"
STORE = "/var/lib/ollama/models"
OLDEST_LIBC = (2, 36)
"""The C library of Debian 12: what is built against a newer one may not load there."""

DEVICES = """\
#!/bin/sh
# The driver makes these on a real host. /dev of a container is a tmpfs, so they are made at every boot.
set -e
make() { [ -e "$1" ] || mknod -m 0666 "$1" c "$2" "$3"; }
cards=$(python3 -c 'import json; print(len(json.load(open("/etc/nvml-sim/card.json"))["gpus"]))')
number=0
while [ "$number" -lt "$cards" ]; do
    make "/dev/nvidia$number" 195 "$number"
    number=$((number + 1))
done
make /dev/nvidiactl 195 255
make /dev/nvidia-uvm 511 0
"""

DEVICES_UNIT = """\
[Unit]
Description=Device nodes of the lab's GPUs
DefaultDependencies=no
After=local-fs.target
Before=basic.target

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/lab/devices

[Install]
WantedBy=sysinit.target
"""

BARE = """\
#!/bin/sh
# A host that comes without a driver: its simulated kernel loads what is on its disk.
exec /usr/local/lib/lab/lab_driver.py boot
"""

KERNEL_SOURCE = """\
Types: deb
URIs: https://mirror/kernel/{system}/
Suites: /
Signed-By: /usr/share/keyrings/lab-kernel.gpg
"""

KERNEL_PREFERENCE = """\
Package: linux-*
Pin: release l=gpufleet lab kernels
Pin-Priority: 1001
"""

PLACE_UNIT = f"""\
[Unit]
Description=Weights of the lab's models, as holes, once a role has made the store

[Service]
Type=exec
ExecStart=/usr/bin/python3 -I /usr/local/lib/lab/place_blob.py {STORE} {PLACE}/place.json --wait 864000

[Install]
WantedBy=multi-user.target
"""

FRONT_SOCKET = """\
[Unit]
Description=The controller's way to Open WebUI, in place of ssh -L

[Socket]
ListenStream={port}

[Install]
WantedBy=sockets.target
"""

FRONT_SERVICE = """\
[Unit]
Description=The controller's way to Open WebUI, in place of ssh -L
Requires=lab-front.socket
After=lab-front.socket

[Service]
ExecStart=/lib/systemd/systemd-socket-proxyd 127.0.0.1:8080
DynamicUser=yes
"""


def _source_digest(names):
    digest = hashlib.sha256()
    for name in sorted(names):
        digest.update(name.encode() + b"\0" + (NVML / name).read_bytes())
    return digest.hexdigest()[:12]


def library(version=None):
    """Return the path of the NVML simulator, compiled if its source has changed. version: of the driver that it belongs to."""
    sources = [path.name for path in NVML.iterdir() if path.suffix in (".c", ".h", ".map", ".sh", ".py")]
    if "build.sh" not in sources:
        raise LabError(f"{NVML}/build.sh is missing: this checkout has no NVML simulator.")
    built = cache("nvml", _source_digest(sources) + (f"-{version}" if version else ""))
    target = built / "libnvidia-ml.so.1"
    if target.exists():
        return target
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent) as work:
        libc = tuple(int(part) for part in os.confstr("CS_GNU_LIBC_VERSION").split()[-1].split("."))
        if libc <= OLDEST_LIBC:
            say("Compiling the NVML simulator (2 s)")
            run(["sh", NVML / "build.sh", work, *([version] if version else [])])
        else:
            say(f"Compiling the NVML simulator in a Debian 12 container: this machine's C library {libc[0]}.{libc[1]} is newer than a host's (60 s)")
            script = "apt-get update -q && apt-get install -q -y --no-install-recommends gcc libc6-dev && sh /nvml/build.sh /out " + (version or "")
            volumes = [f"{NVML}:/nvml:ro", f"{work}:/out"]
            engine.client().containers.run(image.build("debian12"), ["sh", "-c", script], remove=True, labels={engine.LABEL: "image"}, volumes=volumes)
        built.mkdir(exist_ok=True)
        os.replace(os.path.join(work, "libnvidia-ml.so.1"), target)
    return target


def _rootfs(*words):
    """Return {path: (content, mode)} of the kernel's files about the driver, below ROOTFS. words: options of make_rootfs.py."""
    with tempfile.TemporaryDirectory() as work:
        run([sys.executable, NVML / "make_rootfs.py", work, *words])
        found = {}
        for folder, _folders, names in os.walk(work):
            for name in names:
                path = os.path.join(folder, name)
                inside = ROOTFS + path[len(work) :]
                if os.path.islink(path):
                    found[inside] = ("->", os.readlink(path))
                else:
                    with open(path, "rb") as handle:
                        found[inside] = (handle.read(), 0o755 if os.access(path, os.X_OK) else 0o644)
    return found


def _weights(mirror):
    """Return {path: (content, mode)} of what puts a mirror's large weights into a host's store: holes, not 9 GB of zeros."""
    placed = {"/usr/local/lib/lab/place_blob.py": ((LAB / "services" / "place_blob.py").read_bytes(), 0o755)}
    for path in [mirror / "place.json", *sorted((mirror / "headers").iterdir())]:
        placed[f"{PLACE}/{path.relative_to(mirror)}"] = (path.read_bytes(), 0o644)
    placed["/etc/systemd/system/lab-place.service"] = (PLACE_UNIT, 0o644)
    placed["/etc/systemd/system/multi-user.target.wants/lab-place.service"] = ("->", "/etc/systemd/system/lab-place.service")
    return placed


def _bare(description, system):
    """Return {path: (content, mode)} of a host to which a driver comes by packages: card, kernel, the distribution's kernel archive."""
    from . import driver_repo

    distribution = system.rstrip("0123456789")
    release = driver_repo.KERNELS[distribution][0]
    card = {**json.loads(description.read_text(encoding="utf-8")), "kernel": ROOTFS}
    program = "/usr/local/lib/lab/lab_driver.py"
    placed = {
        "/etc/nvml-sim/card.json": (json.dumps(card, indent=2) + "\n", 0o644),
        program: ((LAB / "driver" / "lab_driver.py").read_bytes(), 0o755),
        "/usr/local/lib/lab/make_rootfs.py": ((NVML / "make_rootfs.py").read_bytes(), 0o644),
        "/usr/local/lib/lab/devices": (BARE, 0o755),
        "/etc/apt/sources.list.d/lab-kernel.sources": (KERNEL_SOURCE.format(system=system), 0o644),
        "/etc/apt/preferences.d/lab-kernel": (KERNEL_PREFERENCE, 0o644),
        "/etc/dpkg/dpkg.cfg.d/lab": ("force-unsafe-io\n", 0o644),  # nobody misses a throw-away host after a power cut
        "/usr/share/keyrings/lab-kernel.gpg": ((driver_repo.key_home() / "keyring.gpg").read_bytes(), 0o644),
        **_rootfs("--not-loaded", "--kernel", release, "--without", release),
    }
    for index, gpu in enumerate(card["gpus"]):
        for name, text in (("vendor", "0x10de"), ("class", "0x030000"), ("device", gpu.get("pci_device", "0x2684"))):
            placed[f"{ROOTFS}/sys/bus/pci/devices/0000:{index + 1:02x}:00.0/{name}"] = (text + "\n", 0o644)
    for name in ("modprobe", "update-initramfs"):
        placed[f"/usr/local/sbin/{name}"] = ("->", program)
    return placed


def files(mirror, card=None, front=None, bare=None):
    """Return {path: (content, mode)} that turns a container into a host with a GPU.

    mirror: the folder of the lab's mirror. card: a card.json (relative to lab/nvml or absolute), default one
    RTX 4090. front: a port that leads to Open WebUI. bare: the system of a host that comes without a driver.
    """
    description = NVML / (card or "card-4090.json")
    if not description.exists():
        raise LabError(f"There is no description of a card at {description}.")
    placed = {
        LIBRARY: (library().read_bytes(), 0o755),
        "/usr/lib/x86_64-linux-gnu/libnvidia-ml.so": ("->", "libnvidia-ml.so.1"),
        "/etc/nvml-sim/card.json": (description.read_bytes(), 0o644),
        f"{SIMULATOR}/lab_card.py": ((NVML / "lab_card.py").read_bytes(), 0o755),
        "/usr/local/lib/lab/devices": (DEVICES, 0o755),
        "/etc/systemd/system/lab-card.service": ((NVML / "lab-card.service").read_bytes(), 0o644),
        "/etc/systemd/system/lab-devices.service": (DEVICES_UNIT, 0o644),
        "/etc/systemd/system/sysinit.target.wants/lab-card.service": ("->", "/etc/systemd/system/lab-card.service"),
        "/etc/systemd/system/sysinit.target.wants/lab-devices.service": ("->", "/etc/systemd/system/lab-devices.service"),
        **_rootfs(),
        **_weights(mirror),
    }
    if bare:
        placed = {path: what for path, what in placed.items() if not path.startswith((ROOTFS, "/usr/lib/x86_64-linux-gnu/"))}
        placed.update(_bare(description, bare))
    if front:
        placed["/etc/systemd/system/lab-front.socket"] = (FRONT_SOCKET.format(port=front), 0o644)
        placed["/etc/systemd/system/lab-front.service"] = (FRONT_SERVICE, 0o644)
        placed["/etc/systemd/system/sockets.target.wants/lab-front.socket"] = ("->", "/etc/systemd/system/lab-front.socket")
    return placed


def place_cards(name, hosts, server):
    """Give each host the card that the real server computes on, where the real server serves."""
    hook = LAB / "real" / "place_card"
    if server != "real" or not os.access(hook, os.X_OK):
        return
    for host in hosts:
        done = subprocess.run([str(hook), f"gpufleet-{name}-{host['name']}"], stdin=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise LabError(f"{hook} ended with {done.returncode} for {host['name']}; what it said stands above.")
