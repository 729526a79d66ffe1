# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""open_webui_backup as root, in a folder of an account that plants what it can; and what a copy is."""

from __future__ import annotations

import io
import json
import os
import pathlib
import shutil
import sqlite3
import stat
import tarfile
import tempfile

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import backup
from ansible_collections.gpufleet.llm.plugins.modules import open_webui_backup

SERVICE = 65534

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray")


@pytest.fixture
def place():
    """{data of the service with a database and an upload, prize: root's alone, copies}; every account can reach it."""
    root = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    root.chmod(0o755)
    (root / "prize").mkdir(mode=0o700)
    (root / "prize" / "secret").write_text("root's")
    data = root / "data"
    (data / "uploads" / "deep").mkdir(parents=True)
    (data / "uploads" / "deep" / "a.txt").write_text("a")
    database(data / "webui.db", {"user": 2, "chat": 3})
    give(data)
    yield root
    shutil.rmtree(root)


def database(path, rows):
    connection = sqlite3.connect(path)
    for table, number in rows.items():
        connection.execute(f'CREATE TABLE "{table}" (id)')
        connection.executemany(f'INSERT INTO "{table}" VALUES (?)', [(one,) for one in range(number)])
    connection.commit()
    connection.close()


def give(folder):
    """The service's, as far as it goes; a test without root has it already."""
    if os.geteuid() == 0:
        for parent, below, files in os.walk(folder):
            for one in (".", *below, *files):
                os.lchown(os.path.join(parent, one), SERVICE, SERVICE)


@pytest.fixture
def call(capsys, place):
    def call(**options):
        arguments = {"data_dir": str(place / "data"), "backup_dir": str(place / "copies"), "version": "0.12.3", **options}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            open_webui_backup.main()
        return json.loads(capsys.readouterr().out.strip().splitlines()[-1])

    return call


