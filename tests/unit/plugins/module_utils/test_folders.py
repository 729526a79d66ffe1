# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What root does in a folder of a service that plants links, with real accounts and the real kernel."""

from __future__ import annotations

import os
import pathlib
import shutil
import tempfile

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._host import folders

SERVICE, OTHER = 65534, 1  # nobody and daemon, on every Debian

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be led astray")


@pytest.fixture
def place():
    """A folder of root's alone, in a place that every account can reach: {root, home of the service, prize of root's}."""
    root = pathlib.Path(tempfile.mkdtemp(dir="/var/tmp"))
    root.chmod(0o755)
    (root / "prize").mkdir(mode=0o700)
    (root / "prize" / "secret").write_text("root's")
    (root / "home").mkdir()
    os.chown(root / "home", SERVICE, SERVICE)
    yield root
    shutil.rmtree(root)


def owned(path):
    state = os.lstat(path)
    return state.st_uid, state.st_gid, state.st_mode & 0o7777


def test_a_link_of_the_services_is_refused_with_a_sentence(place):
    (place / "home" / "models").symlink_to(place / "prize")
    for path in ("home/models", "home/models/below", "home/models/../models"):
        told = folders.refusal(str(place / path))
        assert "nobody can change" in told and str(place / "prize") in told and "root follows no such link" in told, path
        with pytest.raises(folders.FolderError, match="root follows no such link"):
            folders.own(str(place / path), SERVICE, SERVICE, 0o750)
    assert owned(place / "prize") == (0, 0, 0o700)


@pytest.mark.parametrize("writer", ["everybody", "group"])
def test_a_link_in_a_folder_that_others_can_write_is_refused(place, writer):
    folder = place / "shared"
    folder.mkdir()
    os.chown(folder, 0, 4)
    folder.chmod(0o777 if writer == "everybody" else 0o775)
    (folder / "models").symlink_to(place / "prize")
    assert writer in folders.refusal(str(folder / "models"))


def test_a_link_of_roots_is_followed(place):
    (place / "data").mkdir()
    (place / "store").symlink_to("data")
    (place / "far").symlink_to(place / "store")
    for path in ("store", "far", "store/../far", "home", "home/models", "nothing/below", "/"):
        assert folders.refusal(str(place / path)) == "", path
    assert folders.own(str(place / "far" / "models"), SERVICE, SERVICE, 0o750) == ["absent", "group", "mode", "owner"]
    assert owned(place / "data" / "models") == (SERVICE, SERVICE, 0o750)
    (place / "loop").symlink_to("loop")
    assert "root follows no such link" in folders.refusal(str(place / "loop"))


def test_a_folder_is_made_given_and_left_alone(place):
    path = str(place / "a" / "b" / "models")
    assert folders.own(path, SERVICE, OTHER, 0o750, check_mode=True) == ["absent", "group", "mode", "owner"]
    assert not (place / "a").exists()
    assert folders.own(path, SERVICE, OTHER, 0o750) == ["absent", "group", "mode", "owner"]
    assert [owned(place / "a"), owned(place / "a/b"), owned(path)] == [(0, 0, 0o755), (0, 0, 0o755), (SERVICE, OTHER, 0o750)]
    assert folders.own(path, SERVICE, OTHER, 0o750) == []
    os.chmod(path, 0o777)
    assert folders.own(path, SERVICE, OTHER, 0o750, check_mode=True) == ["mode"]
    assert folders.own(path, SERVICE, OTHER, 0o750) == ["mode"]
    assert owned(path) == (SERVICE, OTHER, 0o750)


def test_a_folder_in_the_services_home_is_made_there(place):
    path = place / "home" / "models"
    assert folders.own(str(path), SERVICE, SERVICE, 0o750) == ["absent", "group", "mode", "owner"]
    assert owned(path) == (SERVICE, SERVICE, 0o750)
    with pytest.raises(folders.FolderError, match="make it yourself"):
        folders.own(str(place / "home" / "a" / "models"), SERVICE, SERVICE, 0o750)


