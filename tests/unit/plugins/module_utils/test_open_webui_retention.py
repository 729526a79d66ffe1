# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which chats go, and that the program lets the others be."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import retention
from ansible_collections.gpufleet.llm.tests.unit.plugins.open_webui_server import open_webui

NOW = 1_800_000_000
DAY = 86400


def chat(name, age_days, **more):
    content = {"history": {"messages": {"m": {"files": [{"type": "file", "id": file} for file in more.pop("files", ())]}}}}
    return {
        "id": name,
        "title": f"about {name}",
        "user_id": "1",
        "updated_at": NOW - age_days * DAY,
        "archived": False,
        "pinned": False,
        "chat": content,
        **more,
    }


@pytest.mark.parametrize(
    ("ages", "days", "per_user", "goes"),
    [
        ({}, 30, 1, []),
        ({"a": 31, "b": 30, "c": 0}, 30, 0, ["a"]),
        ({"a": 31, "b": 30, "c": 0}, 0, 0, []),
        ({"a": 3, "b": 2, "c": 1}, 0, 2, ["a"]),
        ({"a": 3, "b": 2, "c": 1}, 0, 3, []),
        ({"a": 40, "b": 39, "c": 1}, 30, 1, ["a", "b"]),
    ],
)
def test_what_is_due(ages, days, per_user, goes):
    chats = [{"id": name, "updated_at": NOW - age * DAY, "active": False} for name, age in ages.items()]
    assert [name for name, _reason in retention.due(chats, NOW, days, per_user)] == goes


def test_a_chat_that_is_being_answered_stays():
    assert retention.due([{"id": "a", "updated_at": 0, "active": True}], NOW, 1, 1) == []


@given(st.lists(st.integers(0, 100), max_size=40), st.integers(0, 50), st.integers(0, 20))
def test_nothing_younger_goes_before_anything_older(ages, days, per_user):
    chats = [{"id": str(number), "updated_at": NOW - age * DAY, "active": False} for number, age in enumerate(ages)]
    gone = {name for name, _reason in retention.due(chats, NOW, days, per_user)}
    kept = [one["updated_at"] for one in chats if one["id"] not in gone]
    assert not gone or not kept or max(one["updated_at"] for one in chats if one["id"] in gone) <= min(kept)
    if per_user:
        assert len(kept) <= per_user
    assert all(one["updated_at"] >= NOW - days * DAY for one in chats if one["id"] not in gone) or not days


@pytest.fixture
def world(tmp_path):
    """A server with chats, and a function that runs the program against it."""
    with open_webui() as (url, state):
        state.chats = {
            one["id"]: one
            for one in [
                chat("old", 40, files=["alone", "shared", "foreign", "library", "gone"]),
                chat("older", 50),
                chat("pinned", 60, pinned=True),
                chat("archived", 60, archived=True, files=["kept"]),
                chat("young", 1, files=["shared"]),
                chat("answered", 90, active=True),
            ]
        }
        state.files = {name: {"id": name, "user_id": "1", "meta": {"collection_name": f"file-{name}"}} for name in ("alone", "shared", "kept")}
        state.files["foreign"] = {"id": "foreign", "user_id": "9", "meta": {}}
        state.files["library"] = {"id": "library", "user_id": "1", "meta": {"collection_name": "a-knowledge-base"}}
        path = tmp_path / "config.json"
        config = {"url": url, "days": 30, "per_user": 0, "dry_run": False, "state_dir": str(tmp_path), "metrics": True}

        def program(*words, password=state.password, **changes):
            path.write_text(json.dumps({**config, **changes}))
            environ = {"WEBUI_ADMIN_EMAIL": state.email, "WEBUI_ADMIN_PASSWORD": password}
            return retention.main(["--config", str(path), *words], environ, lambda: NOW)

        yield state, program, tmp_path


def test_old_chats_go_with_their_files_and_are_counted(world, capsys):
    state, program, folder = world
    assert program() == 0
    assert sorted(state.chats) == ["answered", "archived", "pinned", "young"]
    assert sorted(state.files) == ["foreign", "kept", "library", "shared"]
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert said[-1]["done"] == {"users": 1, "chats": 2, "files": 1, "deferred": 0, "archived": 1, "pinned": 1, "continued": 0}
    assert said[0] == {"chat": "older", "user": "1", "reason": "untouched", "files": 0, "dry_run": False}
    assert "about" not in json.dumps(said)
    text = (folder / "open_webui_retention.prom").read_text()
    assert "open_webui_retention_chats_deleted_total 2\n" in text and "open_webui_retention_last_run_success 1\n" in text

    assert program() == 0
    assert capsys.readouterr().out == "", "a run that finds nothing says nothing"
    assert "chats_deleted_total 2\n" in (folder / "open_webui_retention.prom").read_text()
    assert json.loads((folder / "totals.json").read_text()) == {"chats": 2, "files": 1, "runs": 2, "failures": 0}


@pytest.mark.parametrize("how", [{"dry_run": True}, "--dry-run"])
def test_a_dry_run_deletes_nothing_and_says_the_same(world, capsys, how):
    state, program, folder = world
    assert (program(**how) if isinstance(how, dict) else program(how)) == 0
    assert len(state.chats) == 6 and len(state.files) == 5 and not state.writes
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert counts["dry_run"] and (counts["done"]["chats"], counts["done"]["files"]) == (2, 1)
    assert "chats_deleted_total 0\n" in (folder / "open_webui_retention.prom").read_text()


def test_a_chat_that_was_continued_meanwhile_stays(world, monkeypatch):
    state, program, _folder = world
    listed = retention.user_chats

    def and_then(client, user_id):
        found = listed(client, user_id)
        state.chats["old"]["updated_at"] = NOW
        return found

    monkeypatch.setattr(retention, "user_chats", and_then)
    assert program() == 0
    assert "old" in state.chats and "older" not in state.chats


def test_a_file_that_is_gone_although_its_removal_failed_counts(world, capsys):
    state, program, _folder = world
    state.vectors = False
    assert program() == 0
    assert "alone" not in state.files and json.loads(capsys.readouterr().out.splitlines()[-1])["done"]["files"] == 1


def test_a_long_list_is_spread_over_runs(world, monkeypatch, capsys):
    state, program, _folder = world
    monkeypatch.setattr(retention, "PER_RUN", 1)
    assert program() == 0 and "older" not in state.chats and "old" in state.chats
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["done"]["deferred"] >= 1
    assert program() == 0 and "old" not in state.chats


def test_failures_are_told_and_counted(world, capsys):
    state, program, folder = world
    assert program(password="not-this-one") == 1
    assert "refused the password" in capsys.readouterr().err and len(state.chats) == 6
    text = (folder / "open_webui_retention.prom").read_text()
    assert "open_webui_retention_failures_total 1\n" in text and "open_webui_retention_last_run_success 0\n" in text
    assert program(url="http://127.0.0.1:9") == 0, "a page that is being restarted is no failure of this unit"
    assert "failures_total 2\n" in (folder / "open_webui_retention.prom").read_text()
    assert retention.main(["--config", str(folder / "none")]) == 1
    assert "run it again" in capsys.readouterr().err
    assert retention.main(["--what"]) == 2
