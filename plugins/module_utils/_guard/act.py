# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The privileged part: started by systemd as root when the guard has left a request.

It believes nothing of that request but its words, and checks the process again before it touches it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import time

from .._host.processes import describe
from . import files
from .actions import request_path
from .files import GuardError, is_kind
from .gpus import account, arguments, kind_of, process_stat
from .state import clocks

REQUEST_KEYS = {
    "restart": {"kind", "boottime", "boot", "unit", "go"},
    "end": {"kind", "boottime", "boot", "pid", "start"},
}


def checked_request(text, config, clock):
    """The request if it is one of the two that exist, fresh, and about our unit; GuardError otherwise."""
    try:
        request = json.loads(text)
        kind = request["kind"]
        if set(request) != REQUEST_KEYS[kind]:
            raise ValueError("other keys than wanted")
        if not is_kind(request["boottime"], float):
            raise ValueError(f"{request['boottime']!r} is no time")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise GuardError(f"The request cannot be used ({error}); nothing was done.") from error
    age = clock["mono"] - request["boottime"]
    if config["mode"] != "act":
        raise GuardError("A request came although the mode is dry_run; nothing was done.")
    if request["boot"] != clock["boot"] or not -1 <= age <= 60:
        raise GuardError(
            f"The request is {age:.0f} s old or of another boot; one of the last minute was wanted. Nothing was done."
        )
    unit = config["settings"]["unit"]
    if kind == "restart" and request["unit"] != unit:
        raise GuardError(f"The request names {request['unit']!r}; only {unit} may be restarted. Nothing was done.")
    if kind == "restart" and not isinstance(request["go"], bool):
        raise GuardError("The request does not say whether to go; nothing was done.")
    if kind == "end" and not (is_kind(request["pid"], int) and request["pid"] > 1 and is_kind(request["start"], int)):
        raise GuardError("The request names no process; nothing was done.")
    return request


def read_request(path, owner):
    """Text of the request, if it is a small plain file of the guard's own user; GuardError otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        raise GuardError(f"{path} cannot be read ({error}); nothing was done.") from error
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != owner or info.st_nlink != 1 or info.st_size > 4096:
            raise GuardError(f"{path} is not a small plain file of UID {owner}; nothing was done.")
        return os.read(descriptor, 4096).decode("utf-8", "replace")
    finally:
        os.close(descriptor)


def end_process(request, config):
    """End one runner: SIGTERM, up to ten seconds, SIGKILL; all through a pidfd, after checking again who it is.

    The calling process is the server's user from then on, for good.
    """
    pid = request["pid"]
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return f"PID {pid} was gone already"
    try:
        # From here on the handle is the process, whatever becomes of its number.
        faults = objections(request, _as_its_user(pid, config), config)
        if faults:
            raise GuardError(f"PID {pid} was not ended: {'; '.join(faults)}.")
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                signal.pidfd_send_signal(handle, number)
            except ProcessLookupError:
                return f"PID {pid} ended"
            if _gone(handle, 10.0):
                return f"PID {pid} ended after {signal.Signals(number).name}"
        raise GuardError(f"PID {pid} does not end, not even by SIGKILL: it hangs in the driver. Only a reboot helps.")
    finally:
        os.close(handle)


def _as_its_user(pid, config):
    """Become the server's user and describe the process: ``describe()`` with start and kind."""
    seen = describe(pid)
    user = account(config["user"])
    if user is not None:
        # From here on the kernel, too, lets it touch no other user's process.
        # The kernel names the program to that user, or to root where the unit has a user namespace.
        become(user.pw_uid, user.pw_gid)
        seen["exe"] = seen["exe"] or describe(pid)["exe"]
    return dict(seen, start=process_stat(pid)["start"], kind=kind_of(seen["comm"], arguments(pid)))


def become(uid, gid):
    """Be another user for good, without groups.

    With root's real or saved user ID the kernel would still take its signals (kill(2)).
    """
    if os.getresuid() == (uid, uid, uid):
        return
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def _gone(handle, patience_s):
    """Whether the process of a pidfd ends within the time (a pidfd becomes readable then)."""
    return bool(select.select([handle], [], [], patience_s)[0])


def objections(request, seen, config):
    """Why a process must not be ended: [] if it is a runner of our server, by start time, user, program and unit."""
    faults = []
    if seen["start"] != request["start"]:
        faults.append("its number now belongs to another process")
    user = account(config["user"])
    if user is None or seen["uid"] != user.pw_uid:
        faults.append(f"its user is {seen['uid']}, not {config['user']}")
    folder = os.path.realpath(config["engine_dir"]) + os.sep
    if not (seen["exe"] or "").startswith(folder):
        faults.append(f"its program is {seen['exe']}, not one below {folder}")
    if seen["kind"] != "runner":
        faults.append("it is no runner")
    unit = config["settings"]["unit"]
    if seen["unit"] != unit and seen["ppid"] != 1:
        faults.append(f"it is in {seen['unit']}, not in {unit}, and its parent lives")
    return faults


def act(config, clock=None, run=subprocess.run):
    """What vram-guard-act.service does as root. Returns the words for the journal."""
    path = request_path(config)
    owner = os.stat(config["state_dir"]).st_uid
    request = checked_request(read_request(path, owner), config, clock or clocks())
    if request["kind"] == "end":
        return end_process(request, config)
    unit, patience_s = request["unit"], config["settings"]["drain_s"] + 120
    mine = set_drain_flag(unit)
    try:
        if not await_go(request, lambda: checked_request(read_request(path, owner), config, clocks()), patience_s):
            return f"{unit} was not restarted: that was no longer due"
        done = run(["systemctl", "restart", unit], timeout=300, check=False)
    finally:
        if mine:
            os.unlink(files.DRAIN_FLAG)
    if done.returncode:
        raise GuardError(f"systemctl restart {unit} ended with {done.returncode}; `journalctl -u {unit}` says why.")
    return f"{unit} restarted"


def set_drain_flag(unit):
    """Ask the gateway to take no new requests (docs/guides/gateway.md, "Draining a host").

    False where somebody else drains the host already.
    """
    try:
        os.makedirs(os.path.dirname(files.DRAIN_FLAG), exist_ok=True)
        with open(files.DRAIN_FLAG, "x", encoding="utf-8") as flag:
            flag.write(f"{files.OWN_DRAIN}{unit}\n")
    except FileExistsError:
        return False
    os.chmod(files.DRAIN_FLAG, 0o644)
    return True


def await_go(request, read, patience_s, clock_s=time.monotonic, sleep=time.sleep):
    """Whether the restart is to go: the guard says so as soon as nothing is under way, and withdraws its request when
    it is no longer due.

    The guard renews its request at every tick, so one that grows old is that of a guard that is gone.
    """
    deadline = clock_s() + patience_s
    while not request["go"]:
        if clock_s() > deadline:
            return False
        sleep(0.05)
        try:
            request = read()
        except GuardError:
            return False
        if request["kind"] != "restart":
            return False
    return True
