# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab: one network, one mirror and hosts that run systemd, all under one name."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import pathlib
import platform
import re
import time
from datetime import datetime, timezone

from . import driver_repo, engine, hardware, image, mirror, world
from .shell import LabError, as_root, cache, docker, interactive, run, say, step, wait_for

NAME = re.compile(r"^[a-z0-9][a-z0-9-]{0,30}$")
KEYS = {"name", "image", "card", "tmpfs", "front", "bare", "cgroup"}
"""bare: true makes a host without a driver, which takes one from the lab's packages and can be rebooted."""

BRANCH = "gpufleet-lab"
"""Below it lie the control groups of hosts that have v2 on a machine with v1."""

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


def folder(name):
    """Return the folder with everything that a lab has on this machine besides caches; gone after `down`."""
    return cache("labs", name)


def mirror_folder(name):
    """Return the folder that a lab's mirror serves; its faults and its access log are in it."""
    return folder(name) / "mirror"


def parse_host(text):
    """Return the host of NAME[:IMAGE[:CARD]] on the command line."""
    parts = text.split(":")
    return dict(zip(("name", "image", "card"), [part for part in parts if part]))


def check_hosts(hosts):
    """Return the hosts with defaults filled in; LabError where one is not understood."""
    checked = []
    for host in hosts:
        unknown = set(host) - KEYS
        if unknown:
            raise LabError(f"Host {host.get('name')!r} of the lab has unknown keys {', '.join(sorted(unknown))}; known are {', '.join(sorted(KEYS))}.")
        full = {
            "image": "debian12",
            "card": None,
            "tmpfs": {},
            "front": None,
            "cgroup": None,
            **{key: value for key, value in host.items() if value is not None},
        }
        if not NAME.match(full.get("name", "")) or full["name"] == "mirror":
            raise LabError(f"{full.get('name')!r} cannot be a host of the lab: wanted are small letters, digits and dashes, and not `mirror`.")
        if full["image"] not in world.PLATFORMS:
            raise LabError(f"Host {full['name']} of the lab asks for image {full['image']!r}; there are {', '.join(world.PLATFORMS)}.")
        checked.append(full)
    if len({host["name"] for host in checked}) != len(checked):
        raise LabError("Two hosts of the lab have the same name.")
    return checked


def check_name(name):
    """Refuse a lab name that cannot be part of a container's name."""
    if not NAME.match(name):
        raise LabError(f"{name!r} cannot name a lab: wanted are small letters, digits and dashes.")