def prize(place):
    """Everything that tells whether root's own was touched."""
    return {
        path.name: (path.lstat().st_uid, path.lstat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in [place / "prize", *(place / "prize").iterdir()]
    }


def everything_of_the_services(folder):
    return [path for path in folder.rglob("*") if not path.is_symlink() and path.lstat().st_uid != SERVICE]


# --- planted before a restore --------------------------------------------------------------------


def plant_restoring(place):
    (place / "data" / "webui.db.restoring").symlink_to(place / "prize" / "secret")


def plant_restoring_hard(place):
    os.link(place / "prize" / "secret", place / "data" / "webui.db.restoring")


def plant_restoring_dangling(place):
    (place / "data" / "webui.db.restoring").symlink_to(place / "prize" / "new")


def plant_upload_folder(place):
    shutil.rmtree(place / "data" / "uploads")
    (place / "data" / "uploads").symlink_to(place / "prize")


def plant_deep_folder(place):
    shutil.rmtree(place / "data" / "uploads" / "deep")
    (place / "data" / "uploads" / "deep").symlink_to(place / "prize")


def plant_file(place):
    (place / "data" / "uploads" / "deep" / "a.txt").unlink()
    (place / "data" / "uploads" / "deep" / "a.txt").symlink_to(place / "prize" / "new")


RESTORES = [plant_restoring, plant_restoring_hard, plant_restoring_dangling, plant_upload_folder, plant_deep_folder, plant_file]


@root_only
@pytest.mark.parametrize("plant", RESTORES)
def test_a_restore_writes_through_no_link_of_the_services(call, place, plant):
    call()
    before = prize(place)
    plant(place)
    told = call(state="restored")
    assert prize(place) == before, told
    assert everything_of_the_services(place / "data") == []


@root_only
def test_a_restore_leaves_everything_with_the_service(call, place):
    call()
    shutil.rmtree(place / "data" / "uploads")
    (place / "data" / "webui.db").write_bytes(b"broken")
    assert call(state="restored").get("failed") is None
    assert (place / "data" / "uploads" / "deep" / "a.txt").read_text() == "a"
    assert (place / "data" / "webui.db.failed").read_bytes() == b"broken"
    assert everything_of_the_services(place / "data") == []
    assert stat.S_IMODE((place / "data" / "webui.db").stat().st_mode) == 0o600
    assert call(state="verified").get("failed") is None


# --- planted before a copy -----------------------------------------------------------------------


def plant_database(place):
    database(place / "prize" / "other.db", {"user": 1, "chat": 1})
    (place / "prize" / "other.db").chmod(0o600)
    (place / "data" / "webui.db").unlink()
    (place / "data" / "webui.db").symlink_to(place / "prize" / "other.db")


def plant_log(place):
    (place / "data" / "webui.db-wal").symlink_to(place / "prize" / "wal")
    (place / "data" / "webui.db-shm").symlink_to(place / "prize" / "shm")
    connection = sqlite3.connect(place / "data" / "webui.db")
    # In the file's header: the log is in use.
    connection.close()
    with open(place / "data" / "webui.db", "r+b") as handle:
        handle.seek(18)
        handle.write(b"\x02\x02")


def plant_file_in(place):
    (place / "data" / "uploads" / "b.txt").symlink_to(place / "prize" / "secret")


def plant_pipe(place):
    os.mkfifo(place / "data" / "uploads" / "pipe")
    give(place / "data")


@root_only
@pytest.mark.parametrize("plant", [plant_database, plant_log, plant_upload_folder, plant_deep_folder, plant_file_in, plant_pipe])
def test_a_copy_takes_nothing_along_that_the_service_could_not_read(call, place, plant):
    plant(place)
    before = prize(place)
    told = call()
    assert prize(place) == before, told
    taken = [path for path in (place / "copies").rglob("*") if path.is_file()] if (place / "copies").exists() else []
    assert not any(b"root's" in path.read_bytes() or path.is_symlink() for path in taken)
    assert not any(path.name == "webui.db" and backup.counts(str(path))["user"] == 1 for path in taken), "another's database was copied"
    assert everything_of_the_services(place / "data") == []
    if plant in (plant_deep_folder, plant_file_in, plant_pipe):
        assert "no plain file" in told["msg"]


@root_only
def test_a_copy_is_roots_alone_and_leaves_nothing_with_the_service(call, place):
    there = sorted(path.name for path in (place / "data").iterdir())
    made = call()["backup"]
    for path in [place / "copies", *(place / "copies").rglob("*")]:
        state = path.lstat()
        assert (state.st_uid, state.st_mode & 0o077) == (0, 0), path
    assert sorted(path.name for path in (place / "data").iterdir()) == there
    assert (place / "copies" / made["name"] / "uploads" / "deep" / "a.txt").read_text() == "a"


def test_a_copy_that_did_not_arrive_whole_does_not_count(call, place, monkeypatch):
    receive = backup.receive
    monkeypatch.setattr(backup, "receive", lambda stream, into: receive(stream, into) - 1)
    assert "3 of 4 files" in call()["msg"]
    assert backup.listing(str(place / "copies")) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("../evil", tarfile.REGTYPE),
        ("/etc/evil", tarfile.REGTYPE),
        ("uploads/../../evil", tarfile.REGTYPE),
        ("manifest.json", tarfile.REGTYPE),
        ("uploads/link", tarfile.SYMTYPE),
        ("uploads/link", tarfile.LNKTYPE),
        ("uploads/pipe", tarfile.FIFOTYPE),
        ("uploads/disk", tarfile.BLKTYPE),
    ],
)
def test_a_stream_with_anything_else_in_it_is_refused(tmp_path, name, kind):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/shadow"
        tar.addfile(member)
    stream.seek(0)
    (tmp_path / "into").mkdir()
    with pytest.raises(backup.BackupError, match="nothing that a copy holds"):
        backup.receive(stream, str(tmp_path / "into"))
    assert list((tmp_path / "into").iterdir()) == [] and not (tmp_path / "evil").exists()


