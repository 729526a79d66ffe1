# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The scenario guard: its table in the docs is that of its records, and what it counts as a lost chat is one."""

from __future__ import annotations

import http.server
import importlib.machinery
import importlib.util
import json
import pathlib
import re
import subprocess
import sys
import threading

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]


def _engine():
    loader = importlib.machinery.SourceFileLoader("break_and_watch", str(REPO / "molecule/guard/break_and_watch"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


engine = _engine()


def test_the_guide_has_the_table_of_the_records():
    records = json.loads(engine.RECORDS.read_text(encoding="utf-8"))
    guide = engine.PAGE.read_text(encoding="utf-8")
    assert engine.filled(guide, engine.keep([], records)) == guide, "run molecule/guard/break_and_watch --write"


def test_new_rows_replace_those_of_the_same_case_and_server():
    old = [{"case": "hang", "server": "real", "lost": 1}, {"case": "trapped", "server": "standin", "lost": 2}, {"case": "away", "server": "real"}]
    new = [{"case": "hang", "server": "standin", "lost": 3}, {"case": "trapped", "server": "standin", "lost": 4}]
    assert [(row["case"], row["server"], row["lost"]) for row in engine.keep(new, old)] == [
        ("trapped", "standin", 4),
        ("hang", "standin", 3),
        ("hang", "real", 1),
    ]


def test_the_short_part_is_short_and_has_what_matters_most():
    short = [case.__name__ for case, (_wants, _lost, parts, _standin_only) in engine.CASES.items() if "s" in parts]
    assert {"trapped", "orphan", "mismatch"} <= set(short)
    assert len(short) <= 5


SHORT = [{"choices": [{"delta": {"content": "a"}, "finish_reason": None}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]
GOOD = [SHORT[0], dict(SHORT[1], usage={"completion_tokens": 1})]


class Page(http.server.BaseHTTPRequestHandler):
    """Answers as Open WebUI does, or as one whose server broke."""

    stream = b""
    status = 200

    def log_message(self, format, *args):  # noqa: A002  (the name is the base class's)
        pass

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        signing = self.path.endswith("signin")
        self.send_response(200 if signing else self.status)
        self.end_headers()
        self.wfile.write(b'{"token": "t"}' if signing else self.stream)


def lines(*events):
    return b"".join(b"data: " + (event if isinstance(event, bytes) else json.dumps(event).encode()) + b"\n\n" for event in events)


@pytest.mark.parametrize(
    "status, stream, error",
    [
        (200, lines(*GOOD, b"[DONE]"), None),
        (200, lines(*GOOD), "the stream was cut off"),
        (200, lines(*SHORT, b"[DONE]"), "the answer was cut short"),
        (200, lines(GOOD[0], b"[DONE]"), "the stream ended without a reason"),
        (200, lines(GOOD[0], {"error": {"message": "EOF"}}), "EOF"),
        (200, b'{"detail": "model runner has unexpectedly stopped"}\n', "unexpectedly stopped"),
        (400, b'{"detail": "Connection refused"}', "400 .*refused"),
    ],
)
def test_what_is_a_lost_chat(status, stream, error):
    page = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("This", (Page,), {"status": status, "stream": stream}))
    threading.Thread(target=page.serve_forever, daemon=True).start()
    program = engine.CHAT.replace("127.0.0.1:8080", f"127.0.0.1:{page.server_address[1]}")
    # Its standard input stays open: nobody says that it is over.
    with subprocess.Popen(
        [sys.executable, "-I", "-c", program, "a@b", "p", "m", "4", "0", "2"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as chats:
        told = [json.loads(chats.stdout.readline()) for _turn in range(2)]
        assert chats.wait(20) == 0
    page.shutdown()
    for one in told:
        assert one["error"] is None if error is None else re.search(error, one["error"]), one
