# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Copies of Open WebUI's data: made whole or not at all, put back whole, counted.

The database is in WAL mode: after minutes of use webui.db alone can hold no user and no chat,
all of it is in webui.db-wal (measured). So it is never copied as a file. A read-only connection
and SQLite's own backup see everything, and do not touch the log under a running server.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import time

DATABASE = "webui.db"
FOLDERS = ("uploads", "vector_db")
COUNTED = ("user", "chat", "function", "file")
NAME = re.compile(r"\d{8}T\d{6}Z-[0-9A-Za-z.+-]+")
MANIFEST = "manifest.json"


class BackupError(Exception):
    """A copy that could not be made, read or put back; the text is fit for an operator."""


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


def counts(database):
    """{table: rows} of the tables whose loss a user would notice; a table that is not there has None."""
    with reading(database) as connection:
        there = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        return {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] if name in there else None for name in COUNTED}


def missing(database, expected):
    """Sentences on what the database has less of than ``expected`` (as ``counts`` gave it), or how it is broken."""
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


def needed_bytes(data_dir):
    """Bytes that a copy takes at most."""
    total = sum(_size(os.path.join(data_dir, DATABASE + suffix)) for suffix in ("", "-wal"))
    for folder in FOLDERS:
        for parent, _folders, files in os.walk(os.path.join(data_dir, folder)):
            total += sum(_size(os.path.join(parent, name)) for name in files)
    return total


def _size(path):
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def create(data_dir, backup_dir, version, extra=(), now=time.time):
    """Copy database, uploads and ``extra`` files; return the copy's manifest. Nothing of an unfinished copy counts."""
    os.makedirs(backup_dir, mode=0o700, exist_ok=True)
    needed, free = needed_bytes(data_dir), shutil.disk_usage(backup_dir).free
    if free < needed + (16 << 20):
        raise BackupError(
            f"{backup_dir} has {free >> 20} MiB free; a copy of {data_dir} takes {(needed >> 20) + 16} MiB. "
            "Make room or set open_webui_backup_dir. Nothing was changed."
        )
    for name in os.listdir(backup_dir):
        if name.startswith(".partial-"):
            shutil.rmtree(os.path.join(backup_dir, name), ignore_errors=True)
    name = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now())) + f"-{version}"
    work = os.path.join(backup_dir, ".partial-" + name)
    os.mkdir(work, mode=0o700)
    copy = os.path.join(work, DATABASE)
    with reading(os.path.join(data_dir, DATABASE)) as source, contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        # One file, whole in itself: the server turns the log on again when it opens the database.
        target.execute("PRAGMA journal_mode=DELETE")
    os.chmod(copy, 0o600)
    for folder in FOLDERS:
        if os.path.isdir(os.path.join(data_dir, folder)):
            shutil.copytree(os.path.join(data_dir, folder), os.path.join(work, folder), symlinks=True)
    for path in extra:
        if os.path.exists(path):
            shutil.copy2(path, os.path.join(work, os.path.basename(path)))
    manifest = {"version": version, "made": int(now()), "counts": counts(copy), "data_dir": data_dir}
    write_json(os.path.join(work, MANIFEST), manifest)
    os.sync()
    os.rename(work, os.path.join(backup_dir, name))
    return dict(manifest, name=name)


def restore(backup_dir, name, data_dir):
    """Put a copy back; the service has to be stopped. What was there is kept beside it as webui.db.failed."""
    source = os.path.join(backup_dir, name)
    if not os.path.isfile(os.path.join(source, MANIFEST)):
        known = ", ".join(entry["name"] for entry in listing(backup_dir)) or "none"
        raise BackupError(f"{source} is no complete copy; {backup_dir} has {known}.")
    owner = os.stat(data_dir)
    target = os.path.join(data_dir, DATABASE)
    fresh = target + ".restoring"
    shutil.copyfile(os.path.join(source, DATABASE), fresh)
    os.chmod(fresh, 0o600)
    os.chown(fresh, owner.st_uid, owner.st_gid)
    for suffix in ("", "-wal", "-shm"):
        # The log belongs to the database that is put aside; beside the restored one it would be replayed into it.
        if os.path.exists(target + suffix):
            os.replace(target + suffix, target + ".failed" + suffix)
    os.replace(fresh, target)
    for folder in FOLDERS:
        _put_back(os.path.join(source, folder), os.path.join(data_dir, folder), owner)
    os.sync()


def _put_back(source, target, owner):
    """Copy what the target lacks; nothing is removed, a newer upload harms no older database."""
    for parent, _folders, files in os.walk(source):
        into = os.path.normpath(os.path.join(target, os.path.relpath(parent, source)))
        if not os.path.isdir(into):
            os.makedirs(into, mode=0o700)
            os.chown(into, owner.st_uid, owner.st_gid)
        for name in files:
            path = os.path.join(into, name)
            if not os.path.lexists(path):
                shutil.copy2(os.path.join(parent, name), path, follow_symlinks=False)
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def rotate(backup_dir, keep):
    """Remove the oldest copies beyond ``keep``; return their names."""
    names = [entry["name"] for entry in listing(backup_dir)]
    gone = names[: max(len(names) - keep, 0)]
    for name in gone:
        shutil.rmtree(os.path.join(backup_dir, name))
    return gone


def read_json(path):
    """The file's dict, or None where there is none that can be read."""
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
