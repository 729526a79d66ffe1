# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Copies of Open WebUI's data: made whole or not at all, restored whole, counted.

The database is in WAL mode: after minutes of use webui.db alone can hold no user and no chat,
all of it is in webui.db-wal (measured). So it is never copied as a file. A read-only connection
and SQLite's own backup see everything, and do not touch the log under a running server.

The data is the service's and the copies are root's. Whatever is read or written in the folder of the data is read
and written as the service (``folders.as_owner``): a link that it plants there leads to nothing that it could not
have reached itself. Between the two goes a tar stream of plain files and folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import stat
import tarfile
import tempfile
import time

from .._host import folders

DATABASE = "webui.db"
FOLDERS = ("uploads", "vector_db")
COUNTED = ("user", "chat", "function", "file")
NAME = re.compile(r"\d{8}T\d{6}Z-[0-9A-Za-z.+-]+")
MANIFEST = "manifest.json"
RESTORING, COPYING = ".restoring", ".copying-"


class BackupError(folders.FolderError):
    """A copy that could not be made, read or restored; the text is fit for an operator."""


@contextlib.contextmanager
def reading(database):
    """A connection that cannot write; BackupError where there is no database."""
    try:
        connection = sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=30)
    except sqlite3.Error as error:
        raise BackupError(f"{database} cannot be opened ({error}).") from error
    try:
        yield connection
    except sqlite3.Error as error:
        raise BackupError(f"{database} cannot be read ({error}).") from error
    finally:
        connection.close()


def as_service(data_dir, work, talk=None):
    """``folders.as_owner`` in the folder of the data, with BackupError for what fails there."""
    try:
        return folders.as_owner(data_dir, work, talk)
    except BackupError:
        raise
    except folders.FolderError as error:
        raise BackupError(str(error)) from error


def counts(database):
    """{table: rows} of the tables whose loss a user would notice; a table that is not there has None."""
    with reading(database) as connection:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] if name in there else None
            for name in COUNTED
        }


def missing(data_dir, expected):
    """Sentences on what the data has less of than ``expected`` (as ``counts`` gave it), or how it is broken."""
    return as_service(data_dir, lambda _stream: _missing(os.path.join(data_dir, DATABASE), expected))[0]


def _missing(database, expected):
    with reading(database) as connection:
        said = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    told = [] if said == ["ok"] else ["the database is damaged: " + "; ".join(said)]
    found = counts(database)
    for name, number in expected.items():
        if number is not None and (found.get(name) or 0) < number:
            told.append(f"{found.get(name) or 0} of {number} rows of '{name}' are left")
    return told


def listing(backup_dir):
    """Manifests of the complete copies, the oldest first, each with its name."""
    found = []
    for name in sorted(os.listdir(backup_dir)) if os.path.isdir(backup_dir) else ():
        if NAME.fullmatch(name):
            try:
                with open(os.path.join(backup_dir, name, MANIFEST), encoding="utf-8") as handle:
                    found.append(dict(json.load(handle), name=name))
            except (OSError, ValueError):
                continue
    return found


def create(data_dir, backup_dir, version, extra=(), now=time.time):
    """Copy database, uploads and ``extra`` files; return the copy's manifest. Nothing of an unfinished copy counts."""
    os.makedirs(backup_dir, mode=0o700, exist_ok=True)
    for name in os.listdir(backup_dir):
        if name.startswith(".partial-"):
            shutil.rmtree(os.path.join(backup_dir, name), ignore_errors=True)
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now())) + f"-{version}"
    work = os.path.join(backup_dir, ".partial-" + name)
    os.mkdir(work, mode=0o700)
    sent, received = as_service(
        data_dir, lambda stream: send_data(data_dir, stream), lambda stream: receive(stream, work)
    )
    if sent["members"] != received:
        raise BackupError(
            f"{received} of {sent['members']} files of {data_dir} arrived in {backup_dir}; the copy does not count. "
            "Run it again."
        )
    for path in extra:
        if os.path.exists(path):
            shutil.copy2(path, os.path.join(work, os.path.basename(path)))
    manifest = {"version": version, "made": int(now()), "counts": sent["counts"], "data_dir": data_dir}
    write_json(os.path.join(work, MANIFEST), manifest)
    os.sync()
    os.rename(work, os.path.join(backup_dir, name))
    return dict(manifest, name=name)


def send_data(data_dir, stream):
    """As the service: database and folders as a tar stream; {members, counts} of what was sent."""
    database = os.path.join(data_dir, DATABASE)
    for name in os.listdir(data_dir):
        if name.startswith(COPYING):
            shutil.rmtree(os.path.join(data_dir, name), ignore_errors=True)
    room(
        data_dir,
        sum(os.stat(database + suffix).st_size for suffix in ("", "-wal") if os.path.exists(database + suffix)),
        "a copy of the database",
    )
    work = tempfile.mkdtemp(prefix=COPYING, dir=data_dir)
    try:
        copy = os.path.join(work, DATABASE)
        with reading(database) as source, contextlib.closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            # One file, whole in itself: the server turns the log on again when it opens the database.
            target.execute("PRAGMA journal_mode=DELETE")
        counted = counts(copy)
        with tarfile.open(fileobj=stream, mode="w|") as tar:
            tar.add(copy, DATABASE)
            members = 1 + sum(send(tar, os.path.join(data_dir, folder), folder) for folder in FOLDERS)
    finally:
        shutil.rmtree(work)
    return {"members": members, "counts": counted}


