# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Folders that a service owns, and what root may do in them.

Whoever can write a folder can put a link in the place of anything in it, at any moment. So root follows links
only where nobody but root could have made them, holds a folder by its descriptor instead of its path, and does
everything else in there as the service itself (``as_owner``).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import select
import signal
import socket
import stat

LINKS = 40  # as many as the kernel follows in one path, path_resolution(7)
SILENCE_S = 3600  # a child that moves no byte for so long is given up
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class FolderError(Exception):
    """A path that root does not follow, or work in a folder that failed; the text is fit for an operator."""


def refusal(path):
    """'' where root may follow the path, else a sentence: which link in it somebody else than root can change."""
    try:
        with _parent(path):
            return ""
    except FolderError as error:
        return str(error)
    except OSError:
        return ""  # not there, or no folder: nothing to be led astray by


def own(path, owner, group, mode, check_mode=False):
    """Make the folder and give it to a service; returns what was changed: some of absent, owner, group, mode.

    Raises FolderError where a link or another's folder stands in its place and root did not put it there.
    """
    make_parents(os.path.dirname(path), check_mode)
    try:
        with _parent(path) as (folder, name):
            before = _state(folder, name)
            if before is None and check_mode:
                return ["absent", "group", "mode", "owner"]
            if before is None:
                os.mkdir(name, 0o700, dir_fd=folder)
            return _give(folder, name, path, (owner, group, mode), made=before is None, check_mode=check_mode)
    except FileNotFoundError:
        if check_mode:  # nor is its parent there
            return ["absent", "group", "mode", "owner"]
        raise


def make_parents(path, check_mode=False):
    """Make the missing folders of a path, as root's; FolderError where one of them would be in a service's folder."""
    if os.path.lexists(path) or check_mode:
        return
    make_parents(os.path.dirname(path))
    with _parent(path) as (folder, name):
        if _writer(folder):
            raise FolderError(
                f"{path} is not there, and {_writer(folder)} can write the folder that it is to be in; make it "
                f"yourself, as that account."
            )
        os.mkdir(name, 0o755, dir_fd=folder)


def _give(folder, name, path, wanted, made, check_mode):
    """Give the folder that stands there to its service, by a descriptor that no rename changes."""
    owner, group, mode = wanted
    try:
        held = os.open(name, _FOLDER, dir_fd=folder)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise FolderError(f"{path} is no folder; one was wanted. Move what is there out of the way.") from error
    try:
        now = os.fstat(held)
        writer = _writer(folder)
        # What was just made here is root's and empty; anything else of root's was moved here by whoever can write this
        # folder.
        if writer and now.st_uid != owner and not (made and not os.listdir(held)):
            raise FolderError(
                f"{path} belongs to {_name(now.st_uid)}, and {writer}, who can write the folder above it, may have "
                f"put it there; "
                f"{_name(owner)} was wanted as its owner. Give it to that account yourself, or name another path."
            )
        found = {"owner": now.st_uid != owner, "group": now.st_gid != group, "mode": stat.S_IMODE(now.st_mode) != mode}
        if not check_mode:
            os.fchown(held, owner, group)
            os.fchmod(held, mode)
        return (["absent"] if made else []) + sorted(key for key, differs in found.items() if differs)
    finally:
        os.close(held)


@contextlib.contextmanager
def _parent(path):
    """``(descriptor of the folder that the path's last part is in, that part)``, links of root's followed.

    Raises FolderError at a link that somebody else than root can change, OSError where a part before the last is
    missing.
    """
    held, links = os.open("/", _FOLDER), 0
    rest = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    try:
        while rest:
            name = rest.pop()
            state = _state(held, name)
            if state and stat.S_ISLNK(state.st_mode):
                links += 1
                if _writer(held) or links > LINKS:
                    raise FolderError(
                        f"{path} leads through the link {name}, which {_writer(held) or 'root'} can change; root "
                        f"follows no such link. "
                        f"Put a folder in its place, or name the path that it points to "
                        f"({os.readlink(name, dir_fd=held)})."
                    )
                target = os.readlink(name, dir_fd=held)
                rest += [part for part in reversed(target.split("/")) if part not in ("", ".")]
                if target.startswith("/"):
                    held = _move(held, "/", None)
            elif rest:
                held = _move(held, name, held)
            else:
                yield held, name
                return
        yield held, "."
    finally:
        os.close(held)


def _move(held, name, within):
    """Descriptor of the next folder; the one before is closed."""
    following = os.open(name, _FOLDER, dir_fd=within)
    os.close(held)
    return following


def _state(folder, name):
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _writer(folder):
    """Who beside root can change the entries of a folder: an account's name, 'everybody', "group …".

    '' where nobody can.
    """
    state = os.fstat(folder)
    if state.st_uid not in (0, os.geteuid()):
        return _name(state.st_uid)
    if state.st_mode & 0o002:
        return "everybody"
    if state.st_mode & 0o020 and state.st_gid not in (0, os.getegid()):
        return f"group {state.st_gid}"
    return ""


def _name(number):
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def become(uid, gid):
    """Be another user for good: groups, real, effective and saved IDs (setresuid(2))."""
    if os.getresuid() == (uid, uid, uid):
        return
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def as_owner(folder, work, talk=None):
    """Work in a child process that is the owner of *folder*, talk in this one.

    Returns ``(what work(stream) returns, what talk(stream) returns)``.

    Both have one end of a stream of bytes. work's answer is what JSON can hold; FolderError with its words where it
    fails.
    Modules have to be imported before: the owner may not be able to read them.
    """
    with _parent(folder) as (above, name):
        state = os.stat(name, dir_fd=above, follow_symlinks=False)
    ours, theirs = socket.socketpair()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _child(work, theirs, writer, (state.st_uid, state.st_gid), (ours.fileno(), reader))
    theirs.close()
    os.close(writer)
    ours.settimeout(SILENCE_S)
    told, failed = None, None
    with ours, open(reader, encoding="utf-8") as said:
        if talk:
            try:
                with ours.makefile("rwb") as stream:
                    told = talk(stream)
            except Exception as error:  # the child's own words come first
                failed = error
        ours.close()
        if not select.select([said], [], [], SILENCE_S)[0]:
            os.kill(child, signal.SIGKILL)
        text = said.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else {"error": f"The work in {folder} was ended from outside."}
    if isinstance(failed, FolderError) or (failed and "error" not in answer):
        raise failed
    if "error" in answer:
        raise FolderError(answer["error"])
    return answer["result"], told


def _child(work, theirs, writer, account, others):
    """The child's whole life; never returns."""
    text = json.dumps({"error": "The work in the folder failed."})
    try:
        for descriptor in others:
            os.close(descriptor)
        become(*account)
        os.umask(0o077)
        with theirs, theirs.makefile("rwb") as stream:
            result = work(stream)
        text = json.dumps({"result": result})
    except FolderError as error:
        text = json.dumps({"error": str(error)})
    except Exception as error:
        text = json.dumps({"error": f"{type(error).__name__}: {error}"})
    finally:
        os.write(writer, text.encode())
        os._exit(0)