def test_a_copy_that_fills_the_disk_is_refused_before_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(1 << 30, 1 << 29, 20 << 20))
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w|") as tar:
        for name, size in (("uploads/small", 3 << 20), ("uploads/large", 5 << 20)):
            member = tarfile.TarInfo(name)
            member.size = size
            tar.addfile(member, io.BytesIO(bytes(size)))
    stream.seek(0)
    (tmp_path / "uploads").mkdir()
    with pytest.raises(backup.BackupError, match=r"20 MiB free; uploads/large takes 21 MiB"):
        backup.receive(stream, str(tmp_path))
    assert sorted(path.name for path in (tmp_path / "uploads").iterdir()) == ["small"]


# --- what a copy is ------------------------------------------------------------------------------


def test_a_copy_is_one_file_that_needs_no_log(call, place):
    with sqlite3.connect(place / "data" / "webui.db") as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("INSERT INTO chat VALUES (99)")
        connection.commit()
        if os.geteuid() == 0:
            give(place / "data")
        copy = place / "copies" / call()["backup"]["name"]
    connection.close()
    assert sorted(path.name for path in copy.iterdir()) == ["manifest.json", "uploads", "webui.db"]
    # Bytes 18 and 19 of the header: 1 is a file without a write-ahead log (fileformat2.html of SQLite).
    assert (copy / "webui.db").read_bytes()[18:20] == b"\x01\x01"
    assert backup.counts(str(copy / "webui.db"))["chat"] == 4


@pytest.mark.parametrize(("there", "keep", "left"), [(1, 3, 1), (2, 3, 2), (2, 5, 2), (3, 3, 3), (4, 3, 3), (5, 2, 2), (3, 1, 1)])
def test_as_many_copies_stay_as_are_to_be_kept_and_the_newest(tmp_path, there, keep, left):
    for number in range(there):
        folder = tmp_path / f"2026010{number + 1}T000000Z-0.12.3"
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    gone = backup.rotate(str(tmp_path), keep)
    assert sorted(os.listdir(tmp_path)) == [f"2026010{number + 1}T000000Z-0.12.3" for number in range(there - left, there)]
    assert len(gone) == there - left


# --- what the data has less of than before ---


def test_only_what_is_gone_is_missing(place):
    data = str(place / "data")
    assert backup.counts(f"{data}/webui.db") == {name: {"user": 2, "chat": 3}.get(name) for name in backup.COUNTED}
    assert backup.missing(data, {"user": 2, "chat": 3}) == []
    assert backup.missing(data, {"user": 1, "chat": 2, "file": None}) == []
    assert backup.missing(data, {"user": 2, "chat": 5, "file": 4}) == [
        "3 of 5 rows of 'chat' are left",
        "0 of 4 rows of 'file' are left",
    ]


def test_a_damaged_database_is_told_in_sqlites_words(place):
    path = place / "data" / "webui.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE many (id INTEGER PRIMARY KEY, text)")
    connection.executemany("INSERT INTO many (text) VALUES (?)", [("x" * 500,) for _number in range(200)])
    connection.execute("CREATE INDEX by_text ON many (text)")
    connection.commit()
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute("DELETE FROM sqlite_master WHERE name = 'by_text'")
    connection.commit()
    connection.close()
    (said,) = backup.missing(str(place / "data"), {"user": 2})
    assert said.startswith("the database is damaged: ") and "never used" in said


def test_no_room_is_told_in_mib(place, monkeypatch):
    free = shutil.disk_usage(place)._replace(free=(77 << 20) + 5)
    monkeypatch.setattr(backup.shutil, "disk_usage", lambda _folder: free)
    backup.room(str(place), 61 << 20, "the copy")
    with pytest.raises(backup.BackupError, match="has 77 MiB free; the copy takes 78 MiB"):
        backup.room(str(place), 62 << 20, "the copy")
