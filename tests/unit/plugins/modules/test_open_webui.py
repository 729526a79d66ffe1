# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules open_webui_*, from arguments to results."""

from __future__ import annotations

import json
import os
import sqlite3

import pytest
from ansible.module_utils.testing import patch_module_args

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import runner_options
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import client as open_webui_client
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import declared as declared_entries
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import models as open_webui_models
from ansible_collections.gpufleet.llm.plugins.modules import (
    open_webui_backup,
    open_webui_config,
    open_webui_function,
    open_webui_model,
    open_webui_secrets,
    open_webui_token,
    open_webui_user,
    open_webui_venv,
)
from ansible_collections.gpufleet.llm.tests.unit.plugins.open_webui_server import SIGN_INS, open_webui

CONTENT = "from utils import x\n\n\nclass Filter:\n    pass\n"


@pytest.fixture
def server():
    with open_webui() as pair:
        yield pair


@pytest.fixture
def call(capsys):
    """Runs a module; its answer as a dict."""

    def call(module, check=False, **options):
        arguments = {**options, "_ansible_check_mode": check, "_ansible_diff": True}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        answer = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
        answer.pop("_ansible_new_secrets", None)  # since ansible-core 2.22: what the controller has to mask
        return answer

    return call


# --- open_webui_function ---


def test_function_do_repeat_change_absent_repeat(call, server):
    url, state = server
    options = {"url": url, "token": state.token, "id": "mine", "name": "Mine", "content": CONTENT}
    options.update(active=True, valves={"max_rounds": 6}, **{"global": True})
    predicted = call(open_webui_function, check=True, **options)
    assert predicted["changed"] and not state.functions and not state.writes
    made = call(open_webui_function, **options)
    assert made["changed"] and made["diff"] == predicted["diff"]
    held = state.functions["mine"]
    assert held["is_active"] and held["is_global"] and held["valves"] == {"max_rounds": 6} and "open_webui.utils" in held["content"]

    state.calls.clear()
    again = call(open_webui_function, **options)
    assert not again["changed"] and again["differences"] == [] and not state.writes
    assert again["diff"]["before"] == again["diff"]["after"]

    held.update(is_active=False, valves={"max_rounds": 99})
    drift = call(open_webui_function, **options)
    assert drift["changed"] and drift["differences"] == ["active", "valves"]
    assert "valves.max_rounds: 99" in drift["diff"]["before"] and "valves.max_rounds: 6" in drift["diff"]["after"]
    assert held["is_active"] and held["valves"] == {"max_rounds": 6}

    changed = call(open_webui_function, **{**options, "content": CONTENT + "# more\n"})
    assert changed["differences"] == ["content"] and held["is_active"]

    gone = call(open_webui_function, url=url, token=state.token, id="mine", state="absent")
    assert gone["changed"] and not state.functions
    assert not call(open_webui_function, url=url, token=state.token, id="mine", state="absent")["changed"]


def test_function_leaves_alone_what_is_not_given(call, server):
    url, state = server
    options = {"url": url, "token": state.token, "id": "mine"}
    call(open_webui_function, **options, name="Mine", content=CONTENT, active=True, valves={"a": 1})
    switched = call(open_webui_function, **options, **{"global": True})
    assert switched["differences"] == ["global"]
    assert state.functions["mine"]["is_active"] and state.functions["mine"]["valves"] == {"a": 1}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": "Not An Id"}, "identifier in lower case"),
        ({"id": "mine"}, "without name and content"),
        ({"id": "mine", "name": "M", "content": "syntax error"}, "refused with 400: invalid syntax"),
        ({"id": "mine", "name": "M", "content": "pass", "valves": {"a": "bad"}}, "validation error"),
        ({"id": "mine", "token": "wrong-one"}, "refused with 401"),
    ],
)
def test_function_refusals_say_why(call, server, options, said):
    url, state = server
    result = call(open_webui_function, **{"url": url, "token": state.token, **options})
    assert result["failed"] and said in result["msg"], result["msg"]


