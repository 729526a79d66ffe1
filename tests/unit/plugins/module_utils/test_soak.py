# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program of the soak test against a small server of its own: what it asks, what it sees, how it ends."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._soak import answers, conversations, measure, processes, verdicts, watch
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import client as soak_client
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import load as soak_load
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import program as soak_program

MIB = 1024 * 1024
USAGE = {"prompt_tokens": 40, "completion_tokens": 3, "total_tokens": 43}


@contextlib.contextmanager
def serving(chat="ok"):
    """(URL, requests seen) of a server that speaks Ollama's, OpenAI's and Open WebUI's way. chat: ok, hang, error, cut or loop."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def send(self, *lines, status=200):
            body = "".join(f"{line}\n" for line in lines).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            ps = {"name": "m:latest", "size": 100 * MIB, "size_vram": 100 * MIB, "context_length": 4096}
            answers = {"/api/version": {"version": "0.32.15"}, "/api/ps": {"models": [ps]}, "/api/tags": {"models": [{"name": "m:latest", "digest": "ab"}]}}
            self.send(json.dumps(answers[self.path]))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, body, self.headers.get("Authorization")))
            if self.path == "/api/v1/auths/signin":
                self.send(json.dumps({"token": "a-token"}) if body["password"] == "right" else json.dumps({"detail": "no"}), status=200)
            elif self.path in ("/api/generate", "/api/embed", "/v1/embeddings"):
                self.send(json.dumps({"done": True, "prompt_eval_count": 128, "load_duration": 0}))
            elif chat == "hang":
                time.sleep(30)
            elif chat == "error":
                self.send(json.dumps({"error": "llama-server process has terminated"}), status=500)
            elif self.path == "/api/chat":
                text = "again and again. " * 100 if chat == "loop" else "fine"
                lines = [{"message": {"thinking": "hm"}}, {"message": {"content": text}}]
                lines += [{"done": True, "done_reason": "stop", "prompt_eval_count": 40, "eval_count": 2, "eval_duration": 40_000_000}] if chat != "cut" else []
                self.send(*map(json.dumps, lines))
            else:
                lines = [{"choices": [{"delta": {"content": "fine"}}]}, {"choices": [{"delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": USAGE}]
                self.send(*(f"data: {json.dumps(line)}\n" for line in lines), "data: [DONE]")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        server.server_close()


class NoCard:
    """pynvml on a host without a driver."""

    class NVMLError(Exception):
        value = 9

    def nvmlInit(self):  # noqa: N802
        raise self.NVMLError


def config(url, **changes):
    load = soak_load.settle("quick", {"duration_s": 0, "rounds": 2, "input_tokens": 64, "pause_s": 0, **changes.pop("load", {})})
    made = {**soak_program.CONFIG, "load": load, "model": "m", "url": url, "ollama_url": url, "interval_s": 0.05, "plan_path": "/nonexistent"}
    return {**made, "guard_state_path": "/nonexistent", "unit": "nobody.service", **changes}


def ran(folder, settings, stop=None):
    reason = soak_program.run(settings, str(folder), nvml=NoCard(), stop=stop)
    return reason, measure.parse((folder / "run.jsonl").read_text(encoding="utf-8").splitlines())


def test_a_run_comes_to_its_end_and_can_be_judged(tmp_path):
    with serving() as (url, seen):
        reason, run = ran(tmp_path, config(url))
    assert reason == run["end"]["reason"] == "done"
    assert len(run["requests"]) == 4 and {request["status"] for request in run["requests"]} == {"ok"}
    assert run["requests"][0]["tokens_in"] == 40 and run["requests"][0]["s_per_token"] == 0.02
    assert run["start"]["versions"]["ollama"] == "0.32.15" and run["start"]["versions"]["digest"] == "ab"
    assert [sample["ps"]["models"] for sample in run["samples"]][-1] == [["m:latest", 100, 100, 4096]]
    assert {path for path, _body, _token in seen} == {"/api/generate", "/api/chat"}
    failed = [verdict["name"] for verdict in verdicts.judge(run)["verdicts"] if verdict["state"] == "fail"]
    assert set(failed) <= {"sampling"}  # twenty samples a second on a busy machine
    assert "100%" in (tmp_path / "progress").read_text(encoding="utf-8")


@pytest.mark.parametrize(("chat", "says"), [("error", "llama-server process has terminated"), ("cut", "broke off")])
def test_what_the_server_does_wrong_is_a_result(tmp_path, chat, says, monkeypatch):
    monkeypatch.setattr(conversations, "ERROR_PAUSE_S", 0)
    with serving(chat) as (url, _seen):
        reason, run = ran(tmp_path, config(url))
    assert reason == "done" and {request["status"] for request in run["requests"]} == {"error"}
    assert says in run["requests"][0]["error"]
    assert {"load", "errors"} <= {verdict["name"] for verdict in verdicts.judge(run)["verdicts"] if verdict["state"] == "fail"}


def test_a_server_that_is_not_there_is_a_result(tmp_path, monkeypatch):
    monkeypatch.setattr(conversations, "ERROR_PAUSE_S", 0)
    reason, run = ran(tmp_path, config("http://127.0.0.1:9"))
    assert reason == "done" and len(run["requests"]) == 4
    assert {"errors", "server"} <= {verdict["name"] for verdict in verdicts.judge(run)["verdicts"] if verdict["state"] == "fail"}


def test_endless_thoughts_are_seen(tmp_path):
    with serving("loop") as (url, _seen):
        _reason, run = ran(tmp_path, config(url))
    assert run["requests"][0]["loop"]["period"] == len("again and again. ")


def test_it_stops_when_asked_also_while_a_request_hangs(tmp_path):
    stop = threading.Event()
    with serving("hang") as (url, _seen):
        threading.Timer(0.6, stop.set).start()
        began = time.monotonic()
        reason, run = ran(tmp_path, config(url), stop)
    assert reason == "stopped" and time.monotonic() - began < 10
    assert run["requests"] == []  # it was us who cut it: no error of the server
    assert run["samples"]


@pytest.mark.parametrize("kind", ["ollama", "openai", "open_webui"])
def test_each_target_is_asked_in_its_own_words(kind):
    load = soak_load.settle("mixed", {"other_num_ctx": 2048, "embed_model": "e", "num_predict": 9, "input_tokens": 64})
    with serving() as (url, seen):
        target = soak_client.Target(kind, url, "m", email="a", password="right", embed_model="e")
        for number in (1, 5):
            answer = target.ask(soak_load.request(load, 1, number))
            assert answer["text"].endswith("fine") and answer["tokens_in"] == 40 and answer["done_reason"] == "stop"
    chats = [(body, token) for path, body, token in seen if "chat" in path]
    assert [path for path, _body, _token in seen if "chat" in path] == [soak_client.PATHS[kind]["chat"]] * 2
    if kind == "ollama":
        assert [body["options"] for body, _token in chats] == [{"num_predict": 9}, {"num_predict": 9, "num_ctx": 2048}]
    else:
        assert chats[0][0]["max_tokens"] == 9 and chats[1][0]["options"] == {"num_ctx": 2048}
    assert {token for _body, token in chats} == ({"Bearer a-token"} if kind == "open_webui" else {None})


def test_a_refused_sign_in_is_an_error_of_the_request():
    with serving() as (url, _seen), pytest.raises(answers.AskError, match="no token"):
        soak_client.Target("open_webui", url, "m", email="a", password="wrong").ask(soak_load.request(soak_load.settle("quick"), 1, 1))


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (b"", "ollama"),
        (b'{"message": {}}', "ollama"),
        (b'{"error": "x"}', "ollama"),
        (b"<html>", "ollama"),
        (b"[]", "openai"),
        (b'data: {"choices": []}', "openai"),
    ],
)
def test_an_answer_that_broke_off_is_none(raw, kind):
    with pytest.raises(answers.AskError):
        answers.parse(raw, kind)


# --- what is seen of the host ---


def process(proc, pid, comm, unit, *argv, start=7, pages=256):
    folder = proc / str(pid)
    folder.mkdir(exist_ok=True)
    (folder / "comm").write_text(f"{comm}\n")
    (folder / "cmdline").write_text("\0".join(argv) + "\0")
    (folder / "cgroup").write_text(f"0::/system.slice/{unit}\n")
    (folder / "statm").write_text(f"999 {pages} 0 0 0 0 0\n")
    (folder / "stat").write_text(f"{pid} ({comm}) S 1 " + " ".join(["0"] * 17) + f" {start} 0\n")


def test_runners_are_found_by_unit_and_name_with_model_and_context(tmp_path):
    model = "/models/blobs/sha256-" + "ab" * 32
    process(tmp_path, 10, "ollama", "ollama.service", "/usr/local/bin/ollama", "serve")
    process(tmp_path, 11, "llama-server", "ollama.service", "llama-server", "--model", model, "-c", "81920", "-np", "2")
    process(tmp_path, 12, "llama-server", "other.service", "llama-server", "--model", model, "-c", "81920")
    process(tmp_path, 13, "llama-server", "ollama.service", "llama-server", "--list-devices")
    seen = processes.Processes("ollama.service", str(tmp_path)).sample(0.0)
    assert seen["server"] == 10 and seen["rss"] == 2.0
    assert seen["runners"] == [{"pid": 11, "start": 7, "model": "ab" * 6, "context": 81920}]


def test_a_runner_that_takes_long_to_become_one_is_found(tmp_path):
    known = processes.Processes("ollama.service", str(tmp_path))
    process(tmp_path, 11, "python3", "ollama.service", "python3", "llama-server")
    assert known.sample(0.0)["runners"] == [] == known.sample(60.0)["runners"]
    process(tmp_path, 11, "llama-server", "ollama.service", "llama-server", "--model", "/m/sha256-" + "cd" * 32, "-c", "4096")
    assert [one["pid"] for one in known.sample(61.0)["runners"]] == [11]


def test_held_is_what_others_do_not_own():
    gpu = {"index": 0, "state": "ok", "used_mib": 9000, "temperature_c": 60, "power_w": 300.0, "gpu_util_percent": 9, "throttle_reasons": []}
    own, other = {"used_mib": 5000, "unit": "ollama.service"}, {"used_mib": 1500, "unit": "x.service"}
    card = watch.card_of({**gpu, "processes": [own, other]}, "ollama.service")
    assert (card["held"], card["others"]) == (7500, 1500)  # 2,500 that nobody owns are the server's
    # One that is ending has lost its unit; it was a runner, and is nobody else's. Without a unit from the start it is somebody's.
    ending, stranger = {"used_mib": 1163, "unit": None, "pid": 11}, {"used_mib": 400, "unit": None, "pid": 12}
    card = watch.card_of({**gpu, "processes": [own, other, ending, stranger]}, "ollama.service", {11})
    assert (card["held"], card["others"]) == (7100, 1900)
    assert watch.card_of({**gpu, "processes": None}, "ollama.service")["others"] is None
    assert watch.card_of({**gpu, "used_mib": None, "processes": []}, "ollama.service")["held"] is None


def test_a_configuration_that_is_none_is_refused_in_a_sentence(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"load": {"preset": "nightly"}, "model": "m"}))
    assert soak_program.main([str(tmp_path)]) == 2
    assert "no preset 'nightly'" in capsys.readouterr().err
    (tmp_path / "config.json").write_text("{")
    assert soak_program.main([str(tmp_path)]) == 2
