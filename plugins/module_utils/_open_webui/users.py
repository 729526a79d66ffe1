# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Accounts of Open WebUI: sign-in, and what an administrator does with them.

Measured on 0.12.4: sign-in is limited to 15 in 180 s per e-mail, successes included.
"""

from __future__ import annotations

import urllib.parse

from .client import OpenWebuiError


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
        raise OpenWebuiError(
            f"Open WebUI asks {email} for a second factor; the play needs an administrator without one."
        )
    return {key: answer.get(key) for key in ("token", "expires_at", "id", "role")}


def change_password(client, former, new):
    """Change the password of the account that the client's token belongs to."""
    client.call("POST", "/api/v1/auths/update/password", {"password": former, "new_password": new})


def password_holds(client, email, password):
    """Whether the account takes this password. Costs one of its 15 sign-ins in 180 s."""
    try:
        client.call("POST", "/api/v1/auths/signin", {"email": email, "password": password})
    except OpenWebuiError as error:
        if error.status in (400, 401):
            return False
        raise
    return True


def observe(client, email):
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


def everyone(client):
    """[{id, email, name, role}] of every account."""
    found, page = [], 1
    while True:
        answer = client.call("GET", f"/api/v1/users/?page={page}")
        found += [{key: user[key] for key in ("id", "email", "name", "role")} for user in answer["users"]]
        if not answer["users"] or len(found) >= answer["total"]:
            return found
        page += 1


def add(client, email, name, role, password):
    """Make an account."""
    client.call(
        "POST",
        "/api/v1/auths/add",
        {"email": email, "name": name, "role": role, "password": password, "profile_image_url": "/user.png"},
    )


def update(client, user_id, changes):
    """Change name, role or password of an account; a new password ends its sessions."""
    client.call("POST", f"/api/v1/users/{user_id}/update", changes)


def delete(client, user_id):
    """Remove an account with its chats."""
    client.call("DELETE", f"/api/v1/users/{user_id}")