def test_function_is_predicted_where_no_server_is(call):
    result = call(open_webui_function, check=True, url="http://127.0.0.1:9", token="", id="mine", name="M", content="pass", active=True)
    assert result["changed"] and "active: True" in result["diff"]["after"]
    assert call(open_webui_function, url="http://127.0.0.1:9", token="", id="mine", name="M", content="pass")["failed"]


# --- open_webui_model ---


def test_model_do_repeat_change_absent_repeat(call, server):
    url, state = server
    options = {"url": url, "token": state.token, "id": "qwen:latest", "access": "everyone", "capabilities": {"builtin_tools": False}}
    predicted = call(open_webui_model, check=True, **options)
    assert predicted["changed"] and not state.models and not state.writes
    made = call(open_webui_model, **options)
    assert made["changed"] and made["diff"] == predicted["diff"] and made["model"]["name"] == "qwen:latest"
    held = state.models["qwen:latest"]
    assert held["base_model_id"] is None and held["is_active"] and held["meta"]["capabilities"] == {"builtin_tools": False}
    assert [grant["principal_id"] for grant in held["access_grants"]] == ["*"]

    state.calls.clear()
    again = call(open_webui_model, **options)
    assert not again["changed"] and again["differences"] == [] and not state.writes
    assert again["diff"]["before"] == again["diff"]["after"]

    held["meta"]["capabilities"]["builtin_tools"] = True
    held["access_grants"] = []
    drift = call(open_webui_model, **options)
    assert drift["differences"] == ["access", "capabilities"]
    assert "access: administrators" in drift["diff"]["before"] and "capabilities.builtin_tools: False" in drift["diff"]["after"]

    gone = {"url": url, "token": state.token, "id": "qwen:latest", "state": "absent"}
    assert call(open_webui_model, check=True, **gone)["changed"] and state.models
    assert call(open_webui_model, **gone)["changed"] and not state.models
    assert not call(open_webui_model, **gone)["changed"]


def test_model_leaves_alone_what_is_not_given(call, server):
    url, state = server
    options = {"url": url, "token": state.token, "id": "qwen:latest"}
    call(open_webui_model, **options, access="groups", groups=["Staff"], params={"temperature": 0.6}, capabilities={"vision": True})
    state.models["qwen:latest"]["meta"]["tags"] = [{"name": "mine"}]
    changed = call(open_webui_model, **options, name="Qwen", params={"top_k": 20}, capabilities={"vision": None, "builtin_tools": False})
    held = state.models["qwen:latest"]
    assert changed["differences"] == ["name", "capabilities", "params"]
    assert held["params"] == {"system": None, "temperature": 0.6, "top_k": 20} and held["meta"]["capabilities"] == {"builtin_tools": False}
    assert held["meta"]["tags"] == [{"name": "mine"}] and held["access_grants"][0]["principal_id"] == "group-1"
    held["access_grants"] = [{"principal_type": "user", "principal_id": "7", "permission": "write", "id": "x", "created_at": 1}]
    kept = call(open_webui_model, **options, description="For all of us")
    assert kept["model"]["access"] == "other" and held["access_grants"] != [] and state.models["qwen:latest"]["access_grants"][0]["principal_id"] == "7"


def test_model_refusals_say_why(call, server):
    url, state = server
    options = {"url": url, "token": state.token, "id": "qwen:latest"}
    assert "there is no group Nobody; Open WebUI has Staff" in call(open_webui_model, **options, access="groups", groups=["Nobody"])["msg"]
    assert "Nothing answers at" in call(open_webui_model, **{**options, "url": "http://127.0.0.1:9"})["msg"]
    assert call(open_webui_model, check=True, **{**options, "url": "http://127.0.0.1:9"})["changed"]


# --- open_webui_user ---


