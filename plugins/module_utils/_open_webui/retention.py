# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The program open-webui-retention: deletes old chats, with their files, through Open WebUI's own API.

Open WebUI has no retention of its own. What is old is decided by ``due()`` from the list of a user's chats; each chat
is read again before it is deleted, so that one which was archived, pinned or continued meanwhile stays. A file goes
with the last chat of its owner that refers to it. The role runs this file by a timer, with the administrator's account
in its environment.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

from . import client as open_webui_client
from . import users

CONFIG_PATH = "/etc/gpufleet/open-webui-retention.json"
DAY_S = 86400
PER_RUN = 500  # chats; a first run over years of them is spread over several
REASONS = ("untouched", "beyond")


class RetentionError(Exception):
    """A setting or an account that the program cannot work with; the text is fit for an operator."""


# --- What is old ---


def due(chats, now, days, per_user):
    """[(id, reason)] of the chats that go unless they are archived or pinned, the oldest first.

    ``chats`` of one user: {id, updated_at (epoch seconds), active}. untouched: not written to for ``days``; beyond:
    older than the user's ``per_user`` newest, archived and pinned ones counted. 0 switches a rule off. One that is
    being answered stays.
    """
    newest_first = sorted(chats, key=lambda chat: (-chat["updated_at"], chat["id"]))
    found = []
    for place, chat in enumerate(newest_first):
        if chat.get("active"):
            continue
        if days > 0 and chat["updated_at"] < now - days * DAY_S:
            found.append((chat["id"], "untouched"))
        elif 0 < per_user <= place:
            found.append((chat["id"], "beyond"))
    return found[::-1]


def kept_because(chat, updated_at):
    """'' where a chat, read just now, may go; else why it stays. ``updated_at`` is what the list said of it."""
    if chat.get("archived"):
        return "archived"
    if chat.get("pinned"):
        return "pinned"
    return "" if chat.get("updated_at") == updated_at else "continued"


def files_of(chat):
    """IDs of the uploads that a chat refers to; what belongs to a knowledge base is not its own.

    >>> messages = {"1": {"files": [{"type": "image", "url": "b"}]}}
    >>> sorted(files_of({"chat": {"files": [{"type": "file", "id": "a"}], "history": {"messages": messages}}}))
    ['a', 'b']
    """
    content = chat.get("chat") or {}
    messages = (content.get("history") or {}).get("messages") or {}
    holders = [
        content,
        *(messages.values() if isinstance(messages, dict) else messages),
        *(content.get("messages") or []),
    ]
    found = set()
    for holder in holders:
        for entry in (holder.get("files") if isinstance(holder, dict) else None) or []:
            if (
                not isinstance(entry, dict)
                or entry.get("type") not in ("file", "image")
                or entry.get("knowledge")
                or entry.get("collection")
            ):
                continue
            name = entry.get("id") or entry.get("url") or (entry.get("file") or {}).get("id")
            if isinstance(name, str) and "/" not in name and ":" not in name:
                found.add(name)
    return found


# --- What is done ---


def user_chats(client, user_id):
    """[{id, updated_at, active}] of a user, archived ones included; 60 come at a time."""
    found, page = [], 1
    while True:
        part = client.call("GET", f"/api/v1/chats/list/user/{user_id}?page={page}")
        found += [{key: chat.get(key) for key in ("id", "updated_at", "active")} for chat in part]
        if not part:
            return found
        page += 1


def run(client, config, now, say):
    """One pass over everybody's chats; returns the counts. ``say`` takes one dict for each chat that goes or would."""
    counts = {
        "users": 0,
        "chats": 0,
        "files": 0,
        "deferred": 0,
        **dict.fromkeys(("archived", "pinned", "continued"), 0),
    }
    for user in users.everyone(client):
        counts["users"] += 1
        chats = user_chats(client, user["id"])
        when = {chat["id"]: chat["updated_at"] for chat in chats}
        left = dict.fromkeys(when)  # id → the uploads it refers to, or None while nobody asked
        for chat_id, reason in due(chats, now, config["days"], config["per_user"]):
            if counts["chats"] >= PER_RUN:
                counts["deferred"] += 1
                continue
            chat = client.call("GET", f"/api/v1/chats/{chat_id}")
            kept = kept_because(chat, when[chat_id])
            if kept:
                counts[kept] += 1
                continue
            uploads = files_of(chat)
            del left[chat_id]
            if not config["dry_run"]:
                client.call("DELETE", f"/api/v1/chats/{chat_id}")
            gone = sum(drop_file(client, name, user["id"], left, config["dry_run"]) for name in sorted(uploads))
            counts["chats"] += 1
            counts["files"] += gone
            # No title: it says what the chat was about, and the journal is read by others.
            say({"chat": chat_id, "user": user["id"], "reason": reason, "files": gone, "dry_run": config["dry_run"]})
    return counts


def drop_file(client, name, owner, left, dry_run):
    """1 where the upload goes (or would); 0 where another chat refers to it, it is another's, or it is not there."""
    for chat_id in left:
        if left[chat_id] is None:
            left[chat_id] = files_of(client.call("GET", f"/api/v1/chats/{chat_id}"))
        if name in left[chat_id]:
            return 0
    entry = held_file(client, name)
    collection = ((entry or {}).get("meta") or {}).get("collection_name") or ""
    if entry is None or entry.get("user_id") != owner or (collection and collection != f"file-{name}"):
        return 0
    if dry_run:
        return 1
    try:
        client.call("DELETE", f"/api/v1/files/{name}")
    except open_webui_client.OpenWebuiError:
        # Without a vector database 0.12 removes the file and then fails to clean up: what counts is whether it is gone.
        if held_file(client, name) is not None:
            raise
    return 1


