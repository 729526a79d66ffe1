# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers: their form, their end, their errors. What they say is nobody's business here."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.both

SHORT = {"num_predict": 4, "seed": 7, "temperature": 0}
CHAT = [{"role": "user", "content": "hello there"}]


def test_a_stream_of_generate(server):
    answer = server.post("/api/generate", {"model": "plain", "prompt": "hello", "options": SHORT})
    assert answer.status == 200 and answer.headers["Content-Type"] == "application/x-ndjson"
    lines = answer.lines()
    assert all(line["done"] is False and "response" in line for line in lines[:-1])
    last = lines[-1]
    assert last["done"] is True and last["done_reason"] == "length" and last["eval_count"] == 4
    for field in ("total_duration", "load_duration", "prompt_eval_count", "prompt_eval_duration", "eval_duration"):
        assert last[field] > 0


def test_generate_without_stream(server):
    body = {"model": "plain", "prompt": "hello", "options": SHORT}
    whole = server.post("/api/generate", {**body, "stream": False}).json()
    pieces = server.post("/api/generate", body).lines()
    assert whole["response"] == "".join(line["response"] for line in pieces) and whole["done"] is True


def test_context_comes_back_from_generate(server):
    whole = server.post("/api/generate", {"model": "plain", "prompt": "hello", "options": SHORT, "stream": False}).json()
    assert all(isinstance(token, int) for token in whole["context"])


def test_the_same_seed_says_the_same(server):
    body = {"model": "plain", "prompt": "hello", "options": SHORT, "stream": False}
    assert server.post("/api/generate", body).json()["response"] == server.post("/api/generate", body).json()["response"]


def test_a_stream_of_chat(server):
    lines = server.post("/api/chat", {"model": "plain", "messages": CHAT, "options": SHORT}).lines()
    assert all(line["message"]["role"] == "assistant" for line in lines)
    assert lines[-1]["done"] is True and lines[-1]["done_reason"] == "length" and lines[-1]["eval_count"] == 4


def test_chat_without_stream(server):
    whole = server.post("/api/chat", {"model": "plain", "messages": CHAT, "options": SHORT, "stream": False}).json()
    assert whole["message"]["content"] and whole["done_reason"] == "length" and whole["model"] == "plain"


