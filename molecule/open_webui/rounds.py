#!/usr/bin/python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Holds a conversation with Open WebUI as its page does, on a lab host, and prints what reached Ollama in each round.

rounds.py URL MODEL ROUNDS FILE, with EMAIL and PASSWORD in the environment and FILE as recorder.py writes it. Each round sends
what the page sends (a saved chat, a session, the hidden calls that the page asks for) and waits until nothing more comes.
"""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.request
import uuid

QUIET_S = 6.0
PATIENCE_S = 600.0
HIDDEN = ("title_generation", "tags_generation", "follow_up_generation")


def ask(url, path, body=None, token=None):
    """The decoded answer of Open WebUI."""
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
    request = urllib.request.Request(url + path, None if body is None else json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer)


def lines(file, start):
    """The recorder's lines from the given one on."""
    try:
        with open(file, encoding="utf-8") as handle:
            return [json.loads(line) for line in handle][start:]
    except FileNotFoundError:
        return []


def message(role, parent, model, content=""):
    return {"id": str(uuid.uuid4()), "parentId": parent, "childrenIds": [], "role": role, "content": content, "timestamp": int(time.time()), "models": [model]}


def say(url, token, model, chat_id, parent, question):
    """Send one question as the page does; (id of the chat, id of the answer)."""
    user, answer = message("user", parent, model, question), str(uuid.uuid4())
    body = {
        "model": model,
        "stream": True,
        "messages": [{"role": "user", "content": question}],
        "parent_id": parent,
        "user_message": user,
        "id": answer,
        "session_id": "a-browser",
        "features": {},
        "background_tasks": dict.fromkeys(HIDDEN, True),
        **({"chat_id": chat_id} if chat_id else {}),
    }
    said = ask(url, "/api/chat/completions", body, token)
    return said.get("chat_id") or chat_id, answer


def settle(url, token, chat_id, answer, file, start):
    """Wait until the answer is complete and no further request has come for a while; the recorder's lines since ``start``."""
    until, last, since = time.monotonic() + PATIENCE_S, -1, time.monotonic()
    while time.monotonic() < until:
        held = ask(url, f"/api/v1/chats/{chat_id}", token=token)["chat"]["history"]["messages"].get(answer) or {}
        if held.get("error"):
            raise SystemExit(f"The chat failed: {held['error']}")
        found = lines(file, start)
        if len(found) != last or not held.get("done"):
            last, since = len(found), time.monotonic()
        elif time.monotonic() - since >= QUIET_S:
            return found
        time.sleep(0.5)
    raise SystemExit(f"The answer was not complete within {PATIENCE_S} s.")


def summed(found, question):
    """One round: the chat's own request, and the hidden ones beside it."""
    own = [line for line in found if line["last"].startswith(question)]
    if len(own) != 1:
        raise SystemExit(f"{len(own)} requests carried the question, one was wanted: {found}")
    return {
        "messages": own[0]["messages"],
        "prompt_tokens": own[0]["prompt_tokens"],
        "thought_bytes": own[0]["thought_bytes"],
        "content_bytes": own[0]["content_bytes"],
        "tools": own[0]["tools"],
        "tools_bytes": own[0]["tools_bytes"],
        "options": own[0]["options"],
        "answer_tokens": own[0]["answer_tokens"],
        "hidden": len(found) - 1,
        "hidden_tokens": sum(line["prompt_tokens"] or 0 for line in found if line is not own[0]),
        "runners": [line["runners"] for line in found],
    }


def main(url, model, rounds, file):
    account = {"email": os.environ["EMAIL"], "password": os.environ["PASSWORD"]}
    token = ask(url, "/api/v1/auths/signin", account)["token"]
    ask(url, "/api/models", token=token)
    told, chat_id, parent = [], None, None
    for number in range(1, int(rounds) + 1):
        start = len(lines(file, 0))
        question = f"Question {number} of {rounds}:"
        chat_id, parent = say(url, token, model, chat_id, parent, question + " what follows from the answer before?")
        told.append(summed(settle(url, token, chat_id, parent, file, start), question))
    pids = {pid for one in told for seen in one["runners"] for pid in seen}
    for one in told:
        del one["runners"]
    print(json.dumps({"url": url, "model": model, "chat": chat_id, "rounds": told, "runners_seen": len(pids)}))


if __name__ == "__main__":
    main(*sys.argv[1:5])