def test_user_do_repeat_change_absent_repeat(call, server):
    url, state = server
    state.users += [{"id": str(number), "email": f"eva{number}@example.org", "name": "E", "role": "user"} for number in range(10, 15)]
    options = {"url": url, "token": state.token, "email": "Eva@example.org", "name": "Eva", "role": "user", "password": "a-password-of-eva"}
    assert call(open_webui_user, check=True, **options)["changed"] and len(state.users) == 6
    made = call(open_webui_user, **options)
    assert made["changed"] and state.users[-1]["email"] == "eva@example.org" and "a-password-of-eva" not in json.dumps(made)
    state.calls.clear()
    again = call(open_webui_user, **options)
    assert not again["changed"] and not state.writes and not [path for _method, path in state.calls if "signin" in path]

    state.users[-1]["role"] = "admin"
    drift = call(open_webui_user, **options)
    assert drift["differences"] == ["role"] and "role: admin" in drift["diff"]["before"] and state.users[-1]["role"] == "user"

    options["password"] = "another-password"
    assert not call(open_webui_user, **options)["changed"], "the owner's own password is left alone"
    always = {**options, "update_password": "always"}
    assert call(open_webui_user, check=True, **always)["differences"] == ["password"] and state.passwords["eva@example.org"] == "a-password-of-eva"
    changed = call(open_webui_user, **always)
    assert changed["differences"] == ["password"] and state.passwords["eva@example.org"] == "another-password"
    assert "another-password" not in json.dumps(changed) and "password: a new one" in changed["diff"]["after"]

    state.sign_ins = SIGN_INS
    for check in (True, False):
        limited = call(open_webui_user, check=check, **{**always, "password": "a-third-password"})
        assert limited["failed"] and "15 sign-ins in 180 s" in limited["msg"], "too many sign-ins say nothing about the password"
    assert state.passwords["eva@example.org"] == "another-password"
    state.sign_ins = 0

    gone = {"url": url, "token": state.token, "email": "eva@example.org", "state": "absent"}
    assert call(open_webui_user, **gone)["changed"] and len(state.users) == 6
    assert not call(open_webui_user, **gone)["changed"]


def test_user_refusals_say_why(call, server):
    url, state = server
    options = {"url": url, "token": state.token, "email": "eva@example.org"}
    assert "without a password it cannot be made" in call(open_webui_user, **options)["msg"]
    assert "a capital letter, a digit and a sign are wanted" in call(open_webui_user, **options, password="plain")["msg"]
    assert "refused with 403: This action is prohibited" in call(open_webui_user, **{**options, "email": state.email}, state="absent")["msg"]
    assert call(open_webui_user, check=True, **{**options, "url": "http://127.0.0.1:9"}, password="x")["changed"]


# --- open_webui_config ---


def test_config_puts_back_what_the_page_changed_and_tells_nothing_else(call, server):
    url, state = server
    options = {"url": url, "token": state.token, "config": {"ui.enable_signup": "false", "auth.jwt_expiry": "12h"}}
    assert not call(open_webui_config, **options)["changed"]
    state.config["ui.enable_signup"] = True
    assert call(open_webui_config, check=True, **options)["differences"] == ["ui.enable_signup"]
    assert state.config["ui.enable_signup"] is True
    result = call(open_webui_config, **options)
    assert result["diff"] == {"before": "ui.enable_signup: True\n", "after": "ui.enable_signup: False\n"}
    assert state.config["ui.enable_signup"] is False
    assert "sk-hidden" not in json.dumps(result)
    assert not call(open_webui_config, **options)["changed"]


def test_config_refuses_keys_that_the_server_does_not_have(call, server):
    url, state = server
    result = call(open_webui_config, url=url, token=state.token, config={"ui.enable_history": True})
    assert result["failed"]
    assert "has no setting ui.enable_history" in result["msg"]


# --- open_webui_token ---


