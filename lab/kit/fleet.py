# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A lab: one network, one mirror and hosts that run systemd, all under one name."""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import os
import platform
import time
from datetime import datetime, timezone

from . import driver_repo, engine, hardware, hosts, image, mirror
from .hosts import container, network
from .shell import LabError, as_root, cache, interactive, run, say, step, wait_for
from .state import folder, mirror_folder, state, write

READY = "systemctl -q is-active lab-card lab-devices && test -s /run/nvml-sim/state"


def _forget_branch(box):
    """Remove the empty control groups that a host with cgroup v2 of its own has left on a machine with v1."""
    for root in ("/sys/fs/cgroup/unified", "/sys/fs/cgroup"):
        branch = os.path.join(root, hosts.BRANCH, box)
        if os.path.isdir(branch):
            run(as_root(["find", branch, "-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]), check=False)


def _start_host(name, host, tag, cgroup):
    """Create and boot one host; return the seconds that it took."""
    start = time.monotonic()
    box = container(name, host["name"])
    engine.remove(box)
    _forget_branch(box)
    settings, command = hosts.container_settings(name, host, cgroup)
    alias = {network(name): engine.client().api.create_endpoint_config(aliases=[host["name"]])}
    made = engine.client().containers.create(tag, command, network=network(name), networking_config=alias, **settings)
    made.put_archive("/", image.archive({**_files(name, host), f"{hosts.INIT}-v2": (hosts.INIT_V2, 0o755)}))
    made.start()
    booted(box)
    wait_for(f"The simulated card of {box}", lambda: engine.execute(box, "sh", "-c", READY, check=False).code == 0, 20)
    engine.execute(box, "ldconfig")
    _refresh_lists(box, tag)
    return time.monotonic() - start


def booted(box):
    """Wait until systemd says that the host runs; LabError with the failed units if it does not get there."""

    def look():
        if not engine.runs(box):
            raise LabError(f"{box} ended while booting:\n{engine.find(box).logs(tail=20).decode(errors='replace')}")
        said = engine.execute(box, "systemctl", "is-system-running", check=False).out.strip()
        return said if said in ("running", "degraded") else None

    if wait_for(f"{box} booting", look, 60) == "degraded":
        units = engine.execute(box, "systemctl", "--failed", "--no-legend", "--plain", check=False).out
        failed = [line.split()[0] for line in units.splitlines() if line.strip()]
        logs = [engine.execute(box, "journalctl", "--no-pager", "-n", "8", "-u", unit, check=False).out for unit in failed]
        raise LabError(f"{box} is up, but these units failed:\n{units}\n" + "\n".join(logs))


def _refresh_lists(box, tag):
    """Bring APT's lists up to date where the image is older than a day, as a server's own timer does."""
    made = datetime.strptime(engine.image(tag).attrs["Created"][:19], "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc)
    if (datetime.now(timezone.utc) - made).total_seconds() > 86400:
        engine.execute(box, "apt-get", "update", "-q")


def _files(name, host):
    """Return what is put into a host's container before it boots."""
    return hardware.files(mirror_folder(name), host["card"], host["front"], host["image"] if host["bare"] else None)


def recipe(name, host, tag, server):
    """Return a digest of what a host is made from: a host of another recipe, or of another server, is made again."""
    files = {path: [str(part) for part in value] for path, value in _files(name, host).items()}
    return hashlib.sha256(json.dumps([host, tag, server, files, hosts.CONTAINER], sort_keys=True).encode()).hexdigest()[:12]


def _boot(name, wanted, tags, cgroup):
    """Create and boot hosts side by side."""
    how = "the systemd hierarchy of cgroup v1 shared with this machine"
    if cgroup == 2:
        how = "a private cgroup v2 namespace, remounted writable"
    elif any(host["cgroup"] == 2 for host in wanted):
        how += "; " + ", ".join(host["name"] for host in wanted if host["cgroup"] == 2) + " with a branch of cgroup v2, without controllers"
    what = f"Booting {', '.join(host['name'] for host in wanted)} in lab {name}, with {how}"
    with step(what, "2-4 s a host"), concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        jobs = [pool.submit(_start_host, name, host, tags[host["image"]], cgroup) for host in wanted]
        for job in concurrent.futures.as_completed(jobs):
            job.result()


def up(name, asked, server=None, shape=None):
    """Bring a lab up: what is there and of the same recipe stays, what is missing is made. asked: its hosts, see hosts.DEFAULTS."""
    hosts.check_name(name)
    wanted = hosts.check(asked)
    engine.up()
    cgroup = engine.facts()["cgroup"]
    if platform.machine() != "x86_64":
        raise LabError(f"The lab's hosts are x86_64; this machine is {platform.machine()}.")
    tags = {kind: image.build(kind) for kind in sorted({host["image"] for host in wanted} | {"debian12"})}
    grade, shape = mirror.grade(server), shape or os.environ.get("LAB_SHAPE") or "full"
    known = state(name) or {"hosts": {}, "faults": []}
    if not engine.client().networks.list(names=[f"^{network(name)}$"]):
        engine.client().networks.create(network(name), labels={engine.LABEL: name})
    mirror.lay_out(mirror_folder(name), grade, shape)
    if any(host["bare"] for host in wanted):
        driver_repo.lay_out(mirror_folder(name))
    mirror.start(name, network(name), tags["debian12"], mirror_folder(name))
    write(name, {**known, "server": grade, "shape": shape})
    missing = []
    for host in wanted:
        host["recipe"] = recipe(name, host, tags[host["image"]], grade)
        same = known["hosts"].get(host["name"], {}).get("recipe") == host["recipe"]
        if not same or not engine.runs(container(name, host["name"])):
            missing.append(host)
    if missing:
        _boot(name, missing, tags, cgroup)
    hardware.place_cards(name, wanted, grade)
    for host in wanted:
        host["address"] = address(name, host["name"])
        say(f"{host['name']} runs ({host['image']}, {host['address']}): docker exec -it {container(name, host['name'])} bash")
    recorded = {**known["hosts"], **{host["name"]: host for host in wanted}}
    # Whose signature the packages of the lab's drivers carry; the inventory of a bare host asks for it.
    key = driver_repo.fingerprint() if any(host.get("bare") for host in recorded.values()) else None
    facts = {"name": name, "server": grade, "shape": shape, "driver_key": key, "cgroup": cgroup}
    write(name, {**facts, "hosts": recorded, "faults": known.get("faults", [])})


def address(name, host):
    """Return the address of a host on its lab's network, reachable from the controller."""
    found = engine.find(container(name, host))
    networks = found.attrs["NetworkSettings"]["Networks"].values() if found else []
    addresses = [one["IPAddress"] for one in networks if one["IPAddress"]]
    if not addresses:
        raise LabError(f"Lab {name} has no running host {host}. `lab up` makes it; `lab status` lists what there is.")
    return addresses[0]


def down(name):
    """Remove a lab: containers, anonymous volumes, network and files."""
    hosts.check_name(name)
    gone = []
    if engine.answers():
        boxes = engine.containers(name)
        for box in boxes:
            box.remove(force=True, v=True)
            _forget_branch(box.name)
        gone += [f"{len(boxes)} containers"] if boxes else []
        for one in engine.client().networks.list(names=[f"^{network(name)}$"]):
            one.remove()
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
        found |= {box.labels[engine.LABEL] for box in engine.containers()}
        found |= {one.attrs["Labels"][engine.LABEL] for one in engine.client().networks.list(filters={"label": engine.LABEL})}
    return sorted(found - {"image"})


def status(name=None):
    """Print what there is."""
    if not engine.answers():
        say("No Docker engine answers")
        return
    for lab in [name] if name else names():
        known = state(lab) or {}
        faults = ", ".join(" ".join(fault) for fault in known.get("faults", [])) or "none"
        say(f"lab {lab}: server {known.get('server', 'unknown')}, faults: {faults}")
        for box in engine.containers(lab):
            print(f"  {box.name}\t{box.status}\t{box.attrs['Config']['Image']}", flush=True)


def enter(name, host, command):
    """Become a command inside a host: docker's own client has the terminal, the signals and the exit status."""
    address(name, host)
    terminal = ["-t"] if os.isatty(0) and os.isatty(1) else []
    interactive(["docker", "exec", "-i", *terminal, container(name, host), *(command or ["bash"])])