def test_an_answer_that_a_stop_sequence_ends(server):
    free = {"seed": 1, "num_predict": 12, "temperature": 0}
    text = server.post("/api/generate", {"model": "plain", "prompt": "x", "options": free, "stream": False}).json()["response"]
    cut = text[len(text) // 2 :][:3]
    whole = server.post("/api/generate", {"model": "plain", "prompt": "x", "options": {**free, "stop": [cut]}, "stream": False}).json()
    assert whole["done_reason"] == "stop" and cut not in whole["response"] and len(whole["response"]) < len(text)


def test_an_empty_stop_list_stops_nothing(server):
    whole = server.post("/api/generate", {"model": "plain", "prompt": "x", "options": {**SHORT, "stop": []}, "stream": False}).json()
    assert whole["done_reason"] == "length"


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
def test_thinking_is_refused_where_there_is_none(server, path):
    answer = server.post(path, {"model": "plain", "prompt": "x", "messages": CHAT, "think": True})
    assert (answer.status, answer.json()) == (400, {"error": '"plain" does not support thinking'})


def test_thinking_can_be_switched_off(server):
    answer = server.post("/api/chat", {"model": "base", "messages": CHAT, "think": False, "stream": False, "options": SHORT})
    assert answer.status == 200 and not answer.json()["message"].get("thinking")


def test_tools_are_refused_where_there_are_none(server):
    tool = {
        "type": "function",
        "function": {"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}},
    }
    answer = server.post("/api/chat", {"model": "plain", "messages": CHAT, "tools": [tool]})
    assert answer.status == 400 and "does not support tools" in answer.json()["error"]


@pytest.mark.parametrize(("path", "verb"), [("/api/generate", "generate"), ("/api/chat", "chat")])
def test_an_embedding_model_does_not_generate(server, path, verb):
    answer = server.post(path, {"model": "vectors", "prompt": "x", "messages": CHAT})
    assert (answer.status, answer.json()) == (400, {"error": f'"vectors" does not support {verb}'})


def test_options_of_a_wrong_type(server):
    answer = server.post("/api/generate", {"model": "plain", "prompt": "x", "options": {"num_ctx": "4096"}})
    assert answer.status == 500 and answer.error() == 'option "num_ctx" must be of type integer'


def test_options_that_do_not_exist_are_ignored(server):
    assert server.post("/api/generate", {"model": "plain", "prompt": "x", "stream": False, "options": {**SHORT, "cache_type": "q8_0"}}).status == 200


def test_options_that_are_no_object(server):
    assert server.post("/api/generate", {"model": "plain", "prompt": "x", "options": [1]}).status == 400


@pytest.mark.real
def test_raw_mode_excludes_a_template(server):
    answer = server.post("/api/generate", {"model": "plain", "prompt": "x", "raw": True, "system": "s"})
    assert (answer.status, answer.json()) == (400, {"error": "raw mode does not support template, system, or context"})


@pytest.mark.real
@pytest.mark.parametrize(("given", "count"), [("one", 1), (["one", "two"], 2), ([], 0), ("", 0)])
def test_embed(server, given, count):
    answer = server.post("/api/embed", {"model": "vectors", "input": given}).json()
    assert len(answer["embeddings"]) == count and answer["model"] == "vectors"
    for vector in answer["embeddings"]:
        assert len(vector) == 64 and abs(sum(value * value for value in vector) - 1) < 1e-3


@pytest.mark.real
def test_embed_of_a_wrong_type(server):
    answer = server.post("/api/embed", {"model": "vectors", "input": 3})
    assert (answer.status, answer.json()) == (400, {"error": "invalid input type"})


@pytest.mark.real
def test_embed_is_the_same_twice(server):
    body = {"model": "vectors", "input": "same"}
    first, second = (server.post("/api/embed", body).json()["embeddings"][0] for _call in range(2))
    assert all(abs(one - other) < 1e-4 for one, other in zip(first, second))


@pytest.mark.real
def test_embed_asked_of_a_model_that_answers(server):
    answer = server.post("/api/embed", {"model": "plain", "input": "x"})
    assert answer.status == 501 and "does not support embeddings" in answer.json()["error"]


def test_suffix_is_refused_where_the_template_has_none(server):
    answer = server.post("/api/generate", {"model": "plain", "prompt": "x", "suffix": "y"})
    assert answer.status == 400 and answer.json()["error"].endswith("plain:latest does not support insert")


@pytest.mark.real
def test_a_format_that_is_none(server):
    answer = server.post("/api/generate", {"model": "plain", "prompt": "x", "format": "yaml", "stream": False})
    assert answer.status == 500 and "invalid format" in answer.json()["error"]


@pytest.mark.real
def test_stream_of_a_wrong_type(server):
    answer = server.post("/api/generate", {"model": "plain", "stream": "yes"})
    assert answer.status == 400 and "GenerateRequest.stream of type bool" in answer.json()["error"]


# -- OpenAI


def test_openai_chat(server):
    answer = server.post("/v1/chat/completions", {"model": "plain", "messages": CHAT, "max_tokens": 4, "seed": 1}).json()
    assert answer["object"] == "chat.completion" and answer["model"] == "plain"
    choice = answer["choices"][0]
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] == "length" and choice["index"] == 0
    assert answer["usage"]["completion_tokens"] == 4 and answer["usage"]["total_tokens"] == answer["usage"]["prompt_tokens"] + 4


def test_openai_chat_stream(server):
    body = {"model": "plain", "messages": CHAT, "max_tokens": 4, "stream": True, "stream_options": {"include_usage": True}}
    answer = server.post("/v1/chat/completions", body)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    parsed = [json.loads(event) for event in events[:-1]]
    assert all(event["object"] == "chat.completion.chunk" for event in parsed)
    assert parsed[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [event for event in parsed if event["choices"] and event["choices"][0]["finish_reason"] == "length"]
    assert parsed[-1]["usage"]["completion_tokens"] == 4


def test_openai_completions(server):
    answer = server.post("/v1/completions", {"model": "plain", "prompt": "hello", "max_tokens": 4}).json()
    assert answer["object"] == "text_completion" and answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.real
def test_openai_embeddings(server):
    answer = server.post("/v1/embeddings", {"model": "vectors", "input": "x"}).json()
    assert answer["object"] == "list" and len(answer["data"][0]["embedding"]) == 64


def test_openai_error_of_an_unknown_model(server):
    answer = server.post("/v1/chat/completions", {"model": "nobody", "messages": CHAT})
    assert answer.status == 404 and "nobody" in answer.json()["error"]["message"] and "not found" in answer.json()["error"]["message"]


def test_openai_chat_cannot_set_num_ctx(quiet):
    quiet.load("plain", options={"num_ctx": 2048})
    quiet.unload_all()
    quiet.post(
        "/v1/chat/completions",
        {"model": "plain", "messages": CHAT, "max_tokens": 1, "num_ctx": 1024, "options": {"num_ctx": 1024}},
    )
    assert quiet.loaded()[0]["context_length"] != 1024