def state(name):
    """Return what `up` recorded of a lab, or None."""
    try:
        return json.loads((folder(name) / "lab.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None


def _write_state(name, content):
    path = folder(name) / "lab.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def _running(container_name):
    """Return None if there is no such container, else whether it runs."""
    said = docker("inspect", "--format", "{{.State.Running}}", container_name, check=False)
    return None if said.returncode else said.stdout.strip() == "true"


def _cgroup_words(cgroup, image_name, wanted=None):
    """Return (engine options, words of PID 1) that let systemd manage its own control groups without --privileged.

    cgroup: what the machine has; wanted: 2 for a host that is to have v2 whatever the machine has.
    """
    init = "/usr/local/lib/lab/init"
    if cgroup == 2:
        return ["--cgroupns", "private"], [init]
    if wanted == 2:
        if "cgroup2" not in pathlib.Path("/proc/filesystems").read_text(encoding="utf-8").split():
            raise LabError("A host of the lab asks for cgroup v2, and this machine's kernel has none. Run that host on another machine.")
        return [], ["/usr/local/lib/lab/init-v2"]
    words = ["--volume", "/sys/fs/cgroup/systemd:/sys/fs/cgroup/systemd:rw"]
    # systemd 256 and 257 refuse cgroup v1 unless told on their command line; 258 and later cannot use it at all.
    if image_name == "ubuntu2604":
        raise LabError("This machine has cgroup v1, and systemd of ubuntu2604 needs cgroup v2. Run that host on a machine with v2, or take another image.")
    return words, [init, "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"] if image_name == "debian13" else [init]


def _forget_branch(box):
    """Remove the empty control groups that a host with cgroup v2 of its own has left on a machine with v1."""
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        branch = os.path.join(root, BRANCH, box)
        if os.path.isdir(branch):
            run(as_root(["find", branch, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]), check=False)


def _start_host(name, host, tag, cgroup):
    """Create and boot one host; return the seconds that it took."""
    start = time.monotonic()
    box = container(name, host["name"])
    if _running(box) is not None:
        docker("rm", "--force", "--volumes", box)
    _forget_branch(box)
    cgroup_words, init_words = _cgroup_words(cgroup, host["image"], host["cgroup"])
    archives = cache("apt", f"{name}-{host['name']}-{host['image']}")
    pip = cache("pip")
    for path in (archives, pip):
        path.mkdir(parents=True, exist_ok=True)
    words = [
        "create",
        "--name",
        box,
        "--hostname",
        host["name"],
        "--label",
        f"gpufleet.lab={name}",
        "--label",
        f"gpufleet.host={host['name']}",
        "--network",
        network(name),
        "--network-alias",
        host["name"],
        # What a host's root has and a container's lacks: mounts for the sandboxes of units,
        # addresses, and a look into other users' processes.
        "--cap-add",
        "SYS_ADMIN",
        "--cap-add",
        "NET_ADMIN",
        "--cap-add",
        "SYS_PTRACE",
        "--security-opt",
        "seccomp=unconfined",
        "--security-opt",
        "apparmor=unconfined",
        "--tmpfs",
        "/run",
        "--tmpfs",
        "/run/lock",
        "--tmpfs",
        "/tmp:exec",
        "--stop-signal",
        "SIGRTMIN+3",
        "--env",
        f"LAB_BRANCH={box}",
        *cgroup_words,
        "--volume",
        f"{pip}:/root/.cache/pip",
        "--volume",
        f"{archives}:/var/cache/apt/archives",
    ]
    for path, options in host["tmpfs"].items():
        words += ["--tmpfs", f"{path}:{options}"]
    if host.get("bare"):
        words += ["--restart", "unless-stopped"]  # so a host that reboots comes back
    words += [tag, *init_words]
    docker(*words)
    docker(
        "cp",
        "--archive",
        "-",
        f"{box}:/",
        stdin=image.archive({**_files(name, host), "/usr/local/lib/lab/init-v2": (INIT_V2, 0o755)}),
    )
    docker("start", box)
    booted(box)
    wait_for(
        f"The simulated card of {box}",
        lambda: (
            docker(
                "exec",
                box,
                "sh",
                "-c",
                "systemctl -q is-active lab-card lab-devices && test -s /run/nvml-sim/state",
                check=False,
            ).returncode
            == 0
        ),
        20,
    )
    docker("exec", box, "ldconfig")
    _refresh_lists(box, tag)
    return time.monotonic() - start


def booted(box):
    """Wait until systemd says that the host runs; LabError with the failed units if it does not get there."""

    def look():
        said = docker("exec", box, "systemctl", "is-system-running", check=False).stdout.strip()
        if said in ("running", "degraded"):
            return said
        if not _running(box):
            raise LabError(f"{box} ended while booting:\n{docker('logs', '--tail', '20', box, check=False).stdout}")
        return None

    if wait_for(f"{box} booting", look, 60) == "degraded":
        units = docker("exec", box, "systemctl", "--failed", "--no-legend", "--plain", check=False).stdout
        logs = [
            docker("exec", box, "journalctl", "--no-pager", "-n", "8", "-u", line.split()[0], check=False).stdout for line in units.splitlines() if line.strip()
        ]
        raise LabError(f"{box} is up, but these units failed:\n{units}\n" + "\n".join(logs))


def _refresh_lists(box, tag):
    """Bring APT's lists up to date where the image is older than a day, as a server's own timer does."""
    made = docker("image", "inspect", "--format", "{{.Created}}", tag).stdout.strip()[:19]
    age = datetime.now(timezone.utc) - datetime.strptime(made, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    if age.total_seconds() > 86400:
        docker("exec", box, "apt-get", "update", "-q")


def _files(name, host):
    """Return what is laid into a host's container before it boots."""
    return hardware.files(mirror_folder(name), host["card"], host["front"], host["image"] if host.get("bare") else None)


def recipe(name, host, tag, server):
    """Return a digest of what a host is made from: a host of another recipe, or of another server, is made anew."""
    laid = {path: [str(part) for part in value] for path, value in _files(name, host).items()}
    return hashlib.sha256(json.dumps([host, tag, server, laid], sort_keys=True).encode()).hexdigest()[:12]


def _boot(name, hosts, tags, cgroup):
    """Create and boot hosts side by side."""
    how = "the systemd hierarchy of cgroup v1 shared with this machine"
    if cgroup == 2:
        how = "a private cgroup v2 namespace, remounted writable"
    elif any(host["cgroup"] == 2 for host in hosts):
        how += "; " + ", ".join(host["name"] for host in hosts if host["cgroup"] == 2) + " with a branch of cgroup v2, without controllers"
    what = f"Booting {', '.join(host['name'] for host in hosts)} in lab {name}, with {how}"
    with step(what, "2-4 s a host"), concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        jobs = [pool.submit(_start_host, name, host, tags[host["image"]], cgroup) for host in hosts]
        for job in concurrent.futures.as_completed(jobs):
            job.result()


def up(name, hosts, server=None, shape=None):
    """Bring a lab up: what is there and of the same recipe stays, what is missing is made."""
    check_name(name)
    hosts = check_hosts(hosts)
    engine.up()
    facts = engine.facts()
    if platform.machine() != "x86_64":
        raise LabError(f"The lab's hosts are x86_64; this machine is {platform.machine()}.")
    tags = {kind: image.build(kind) for kind in sorted({host["image"] for host in hosts} | {"debian12"})}
    grade = mirror.grade(server)
    shape = shape or os.environ.get("LAB_SHAPE") or "full"
    known = state(name) or {"hosts": {}, "faults": []}
    if docker("network", "inspect", network(name), check=False).returncode:
        docker("network", "create", "--label", f"gpufleet.lab={name}", network(name))
    mirror.lay_out(mirror_folder(name), grade, shape)
    if any(host.get("bare") for host in hosts):
        driver_repo.lay_out(mirror_folder(name))
    mirror.start(name, network(name), tags["debian12"], mirror_folder(name))
    _write_state(name, {**known, "server": grade, "shape": shape})
    wanted = []
    for host in hosts:
        host["recipe"] = recipe(name, host, tags[host["image"]], grade)
        have = known["hosts"].get(host["name"], {}).get("recipe")
        if have != host["recipe"] or not _running(container(name, host["name"])):
            wanted.append(host)
    if wanted:
        _boot(name, wanted, tags, facts["cgroup"])
    hardware.place_cards(name, hosts, grade)
    for host in hosts:
        host["address"] = address(name, host["name"])
    recorded = {**known["hosts"], **{host["name"]: host for host in hosts}}
    _write_state(
        name,
        {
            "name": name,
            "server": grade,
            "shape": shape,
            # Whose signature the packages of the lab's drivers carry; the inventory of a bare host asks for it.
            "driver_key": driver_repo.fingerprint() if any(host.get("bare") for host in recorded.values()) else None,
            "cgroup": facts["cgroup"],
            "hosts": recorded,
            "faults": known.get("faults", []),
        },
    )
    for host in hosts:
        say(f"{host['name']} runs ({host['image']}, {host['address']}): docker exec -it {container(name, host['name'])} bash")


def address(name, host):
    """Return the address of a host on its lab's network, reachable from the controller."""
    said = docker("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", container(name, host), check=False)
    if said.returncode or not said.stdout.strip():
        raise LabError(f"Lab {name} has no running host {host}. `lab up` makes it; `lab status` lists what there is.")
    return said.stdout.strip()


def down(name):
    """Take a lab away: containers, anonymous volumes, network and files."""
    check_name(name)
    gone = []
    if engine.answers():
        boxes = docker("ps", "--all", "--quiet", "--filter", f"label=gpufleet.lab={name}").stdout.split()
        if boxes:
            names_of = docker("ps", "--all", "--format", "{{.Names}}", "--filter", f"label=gpufleet.lab={name}").stdout.split()
            docker("rm", "--force", "--volumes", *boxes)
            for box in names_of:
                _forget_branch(box)
            gone.append(f"{len(boxes)} containers")
        if docker("network", "inspect", network(name), check=False).returncode == 0:
            docker("network", "rm", network(name))
            gone.append("the network")
    elif folder(name).exists():
        say("No Docker engine answers: containers of the lab, if there are any, cannot be removed now")
    if folder(name).exists():
        run(as_root(["rm", "-rf", "--one-file-system", folder(name)]))
        gone.append("its files")
    say(f"Lab {name}: removed {', '.join(gone)}" if gone else f"Lab {name}: there was nothing")


def names():
    """Return the names of the labs of which there is a container, a network or a file."""
    found = {path.name for path in cache("labs").iterdir() if path.is_dir()} if cache("labs").is_dir() else set()
    if engine.answers():
        for what in ("ps --all", "network ls"):
            said = docker(*what.split(), "--filter", "label=gpufleet.lab", "--format", '{{.Label "gpufleet.lab"}}').stdout
            found |= {line for line in said.split() if line != "image"}
    return sorted(found)


def status(name=None):
    """Print what there is."""
    if not engine.answers():
        say("No Docker engine answers")
        return
    for lab in [name] if name else names():
        known = state(lab) or {}
        say(f"lab {lab}: server {known.get('server', 'unknown')}, faults: {', '.join(' '.join(fault) for fault in known.get('faults', [])) or 'none'}")
        said = docker("ps", "--all", "--filter", f"label=gpufleet.lab={lab}", "--format", "  {{.Names}}\t{{.Status}}\t{{.Image}}").stdout
        print(said, end="", flush=True)


def enter(name, host, command):
    """Become a command inside a host."""
    address(name, host)
    words = [
        "docker",
        "exec",
        "-i",
        *(["-t"] if os.isatty(0) and os.isatty(1) else []),
        container(name, host),
        *(command or ["bash"]),
    ]
    interactive(words)


def note_fault(name, fault):
    """Record a fault that was injected, as [host, fault, arguments…]."""
    known = state(name)
    _write_state(name, {**known, "faults": [*[one for one in known.get("faults", []) if one[:2] != fault[:2]], fault]})


def forget_fault(name, host, fault):
    """Record that a fault was healed."""
    known = state(name)
    _write_state(name, {**known, "faults": [one for one in known.get("faults", []) if one[:2] != [host, fault]]})