def test_token(call, server):
    url, state = server
    state.not_ready = 2
    result = call(open_webui_token, url=url, email=state.email, password=state.password)
    assert result["token"] == state.token and not result["changed"] and result["ready_s"] >= 0.5


def test_token_changes_a_password_that_the_vault_changed(call, server, tmp_path):
    url, state = server
    former = tmp_path / "former"
    former.write_text(state.password)
    options = {"url": url, "email": state.email, "password": "the-new-password", "former_password_file": str(former)}
    assert call(open_webui_token, check=True, **options)["password_changed"]
    assert state.password == "a-good-password" and former.exists()
    result = call(open_webui_token, **options)
    assert result["changed"] and state.password == "the-new-password" and not former.exists()
    assert not call(open_webui_token, **options)["changed"]


def test_token_forgets_a_former_password_that_was_changed_already(call, server, tmp_path):
    url, state = server
    former = tmp_path / "former"
    former.write_text("older")
    assert not call(open_webui_token, url=url, email=state.email, password=state.password, former_password_file=str(former))["changed"]
    assert not former.exists()


def test_token_refusals_say_why_and_tell_no_secret(call, server):
    url, state = server
    options = {"url": url, "email": state.email}
    result = call(open_webui_token, **options, password="wrong-password-x")
    assert result["failed"] and "refused the password of admin@example.org" in result["msg"] and "wrong-password-x" not in json.dumps(result)
    state.mfa = True
    assert "second factor" in call(open_webui_token, **options, password=state.password)["msg"]
    state.sign_ins = 15
    assert "15 sign-ins in 180 s" in call(open_webui_token, **options, password=state.password)["msg"]
    assert "was not ready within 0 s" in call(open_webui_token, url="http://127.0.0.1:9", email="a@b", password="x", wait_s=0)["msg"]
    assert call(open_webui_token, check=True, url="http://127.0.0.1:9", email="a@b", password="x")["token"] == ""


# --- open_webui_secrets ---


def test_secrets_are_made_once_kept_and_never_told(call, tmp_path):
    path = tmp_path / "secrets.env"
    options = {"path": str(path), "values": {"WEBUI_ADMIN_PASSWORD": 'pass "w$rd\\', "OTHER": None}}
    assert call(open_webui_secrets, check=True, **options)["changed"] and not path.exists()
    first = call(open_webui_secrets, **options)
    assert first["changed"] and oct(path.stat().st_mode & 0o777) == "0o600"
    text = path.read_text()
    key = text.split("WEBUI_SECRET_KEY=")[1].strip()
    assert len(key) == 64 and key not in json.dumps(first)
    again = call(open_webui_secrets, **options)
    assert not again["changed"] and not again["stale"] and path.read_text() == text

    changed = call(open_webui_secrets, path=str(path), values={"WEBUI_ADMIN_PASSWORD": "another-one"}, previous=True)
    assert changed["names_changed"] == ["WEBUI_ADMIN_PASSWORD: another value"] and key in path.read_text()
    assert "another-one" not in json.dumps(changed)
    assert (tmp_path / "secrets.env.former").read_text() == 'pass "w$rd\\'
    assert (tmp_path / "secrets.env.previous").read_text() == text
    call(open_webui_secrets, path=str(path), values={"WEBUI_ADMIN_PASSWORD": "a-third"})
    assert (tmp_path / "secrets.env.former").read_text() == 'pass "w$rd\\', "what the account still has"


def test_secrets_open_to_others_are_closed(call, tmp_path):
    path = tmp_path / "secrets.env"
    call(open_webui_secrets, path=str(path), values={})
    path.chmod(0o644)
    assert call(open_webui_secrets, path=str(path), values={})["names_changed"] == ["mode 0600, owner root"]
    assert oct(path.stat().st_mode & 0o777) == "0o600"


