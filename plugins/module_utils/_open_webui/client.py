# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Client of Open WebUI's HTTP API, and the comparison of what it holds with what is declared.

The server's own habits, all measured on 0.12.4, that this file knows so that nobody else has to:
sign-in is limited to 15 in 180 s per e-mail, successes included; an unknown id answers 401; an
unknown path answers 200 with the page; active and global are toggles; the text of a function is
rewritten before it is stored; valves are replaced as a whole.
"""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse

from .. import _http

# S/utils/plugin.py of 0.12.4, replace_imports(): plain text replacement, in strings and comments too.
REWRITES = (
    ("from utils", "from open_webui.utils"),
    ("from apps", "from open_webui.apps"),
    ("from main", "from open_webui.main"),
    ("from config", "from open_webui.config"),
)


class OpenWebuiError(Exception):
    """A request that failed; the text is fit for an operator and carries no secret. ``status`` is None without an answer."""

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


class Client:
    """One server, with or without a token."""

    def __init__(self, url, token=None, timeout=30):
        self.url = url.rstrip("/")
        self.token = token
        self.server = _http.Server(self.url, timeout_s=timeout, connect_timeout_s=timeout, retries=0)

    def call(self, method, path, body=None):
        """The decoded JSON answer; OpenWebuiError for everything that is none."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            response = self.server.send(method, path, body, headers)
            raw = self.server.read(response)
        except _http.HttpError as error:
            raise OpenWebuiError(f"{error} Is open-webui.service active?") from error
        if response.status >= 300:
            raise OpenWebuiError(self._refusal(method, path, response.status, raw), response.status)
        if "json" not in (response.headers.get("Content-Type") or ""):
            told = f"{method} {path} answered with a page, not JSON; this Open WebUI has no such route."
            raise OpenWebuiError(told, 200)
        try:
            return json.loads(raw.decode("utf-8", "replace"))
        except ValueError as error:
            raise OpenWebuiError(f"{method} {path} answered with broken JSON ({error}).", 200) from error

    def _refusal(self, method, path, status, raw):
        try:
            detail = json.loads(raw.decode("utf-8", "replace")).get("detail")
        except (ValueError, AttributeError):
            detail = raw.decode("utf-8", "replace")[:200]
        detail = detail if isinstance(detail, str) else json.dumps(detail)
        hint = {
            403: " The account has to be an administrator's.",
            429: " Open WebUI takes 15 sign-ins in 180 s per e-mail, successes included; wait three minutes.",
        }.get(status, "")
        if "validation criteria" in detail:
            hint = " Eight characters and more with a small and a capital letter, a digit and a sign are wanted."
        if status == 401 and not self.token:
            hint = " A token was needed and none was given."
        return f"{method} {path} was refused with {status}: {detail.rstrip('.')}.{hint}"


def wait_ready(client, wait_s, given_up=lambda: "", clock=time.monotonic, sleep=time.sleep):
    """Return the seconds until /ready said yes.

    Raises OpenWebuiError after ``wait_s``, or as soon as ``given_up()`` says why it never will.
    """
    started = clock()
    while True:
        try:
            client.call("GET", "/ready")
            return clock() - started
        except OpenWebuiError as error:
            reason = given_up()
            if reason:
                raise OpenWebuiError(reason, error.status) from error
            if clock() - started >= wait_s:
                told = f"Open WebUI at {client.url} was not ready within {wait_s} s: {error} See `journalctl -u open-webui`."
                raise OpenWebuiError(told, error.status) from error
        sleep(0.5)


