# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written down of a conversation's rounds, and how it is shown."""

from __future__ import annotations

import http.client
import http.server
import importlib.util
import json
import pathlib
import threading
import xml.etree.ElementTree

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


def load(path):
    spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recorder = load("molecule/open_webui/recorder.py")
rounds = load("molecule/open_webui/rounds.py")
bench = load("bench/rounds.py")


class Ollama(http.server.BaseHTTPRequestHandler):
    """Answers in three pieces, the last with the counts."""

    def log_message(self, *_args):
        """Quiet."""

    def do_POST(self):  # noqa: N802 (the name that http.server calls)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.end_headers()
        for line in ({"message": {"thinking": "hm"}}, {"message": {"content": "yes"}}, {"done": True, "prompt_eval_count": 7, "eval_count": 2}):
            self.wfile.write(json.dumps(line).encode() + b"\n")

    def do_GET(self):  # noqa: N802
        self.send_response(404)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"none")


@pytest.fixture
def relay(tmp_path):
    """(port, file) of a recorder before an Ollama of its own."""
    servers = [http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (Ollama, recorder.Relay)]
    servers[1].upstream, servers[1].file = servers[0].server_address[1], str(tmp_path / "record.jsonl")
    for server in servers:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield servers[1].server_address[1], tmp_path / "record.jsonl"
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_recorder_passes_on_and_counts(relay):
    port, file = relay
    body = {
        "model": "qwen",
        "messages": [{"role": "user", "content": "é"}, {"role": "assistant", "content": "a", "thinking": "long"}, {"role": "user", "content": "Question 2"}],
        "tools": [{"a": 1}],
        "options": {"num_ctx": 8192},
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/api/chat", json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse().read().decode()
    assert [json.loads(line) for line in answer.splitlines()][1]["message"] == {"content": "yes"}
    connection.request("GET", "/api/tags")
    nothing = connection.getresponse()
    assert (nothing.status, nothing.read()) == (404, b"none")
    connection.close()
    (line,) = [json.loads(line) for line in file.read_text().splitlines()]
    del line["runners"], line["keep_alive"], line["error"], line["model"], line["path"]
    assert line == {
        "messages": 3,
        "roles": ["user", "assistant", "user"],
        "last": "Question 2",
        "content_bytes": 13,
        "thought_bytes": 4,
        "tools": 1,
        "tools_bytes": 9,
        "options": {"num_ctx": 8192},
        "prompt_tokens": 7,
        "answer_tokens": 2,
    }


def line(last, tokens, **more):
    plain = {"messages": 1, "thought_bytes": 0, "content_bytes": 9, "tools": 0, "tools_bytes": 0, "options": {}, "answer_tokens": 5, "runners": [1]}
    return {"last": last, "prompt_tokens": tokens, **plain, **more}


def test_a_round_is_the_question_and_what_hides_beside_it():
    found = rounds.summed([line("Question 1 of 2:", 10), line("### Task: a title", 30), line("### Task: tags", 20)], "Question 1 of 2:")
    assert (found["prompt_tokens"], found["hidden"], found["hidden_tokens"]) == (10, 2, 50)
    with pytest.raises(SystemExit, match="0 requests carried the question"):
        rounds.summed([line("something else", 1)], "Question 1 of 2:")


def test_table_and_plot():
    one = {"messages": 1, "prompt_tokens": 1000, "hidden": 0, "hidden_tokens": 0, "thought_bytes": 0, "tools_bytes": 0}
    more = dict(one, hidden=2, hidden_tokens=500, tools_bytes=20949)
    found = {"server": "standin", "ours": {"rounds": [one, one], "runners_seen": 1}, "none": {"rounds": [more, more], "runners_seen": 3}}
    text = bench.table(found)
    assert "| 2 | 1 / 1,000 | 1 / 1,000 |" in text
    assert "| prompt tokens in all, hidden ones too | 2,000 | 3,000 |" in text and "| runners that Ollama started | 1 | 3 |" in text
    lines = xml.etree.ElementTree.fromstring(bench.plot(found)).findall("{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2 and all(len(one.get("points").split()) == 2 for one in lines)