def send(tar, folder, name):
    """Add a folder to the tar under another name, plain files and folders only; returns how many there were."""
    added = 0
    for parent, below, files in os.walk(folder):
        into = os.path.normpath(os.path.join(name, os.path.relpath(parent, folder)))
        tar.addfile(_member(into, tarfile.DIRTYPE, 0o700, 0))
        added += 1
        for path in (os.path.join(parent, one) for one in sorted(below + files)):
            kind = os.lstat(path).st_mode
            if stat.S_ISREG(kind):
                with open(
                    path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)
                ) as handle:
                    tar.addfile(
                        _member(
                            os.path.join(into, os.path.basename(path)),
                            tarfile.REGTYPE,
                            0o600,
                            os.fstat(handle.fileno()).st_size,
                        ),
                        handle,
                    )
                added += 1
            elif not stat.S_ISDIR(kind):
                raise BackupError(
                    f"{path} is no plain file; a copy holds files and folders only. Put what it stands for in its "
                    "place, or remove it."
                )
    return added


def _member(name, kind, mode, size):
    member = tarfile.TarInfo(name)
    member.type, member.mode, member.size = kind, mode, size
    return member


def receive(stream, into, replace=False):
    """Unpack a tar stream of plain files and folders below a folder; how many there were.

    Raises BackupError for anything else in the stream.

    replace: False has every file to be new; True leaves one that is there, but DATABASE, which is written beside
    itself.
    """
    received = 0
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            parts = member.name.split("/")
            if parts[0] not in (DATABASE, *FOLDERS) or ".." in parts or not (member.isreg() or member.isdir()):
                raise BackupError(
                    f"{member.name!r} is nothing that a copy holds; plain files of {DATABASE}, "
                    f"{' and '.join(FOLDERS)} were wanted."
                )
            room(into, member.size, member.name)
            path = os.path.join(into, *parts)
            if member.isdir():
                os.makedirs(path, mode=0o700, exist_ok=True)
            elif parts == [DATABASE] or not (replace and os.path.lexists(path)):
                _write(tar.extractfile(member), path + (RESTORING if replace and parts == [DATABASE] else ""))
            received += 1
    return received


def _write(source, path):
    # x is O_EXCL: a link that stands there is an error, wherever it leads.
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as target:
        shutil.copyfileobj(source, target, 1 << 20)


def room(folder, needed, what):
    """BackupError where the folder's disk cannot take so many bytes and 16 MiB."""
    free = shutil.disk_usage(folder).free
    if free < needed + (16 << 20):
        raise BackupError(
            f"{folder} has {free >> 20} MiB free; {what} takes {(needed >> 20) + 16} MiB. Make room there, or set "
            "open_webui_backup_dir."
        )


def restore_backup(backup_dir, name, data_dir):
    """Restore a copy; the service has to be stopped. What was there is kept beside it as webui.db.failed."""
    source = os.path.join(backup_dir, name)
    if not os.path.isfile(os.path.join(source, MANIFEST)):
        known = ", ".join(entry["name"] for entry in listing(backup_dir)) or "none"
        raise BackupError(f"{source} is no complete copy; {backup_dir} has {known}.")
    as_service(data_dir, lambda stream: replace_data(stream, data_dir), lambda stream: _send_copy(stream, source))
    os.sync()


def _send_copy(stream, source):
    """As root: a copy as a tar stream."""
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        tar.add(os.path.join(source, DATABASE), DATABASE)
        for folder in FOLDERS:
            send(tar, os.path.join(source, folder), folder)


def replace_data(stream, data_dir):
    """As the service: the database replaced by the stream's, and of the folders what is missing.

    A newer upload harms no older database.
    """
    target = os.path.join(data_dir, DATABASE)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(target + RESTORING)
    receive(stream, data_dir, replace=True)
    for suffix in ("", "-wal", "-shm"):
        # The log belongs to the database that is put aside; beside the restored one it would be replayed into it.
        if os.path.lexists(target + suffix):
            os.replace(target + suffix, target + ".failed" + suffix)
    os.replace(target + RESTORING, target)


def rotate(backup_dir, keep):
    """Remove the oldest copies beyond ``keep``; return their names."""
    names = [entry["name"] for entry in listing(backup_dir)]
    gone = names[: max(len(names) - keep, 0)]
    for name in gone:
        shutil.rmtree(os.path.join(backup_dir, name))
    return gone


def read_json(path):
    """The file's dict, or None where it does not exist or cannot be read."""
    try:
        with open(path, encoding="utf-8") as handle:
            found = json.load(handle)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path, value):
    """Write in one step, durably, for root only."""
    with open(path + ".new", "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o600)) as handle:
        json.dump(value, handle, indent=2, sort_keys=True)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.replace(path + ".new", path)
