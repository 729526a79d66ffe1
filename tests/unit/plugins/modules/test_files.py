# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Several files in one call: written, repeated, changed, and refused as a whole."""

from __future__ import annotations

import grp
import json
import os
import pwd
import stat

import pytest
from ansible.module_utils import basic

from ansible_collections.gpufleet.llm.plugins.modules import files

ME, MINE = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name


@pytest.fixture
def run(monkeypatch, capsys):
    def answer(entries, check=False):
        given = [{"owner": ME, "group": MINE, **entry} for entry in entries]
        arguments = {"files": given, "_ansible_check_mode": check, "_ansible_diff": True, "_ansible_remote_tmp": "/tmp"}
        monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
        monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy")
        capsys.readouterr()
        with pytest.raises(SystemExit):
            files.main()
        return json.loads(capsys.readouterr().out)

    return answer


def test_predict_write_repeat_change(run, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    entries = [{"path": str(one), "content": "a\nb\n", "mode": "0755"}, {"path": str(two), "content": "ä", "mode": "0600"}]
    predicted = run(entries, check=True)
    assert predicted["changed"] and predicted["paths"] == [str(one), str(two)] and not one.exists()
    assert predicted["diff"][0] == {"before_header": str(one), "after_header": str(one), "before": "", "after": "a\nb\n"}
    made = run(entries)
    assert made["diff"] == predicted["diff"]
    assert (one.read_text(), two.read_bytes(), stat.S_IMODE(one.stat().st_mode), stat.S_IMODE(two.stat().st_mode)) == ("a\nb\n", "ä".encode(), 0o755, 0o600)
    again = run(entries)
    assert (again["changed"], again["paths"], again["diff"]) == (False, [], [])
    one.chmod(0o700)
    entries[1]["content"] = "other"
    changed = run(entries)
    assert changed["paths"] == [str(one), str(two)]
    assert (changed["diff"][0]["before"], changed["diff"][0]["after"]) == ("# mode 0700\n", "# mode 0755\n")
    assert (changed["diff"][1]["before"], changed["diff"][1]["after"]) == ("ä", "other")
    assert stat.S_IMODE(one.stat().st_mode) == 0o755 and two.read_text() == "other"


def test_a_link_is_replaced_and_its_target_kept(run, tmp_path):
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("kept")
    link.symlink_to(target)
    assert run([{"path": str(link), "content": "kept"}])["paths"] == [str(link)]
    assert not link.is_symlink() and target.read_text() == "kept"


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"path": "relative", "content": ""}, "is a relative path"),
        ({"content": "", "mode": "644"}, "mode is '644'; four octal digits"),
        ({"content": "", "mode": "0644\n"}, "four octal digits"),
        ({"content": "", "owner": "nobody-there"}, "there is no user nobody-there on this host"),
        ({"content": "", "group": "nobody-there"}, "there is no group nobody-there on this host"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(run, tmp_path, entry, told):
    first = {"path": str(tmp_path / "first"), "content": "x"}
    failed = run([first, {"path": str(tmp_path / "second"), **entry}])
    assert failed["failed"] and told in failed["msg"] and not failed["changed"]
    assert os.listdir(tmp_path) == []


def test_a_folder_in_the_way_and_a_folder_that_is_missing(run, tmp_path):
    (tmp_path / "there").mkdir()
    assert "is there and is no file" in run([{"path": str(tmp_path / "there"), "content": ""}])["msg"]
    failed = run([{"path": str(tmp_path / "no/file"), "content": ""}])
    assert f"The folder {tmp_path}/no is not there" in failed["msg"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_is_brought_to_what_is_given(run, tmp_path):
    path = tmp_path / "file"
    entry = {"path": str(path), "content": "x", "owner": "nobody", "group": "daemon"}
    run([entry])
    info = path.stat()
    assert (info.st_uid, info.st_gid) == (pwd.getpwnam("nobody").pw_uid, grp.getgrnam("daemon").gr_gid)
    os.chown(path, 0, 0)
    assert run([entry], check=True)["diff"][0]["after"] == f"# owner {pwd.getpwnam('nobody').pw_uid}\n"
    assert run([entry])["changed"] and not run([entry])["changed"]