def test_secrets_know_a_process_with_older_ones(call, tmp_path):
    result = call(open_webui_secrets, path=str(tmp_path / "s"), values={"GPUFLEET_TEST": "x"}, generate=[], pid=os.getpid())
    assert result["stale"]


# --- open_webui_backup ---


@pytest.fixture
def data(tmp_path):
    """A database as a running server leaves it: everything in the write-ahead log."""
    folder = tmp_path / "data"
    (folder / "uploads").mkdir(parents=True)
    (folder / "uploads" / "a.txt").write_text("a")
    connection = sqlite3.connect(folder / "webui.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    for table in ("user", "chat", "function"):
        connection.execute(f'CREATE TABLE "{table}" (id)')
        connection.executemany(f'INSERT INTO "{table}" VALUES (?)', [(1,), (2,)])
    yield folder, connection
    connection.close()


def test_backup_and_back(call, data, tmp_path):
    folder, connection = data
    where = {"data_dir": str(folder), "backup_dir": str(tmp_path / "copies")}
    marker = tmp_path / "marker"
    assert call(open_webui_backup, check=True, **where, version="0.12.3")["changed"] and not (tmp_path / "copies").exists()
    made = call(open_webui_backup, **where, version="0.12.3", upgrade_to="0.12.4", marker=str(marker))
    assert made["backup"]["counts"] == {"user": 2, "chat": 2, "function": 2, "file": None}
    assert json.loads(marker.read_text()) == {"backup": made["backup"]["name"], "from": "0.12.3", "to": "0.12.4"}
    assert (folder / "webui.db-wal").stat().st_size > 0, "the log under the running server was left alone"

    connection.execute("DELETE FROM chat")
    lost = call(open_webui_backup, state="verified", **where, marker=str(marker))
    assert lost["failed"] and "0 of 2 rows of 'chat' are left" in lost["msg"] and marker.exists()
    connection.close()
    (folder / "uploads" / "a.txt").unlink()
    (folder / "webui.db-wal").write_bytes(b"left by a crash")
    call(open_webui_backup, state="restored", **where, marker=str(marker))
    whole = call(open_webui_backup, state="verified", **where, marker=str(marker))
    assert whole["changed"] and not marker.exists() and (folder / "uploads" / "a.txt").read_text() == "a"
    assert oct((folder / "webui.db").stat().st_mode & 0o777) == "0o600"


def test_backup_keeps_the_newest(call, data, tmp_path, monkeypatch):
    folder, _connection = data
    where = {"data_dir": str(folder), "backup_dir": str(tmp_path / "copies")}
    for number in range(4):
        monkeypatch.setattr(open_webui_backup.backup.time, "gmtime", lambda *_a, n=number: (2026, 1, 1 + n, 0, 0, 0, 0, 0, 0))
        call(open_webui_backup, **where, version="0.12.3", keep=2)
    assert sorted(os.listdir(tmp_path / "copies")) == ["20260103T000000Z-0.12.3", "20260104T000000Z-0.12.3"]


def test_backup_that_is_not_complete_does_not_count(call, data, tmp_path):
    folder, _connection = data
    where = {"data_dir": str(folder), "backup_dir": str(tmp_path / "copies")}
    (tmp_path / "copies" / "20260103T000000Z-0.12.3").mkdir(parents=True)
    (tmp_path / "copies" / ".partial-x").mkdir()
    result = call(open_webui_backup, state="restored", **where)
    assert result["failed"] and "there is none" in result["msg"]
    call(open_webui_backup, **where, version="0.12.3")
    assert not (tmp_path / "copies" / ".partial-x").exists()


def test_backup_of_a_damaged_database_is_refused(call, tmp_path):
    (tmp_path / "webui.db").write_bytes(b"not a database at all" * 100)
    result = call(open_webui_backup, data_dir=str(tmp_path), backup_dir=str(tmp_path / "copies"), version="0.12.3")
    assert result["failed"] and "cannot be read" in result["msg"]


def test_backup_where_the_data_is_elsewhere(call, tmp_path):
    assert call(open_webui_backup, data_dir=str(tmp_path), version="1")["backup"] is None


# --- open_webui_venv ---


def test_venv_says_what_it_would_build_and_refuses_other_pythons(call, tmp_path):
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\necho 3 11\n')
    fake.chmod(0o755)
    options = {"path": str(tmp_path / "ow" / "0.12.4"), "version": "0.12.4", "uv_requirements": str(tmp_path / "uv.txt")}
    said = call(open_webui_venv, check=True, python=str(fake), **options)
    assert said["changed"] and said["reason"] == "it is not there" and said["python_version"] == "3.11" and not said["ensurepip"]
    refused = call(open_webui_venv, python=str(fake), **options)
    assert refused["failed"] and "install the package python3-venv" in refused["msg"]
    other = call(open_webui_venv, check=True, python=str(fake), installer="/usr/bin/true", **options)
    assert other["ensurepip"], "pip runs with the installer's interpreter"
    index = call(open_webui_venv, check=True, python=str(fake), index_url="https://me:v4lue@index.example/simple", **options)
    assert index["changed"] and "v4lue" not in json.dumps(index), "an index may need an account"
    fake.write_text("#!/bin/sh\necho 3 13\n")
    assert "is Python 3.13; Open WebUI needs 3.11 or 3.12" in call(open_webui_venv, check=True, python=str(fake), **options)["msg"]


# --- What the role hands to the modules ---

NO_RUNNER_OPTIONS = dict.fromkeys(runner_options.ALL)


def test_models_of_the_ui_follow_the_declared_ones():
    declared = [{"name": "qwen3-14b-4090"}, {"name": "old", "state": "absent"}]
    assert declared_entries.complete_models(None, declared) == [
        {"id": "qwen3-14b-4090:latest", "name": "qwen3-14b-4090", "access": "everyone", "state": "present", "capabilities": {"builtin_tools": False},
         "params": NO_RUNNER_OPTIONS}
    ]  # fmt: skip
    own = declared_entries.complete_models(
        [{"id": "mine", "base": "hf.co/x/y", "capabilities": {"builtin_tools": True, "vision": False}, "access": "groups"}], declared
    )
    assert own[0]["id"] == "mine" and own[0]["base"] == "hf.co/x/y:latest" and own[0]["capabilities"] == {"builtin_tools": True, "vision": False}
    assert declared_entries.complete_models([], declared) == []
    # What was set on the page goes, what the inventory asks for stays.
    given = declared_entries.complete_models([{"id": "mine", "params": {"num_ctx": 8192, "temperature": 0.6}}])[0]
    assert given["params"] == {**NO_RUNNER_OPTIONS, "num_ctx": 8192, "temperature": 0.6}
    observed = {"base": None, "name": "mine", "description": "", "active": True, "access": "everyone", "groups": [], "capabilities": {"builtin_tools": False},
                "params": {"num_ctx": 2048, "top_k": 5}}  # fmt: skip
    wanted = open_webui_models.wanted(observed, declared_entries.complete_models([{"id": "mine"}])[0])
    assert wanted["params"] == {"top_k": 5} and open_webui_client.difference(observed, wanted) == ["params"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [([{"name": "x"}], "An entry of open_webui_models has no id"), ([{"id": "x", "acess": "everyone"}], "open_webui_models has acess for x; known are")],
)
def test_models_of_the_ui_that_cannot_be_meant(entries, said):
    (found,) = declared_entries.model_problems(entries)
    assert said in found


def test_accounts_that_cannot_be_meant_tell_no_password():
    first, second = declared_entries.user_problems([{"email": "a@b", "passwd": "never-shown"}, {"email": "b@c"}, {"name": "never-shown"}])
    assert "has passwd for a@b" in first and "has no email" in second
    assert "never-shown" not in first + second