def last_words(unit, run=subprocess.run, lines=6):
    """'' while systemd keeps the unit going, else a sentence with what it said last."""
    try:
        state = run(["systemctl", "is-failed", unit], capture_output=True, text=True, timeout=20, check=False).stdout.strip()
        if state != "failed":
            return ""
        # What the service said itself; by --unit the lines would be systemd's own on its restarts.
        argv = ["journalctl", f"_SYSTEMD_UNIT={unit}", "--no-pager", "--output", "cat", "--lines", str(lines)]
        said = run(argv, capture_output=True, text=True, timeout=20, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""
    told = " | ".join(line.strip()[:200] for line in said.splitlines() if line.strip())
    return f"{unit} has failed and systemd does not start it again. Its last words: {told}"


def sign_in(client, email, password):
    """{token, expires_at, id, role} of the account; OpenWebuiError says what to do."""
    try:
        answer = client.call("POST", "/api/v1/auths/signin", {"email": email, "password": password})
    except OpenWebuiError as error:
        if error.status in (400, 401):
            raise OpenWebuiError(
                f"Open WebUI refused the password of {email}. WEBUI_ADMIN_PASSWORD only makes the first account: "
                "an existing one keeps its password until it is changed in Open WebUI.",
                error.status,
            ) from error
        raise
    if not answer.get("token"):
        raise OpenWebuiError(f"Open WebUI asks {email} for a second factor; the play needs an administrator without one.")
    return {key: answer.get(key) for key in ("token", "expires_at", "id", "role")}


def change_password(client, former, new):
    """Change the password of the account that the client's token belongs to."""
    client.call("POST", "/api/v1/auths/update/password", {"password": former, "new_password": new})


def unless_fresh(look, check_mode):
    """What ``look()`` returns; in check mode None where no server answers, as on a host that has none yet."""
    try:
        return look()
    except OpenWebuiError as error:
        if check_mode and error.status is None:
            return None
        raise


# --- Functions ---


def as_stored(content):
    """The text that the server stores for a function.

    >>> as_stored("from utils import x")
    'from open_webui.utils import x'
    """
    for old, new in REWRITES:
        content = content.replace(old, new)
    return content


def observe_function(client, function_id):
    """{name, description, content, active, global, valves} of a function, or None where there is none."""
    listed = client.call("GET", "/api/v1/functions/export?include_valves=true")
    for entry in listed:
        if entry.get("id") == function_id:
            return {
                "name": entry.get("name"),
                "description": (entry.get("meta") or {}).get("description"),
                "content": entry.get("content"),
                "active": bool(entry.get("is_active")),
                "global": bool(entry.get("is_global")),
                "valves": entry.get("valves") or {},
            }
    return None


def wanted_function(observed, asked):
    """What the function should be: the keys of ``asked`` that are not None, over what is there."""
    base = observed or {
        "name": None,
        "description": "",
        "content": None,
        "active": False,
        "global": False,
        "valves": {},
    }
    wanted = {key: base[key] if asked.get(key) is None else asked[key] for key in base}
    if asked.get("content") is not None:
        wanted["content"] = as_stored(asked["content"])
    if asked.get("valves") is not None:
        wanted["valves"] = {name: value for name, value in asked["valves"].items() if value is not None}
    return wanted


def difference(observed, wanted):
    """Names of the keys of ``wanted`` that the observed function (or None) does not have so."""
    return [key for key in wanted if (observed or {}).get(key) != wanted[key]]


def put_function(client, function_id, observed, wanted):
    """Make the function what is wanted; ``observed`` as observe_function() said just before."""
    form = {
        "id": function_id,
        "name": wanted["name"],
        "content": wanted["content"],
        "meta": {"description": wanted["description"] or ""},
    }
    if observed is None:
        client.call("POST", "/api/v1/functions/create", form)
        observed = dict(wanted, active=False, valves={}, **{"global": False})
    where = "/api/v1/functions/id/" + urllib.parse.quote(function_id, safe="")
    if any(observed[key] != wanted[key] for key in ("name", "description", "content")):
        client.call("POST", where + "/update", form)
    # Valves before the switch: the function is never at work with other valves than the declared ones.
    if observed["valves"] != wanted["valves"]:
        client.call("POST", where + "/valves/update", wanted["valves"])
    if observed["global"] != wanted["global"]:
        client.call("POST", where + "/toggle/global")
    if observed["active"] != wanted["active"]:
        client.call("POST", where + "/toggle")


def delete_function(client, function_id):
    """Remove the function."""
    client.call("DELETE", "/api/v1/functions/id/" + urllib.parse.quote(function_id, safe="") + "/delete")


# --- Settings ---


def observe_config(client, keys):
    """{key: value} of the dotted keys asked for; OpenWebuiError for a key that the server does not have: it would store it unread."""
    held = client.call("GET", "/api/v1/configs/export")
    unknown = sorted(key for key in keys if key not in held)
    if unknown:
        raise OpenWebuiError(f"Open WebUI has no setting {', '.join(unknown)}; GET /api/v1/configs/export names all.")
    return {key: held[key] for key in keys}


def as_held(held, value):
    """The value in the server's own type: environments and inventories carry switches and structures as text.

    >>> as_held(True, "false"), as_held("false", "false"), as_held(True, 1), as_held({}, '{"0": {}}')
    (False, 'false', 1, {'0': {}})
    """
    if isinstance(held, bool) and isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(held, (dict, list)) and isinstance(value, str):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def put_config(client, values):
    """Change these settings and no other."""
    client.call("POST", "/api/v1/configs/import", {"config": values})


# --- Models ---

EVERYONE = {"principal_type": "user", "principal_id": "*", "permission": "read"}


def observe_model(client, model_id):
    """What Open WebUI keeps of a model, or None where it has no entry for it.

    {base, name, description, active, access, groups, capabilities, params}; access is everyone, administrators, groups (their
    names are in groups), or other for grants that this file does not make. The entry as the server sent it is under ``entry``.
    """
    try:
        entry = client.call("GET", "/api/v1/models/model?id=" + urllib.parse.quote(model_id, safe=""))
    except OpenWebuiError as error:
        if error.status == 404:
            return None
        raise
    meta = entry.get("meta") or {}
    access, groups = _readers(client, entry.get("access_grants") or [])
    return {
        "base": entry.get("base_model_id"),
        "name": entry.get("name"),
        "description": meta.get("description") or "",
        "active": bool(entry.get("is_active")),
        "access": access,
        "groups": groups,
        "capabilities": meta.get("capabilities") or {},
        "params": {key: value for key, value in (entry.get("params") or {}).items() if value is not None},
        "entry": entry,
    }


def _readers(client, grants):
    """(access, names of groups) that the grants come to."""
    plain = [{key: grant.get(key) for key in EVERYONE} for grant in grants]
    if not plain:
        return "administrators", []
    if plain == [EVERYONE]:
        return "everyone", []
    if all(grant["principal_type"] == "group" and grant["permission"] == "read" for grant in plain):
        names = {ident: name for name, ident in group_ids(client).items()}
        return "groups", sorted(names.get(grant["principal_id"], grant["principal_id"]) for grant in plain)
    return "other", []


def group_ids(client):
    """{name: id} of the groups."""
    return {group["name"]: group["id"] for group in client.call("GET", "/api/v1/groups/")}


def wanted_model(observed, asked):
    """What the entry should be: the keys of ``asked`` that are not None, over what is there; of dicts only the keys that are asked for."""
    base = {
        "base": None,
        "name": None,
        "description": "",
        "active": True,
        "access": "administrators",
        "groups": [],
        "capabilities": {},
        "params": {},
    }
    base.update({key: observed[key] for key in base if observed})
    wanted = {key: base[key] if asked.get(key) is None else asked[key] for key in base}
    for key in ("capabilities", "params"):
        merged = {**base[key], **(asked.get(key) or {})}
        wanted[key] = {name: value for name, value in merged.items() if value is not None}
    wanted["groups"] = sorted(wanted["groups"]) if wanted["access"] == "groups" else []
    return wanted


def put_model(client, model_id, observed, wanted):
    """Make the entry what is wanted; what it holds besides stays. OpenWebuiError for a group that is not there."""
    entry = observed["entry"] if observed else {}
    form = {
        "id": model_id,
        "base_model_id": wanted["base"],
        "name": wanted["name"],
        "meta": {
            **(entry.get("meta") or {}),
            "description": wanted["description"] or None,
            "capabilities": wanted["capabilities"] or None,
        },
        "params": wanted["params"],
        "is_active": wanted["active"],
    }
    # An update leaves the grants alone, whatever it says of them (routers/models.py of 0.12.4): they have a way of their own.
    regrant = observed is None or any(observed[key] != wanted[key] for key in ("access", "groups"))
    grants = _grants(client, wanted) if regrant else None
    if observed is None:
        client.call("POST", "/api/v1/models/create", {**form, "access_grants": grants})
        return
    client.call("POST", "/api/v1/models/model/update", form)
    if regrant:
        client.call("POST", "/api/v1/models/model/access/update", {"id": model_id, "access_grants": grants})


def _grants(client, wanted):
    if wanted["access"] != "groups":
        return [EVERYONE] if wanted["access"] == "everyone" else []
    known = group_ids(client)
    missing = [name for name in wanted["groups"] if name not in known]
    if missing:
        raise OpenWebuiError(f"there is no group {', '.join(missing)}; Open WebUI has {', '.join(sorted(known)) or 'none'}. Make it on the page first.")
    return [{"principal_type": "group", "principal_id": known[name], "permission": "read"} for name in wanted["groups"]]


def delete_model(client, model_id):
    """Remove the entry; the model itself stays at its server."""
    client.call("POST", "/api/v1/models/model/delete", {"id": model_id})


# --- Accounts ---


def observe_user(client, email):
    """{id, email, name, role} of an account, or None. An address is kept in small letters."""
    email, page, seen = email.lower(), 1, 0
    while True:
        answer = client.call("GET", f"/api/v1/users/?query={urllib.parse.quote(email, safe='')}&page={page}")
        for user in answer["users"]:
            if user["email"].lower() == email:
                return {key: user[key] for key in ("id", "email", "name", "role")}
        seen += len(answer["users"])
        if not answer["users"] or seen >= answer["total"]:
            return None
        page += 1


def all_users(client):
    """[{id, email, name, role}] of every account."""
    found, page = [], 1
    while True:
        answer = client.call("GET", f"/api/v1/users/?page={page}")
        found += [{key: user[key] for key in ("id", "email", "name", "role")} for user in answer["users"]]
        if not answer["users"] or len(found) >= answer["total"]:
            return found
        page += 1


def add_user(client, email, name, role, password):
    """Make an account."""
    client.call(
        "POST",
        "/api/v1/auths/add",
        {"email": email, "name": name, "role": role, "password": password, "profile_image_url": "/user.png"},
    )


def update_user(client, user_id, changes):
    """Change name, role or password of an account; a new password ends its sessions."""
    client.call("POST", f"/api/v1/users/{user_id}/update", changes)


def delete_user(client, user_id):
    """Remove an account with its chats."""
    client.call("DELETE", f"/api/v1/users/{user_id}")


def password_holds(client, email, password):
    """Whether the account takes this password. Costs one of its 15 sign-ins in 180 s."""
    try:
        client.call("POST", "/api/v1/auths/signin", {"email": email, "password": password})
    except OpenWebuiError as error:
        if error.status in (400, 401):
            return False
        raise
    return True