def held_file(client, name):
    """The file's entry, or None where it does not exist."""
    try:
        return client.call("GET", f"/api/v1/files/{name}")
    except open_webui_client.OpenWebuiError as error:
        if error.status in (401, 404):
            return None
        raise


# --- Books ---


def load_config(path):
    """{url, days, per_user, dry_run, state_dir, metrics}; RetentionError where the file cannot be read."""
    try:
        with open(path, encoding="utf-8") as handle:
            return json.load(handle)
    except (OSError, ValueError) as error:
        raise RetentionError(
            f"{path} cannot be read ({error}); the role open_webui lays it down: run it again."
        ) from error


def load_totals(folder):
    """{chats, files, runs, failures} since the first run; zeros where the books were lost."""
    totals = dict.fromkeys(("chats", "files", "runs", "failures"), 0)
    try:
        with open(os.path.join(folder, "totals.json"), encoding="utf-8") as handle:
            found = json.load(handle)
        totals.update({key: int(found[key]) for key in totals if key in found})
    except (OSError, ValueError, TypeError):
        pass
    return totals


def keep_books(config, totals, counts, now):
    """Write the totals, and the metrics for node_exporter's textfile collector where they are wanted."""
    write_text(os.path.join(config["state_dir"], "totals.json"), json.dumps(totals) + "\n")
    if config["metrics"]:
        write_text(os.path.join(config["state_dir"], "open_webui_retention.prom"), metrics(config, totals, counts, now))


def metrics(config, totals, counts, now):
    """Text in Prometheus's format. ``counts`` is None after a run that failed."""
    lines = []

    def metric(name, kind, text, value):
        lines.extend(
            [
                f"# HELP open_webui_retention_{name} {text}",
                f"# TYPE open_webui_retention_{name} {kind}",
                f"open_webui_retention_{name} {value}",
            ]
        )

    metric("chats_deleted_total", "counter", "Chats deleted since the first run.", totals["chats"])
    metric("files_deleted_total", "counter", "Uploads deleted with them.", totals["files"])
    metric("runs_total", "counter", "Runs since the first one.", totals["runs"])
    metric("failures_total", "counter", "Runs that ended with an error.", totals["failures"])
    metric("last_run_timestamp_seconds", "gauge", "When it last ran.", round(now, 3))
    metric("last_run_success", "gauge", "1 where the last run worked.", int(counts is not None))
    metric("dry_run", "gauge", "1 while it only counts.", int(config["dry_run"]))
    if counts is not None:
        metric(
            "chats_due",
            "gauge",
            "Chats that the last run deleted, or in a dry run would have.",
            counts["chats"] + counts["deferred"],
        )
    return "\n".join(lines) + "\n"


def write_text(path, text):
    """Write in one step; whoever reads sees the old text or the new one."""
    with open(path + ".new", "w", encoding="utf-8") as handle:
        handle.write(text)
    os.chmod(path + ".new", 0o644)
    os.replace(path + ".new", path)


def _say(text, stream):
    """One line to the journal or the terminal, at once."""
    stream.write(f"{text}\n")
    stream.flush()


def main(argv, environ=None, now=time.time):
    """The command line: nothing, or --dry-run; returns the exit status."""
    environ = os.environ if environ is None else environ
    words = list(argv)
    path = words[1] if words[:1] == ["--config"] and len(words) > 1 else CONFIG_PATH
    words = words[2:] if words[:1] == ["--config"] else words
    if words not in ([], ["--dry-run"]):
        _say("usage: open-webui-retention [--config FILE] [--dry-run]", sys.stderr)
        return 2
    counts, totals, away = None, None, False
    config: dict[str, Any] = {}
    try:
        config = load_config(path)
        if words:
            config["dry_run"] = True
        totals = load_totals(config["state_dir"])
        client = open_webui_client.Client(config["url"])
        email, password = (environ.get("WEBUI_ADMIN_" + name) for name in ("EMAIL", "PASSWORD"))
        if not (email and password):
            raise RetentionError(
                "WEBUI_ADMIN_EMAIL and WEBUI_ADMIN_PASSWORD are not in the environment; start it as "
                "open-webui-retention.service."
            )
        client.token = users.sign_in(client, email, password)["token"]
        counts = run(client, config, now(), lambda told: _say(json.dumps(told), sys.stdout))
    except (RetentionError, open_webui_client.OpenWebuiError, OSError) as error:
        # While Open WebUI restarts there is nothing to do; that it is down is for its own unit to report.
        away = getattr(error, "status", 0) is None
        _say(
            f"<{4 if away else 3}>{error}" if environ.get("JOURNAL_STREAM") else f"open-webui-retention: {error}",
            sys.stderr,
        )
    if totals is not None:
        done = None if counts is None or config["dry_run"] else counts
        totals["runs"] += 1
        totals["failures"] += counts is None
        totals["chats"] += done["chats"] if done else 0
        totals["files"] += done["files"] if done else 0
        try:
            keep_books(config, totals, counts, now())
        except OSError as error:
            _say(f"The books in {config['state_dir']} could not be written ({error}).", sys.stderr)
            return 1
    if counts is not None and (counts["chats"] or words):
        _say(json.dumps({"done": counts, "dry_run": config["dry_run"]}), sys.stdout)
    return 0 if counts is not None or away else 1