@pytest.mark.parametrize("account", [0, OTHER])
def test_a_folder_that_was_moved_into_the_services_home_is_not_given_away(place, account):
    path = place / "home" / "models"
    path.mkdir()
    os.chown(path, account, account)
    with pytest.raises(folders.FolderError, match="may have put it there"):
        folders.own(str(path), SERVICE, SERVICE, 0o750)
    assert owned(path)[0] == account


def test_a_file_in_the_folders_place_is_refused(place):
    (place / "home" / "models").write_text("")
    with pytest.raises(folders.FolderError, match="no folder"):
        folders.own(str(place / "home" / "models"), SERVICE, SERVICE, 0o750)


def test_a_link_that_is_put_there_after_the_look_is_not_followed(place, monkeypatch):
    """The service wins the race: between the look at the name and the work it puts a link in its place."""
    path = place / "home" / "models"
    path.mkdir()
    os.chown(path, SERVICE, SERVICE)
    give = folders._give

    def late(*arguments, **more):
        path.rmdir()
        path.symlink_to(place / "prize")
        return give(*arguments, **more)

    monkeypatch.setattr(folders, "_give", late)
    with pytest.raises(folders.FolderError, match="no folder"):
        folders.own(str(path), SERVICE, SERVICE, 0o750)
    assert owned(place / "prize") == (0, 0, 0o700)


# --- work as the owner ----------------------------------------------------------------------------


def test_work_is_done_as_the_owner_and_there_is_no_way_back(place):
    def work(stream):
        stream.write(b"here I am")
        tried = []
        for way in (lambda: os.setresuid(0, 0, 0), lambda: os.setgroups([0]), (place / "prize" / "secret").read_text):
            try:
                way()
                tried.append("done")
            except OSError as error:
                tried.append(type(error).__name__)
        return [os.getresuid(), os.getresgid(), os.getgroups(), tried]

    groups = os.getgroups()
    os.setgroups([*groups, 4])
    try:
        answer, heard = folders.as_owner(str(place / "home"), work, lambda stream: stream.read().decode())
    finally:
        os.setgroups(groups)
    assert answer == [[SERVICE] * 3, [SERVICE] * 3, [], ["PermissionError"] * 3]
    assert heard == "here I am"
    assert os.geteuid() == 0


def test_what_fails_there_is_told_here(place):
    def sorry(_stream):
        raise folders.FolderError("There is no room.")

    with pytest.raises(folders.FolderError, match="There is no room"):
        folders.as_owner(str(place / "home"), sorry)
    with pytest.raises(folders.FolderError, match="ZeroDivisionError"):
        folders.as_owner(str(place / "home"), lambda _stream: 1 // 0)
    with pytest.raises(folders.FolderError, match="ended from outside"):
        folders.as_owner(str(place / "home"), lambda _stream: os.kill(os.getpid(), 9), lambda stream: stream.read())


def full(_stream):
    raise OSError("full")


def test_what_fails_here_ends_the_work_there(place):
    def talk(stream):
        stream.read(1)
        raise folders.FolderError("That is refused.")

    with pytest.raises(folders.FolderError, match="That is refused"):
        folders.as_owner(str(place / "home"), lambda stream: [stream.write(b"x" * 65536) for _turn in range(200)], talk)
    with pytest.raises(OSError, match="full"):
        folders.as_owner(str(place / "home"), lambda stream: stream.read().decode(), full)


def test_work_that_never_ends_is_ended(place, monkeypatch):
    monkeypatch.setattr(folders, "SILENCE_S", 0.3)
    with pytest.raises((folders.FolderError, TimeoutError)):
        folders.as_owner(str(place / "home"), lambda _stream: os.kill(os.getpid(), 19), lambda stream: stream.read())
    with pytest.raises(folders.FolderError, match="ended from outside"):
        folders.as_owner(str(place / "home"), lambda _stream: os.kill(os.getpid(), 19))


def test_the_folder_itself_may_be_no_link_of_somebody_elses(place):
    (place / "home" / "data").symlink_to(place / "prize")
    with pytest.raises(folders.FolderError, match="root follows no such link"):
        folders.as_owner(str(place / "home" / "data"), lambda _stream: None)
