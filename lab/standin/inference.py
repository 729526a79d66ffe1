# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""Answers: nonsense, the same for the same prompt, seed and model; and the forms that OpenAI's routes give them."""

from __future__ import annotations

import copy
import hashlib
import http.client
import json
import os
import pkgutil
import random
import time

from .model import Model
from .scheduler import Runner, Scheduler
from .settings import FOREVER_S, ApiError, Faults, duration, rfc3339

SHAPES = json.loads(pkgutil.get_data(__package__, "recorded.json"))["answers"]
"""{name: answer of the real server}; tests/contract/record.py writes it."""

WORDS = (
    "the card holds a layer of quiet numbers and every token finds its place in the cache while one slot waits "
    "for another prompt to arrive from the host where a plan was written down before any weight was moved so "
    "nothing here is measured twice and what was predicted stays true until somebody turns the fan off again"
).split()


def nonsense(seed_text: str, count: int) -> list:
    """The same words for the same text: tokens of an answer."""
    drawn = random.Random(hashlib.sha256(seed_text.encode()).digest())
    return [(" " if index else "") + drawn.choice(WORDS) for index in range(count)]


def keep_alive(body: dict) -> float | None:
    """Seconds, None where not given; ApiError for what is not a duration."""
    value = body.get("keep_alive")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ApiError(400, f"Unsupported type: '{type(value).__name__}'")
    try:
        seconds = duration(value) if isinstance(value, str) else float(value)
    except ValueError as error:
        raise ApiError(400, str(error)) from error
    return FOREVER_S if seconds < 0 else seconds


class Inference:
    """What /api/generate and /api/chat answer: a dict, or lines of a stream."""

    def __init__(self, scheduler: Scheduler, faults: Faults):
        self.scheduler, self.faults = scheduler, faults

    def answer(self, model: Model, body: dict, verb: str):
        """A load, an unload, or the lines of an answer. verb: generate or chat."""
        started, keep_s, chat, name = time.monotonic(), keep_alive(body), verb == "chat", body["model"]
        asks, prompt = body.get("messages") if chat else body.get("prompt"), body.get("prompt") or ""
        if chat:  # the lab's template shows every message's thoughts, so they are part of what is read and counted
            said = [*model.messages, *(asks or [])]
            prompt = "\n".join(f"{m.get('role')}: {m.get('thinking') or ''}{m.get('content')}" for m in said)
        head = {"model": name, **({"message": {"role": "assistant", "content": ""}} if chat else {"response": ""})}
        if not asks and keep_s == 0:
            self.scheduler.unload(model)
            return {**head, "created_at": rfc3339(time.time()), "done": True, "done_reason": "unload"}
        can = model.capabilities()
        for field, capability in (("think", "thinking"), ("tools", "tools"), ("suffix", "insert")):
            if body.get(field) and capability not in can:
                called = f'"{name}"' if field == "think" else model.name.full()
                raise ApiError(400, f"{called} does not support {capability}")
        if "completion" not in can:
            raise ApiError(400, f'"{name}" does not support {verb}')
        options = self.scheduler.options(model, body.get("options"))
        runner = self.scheduler.acquire(model, options, body.get("options"), keep_s)
        if not asks:
            self.scheduler.release(runner)
            return {**head, "created_at": rfc3339(time.time()), "done": True, "done_reason": "load"}
        thinks = "thinking" in can and body.get("think") is not False
        asked = {"head": head, "prompt": prompt, "seen": f"{body.get('system') or model.system}|{prompt}"}
        asked["thoughts"] = int(self.faults.get("thought_tokens", 4)) if thinks else 0
        return self.lines(runner, options, asked, started)

    def lines(self, runner: Runner, options: dict, asked: dict, started: float):
        """One line a token, and the one that says why it ended and what it took."""
        loaded, count, chat = time.monotonic(), 0, "message" in asked["head"]
        try:
            for word, reason in self.words(runner, options, asked["seen"]):  # noqa: B007  (the last one is kept)
                line = {**asked["head"], "created_at": rfc3339(time.time()), "done": word is None}
                if word is not None:
                    key = "thinking" if count < asked["thoughts"] else "content" if chat else "response"
                    line.update({"message": {**line["message"], key: word}} if chat else {key: word})
                    count += 1
                    yield line
            now, read = time.monotonic(), max(len(asked["prompt"].split()), 1)
            line.update(
                done_reason=reason, prompt_eval_count=read, prompt_eval_duration=1_000_000, eval_count=count,
                total_duration=int((now - started) * 1e9), load_duration=int((loaded - started) * 1e9),
                eval_duration=int((now - loaded) * 1e9) + 1,
            )  # fmt: skip
            yield line if chat else {**line, "context": list(range(1, count + read + 1))}
        finally:
            self.scheduler.release(runner)

    def words(self, runner: Runner, options: dict, seen: str):
        """Tokens of an answer from the child: (token, ""), and (None, why it ended)."""
        limit, natural = options["num_predict"], int(self.faults.get("answer_tokens", 32))
        count = natural if limit < 0 else min(limit, natural)
        words = nonsense(f"{os.path.basename(runner.key)}|{max(options['seed'], 0)}|{seen}", count)
        said, buffer, body = "", b"", {"words": words, "delay": float(self.faults.get("token_delay_s", 0.002))}
        connection = None
        try:
            connection, response = runner.request("POST", "/completion", body)
            while count:
                block = response.read1(4096)
                if not block:
                    raise ConnectionResetError("unexpected EOF")
                *whole, buffer = (buffer + block).split(b"\0")
                for word in whole:
                    count, said = count - 1, said + word.decode()
                    if any(stop and stop in said for stop in options["stop"]):
                        yield None, "stop"
                        return
                    yield word.decode(), ""
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(500, "an error was encountered while running the model: unexpected EOF") from error
        finally:
            if connection:
                connection.close()
        yield None, "length" if 0 <= limit <= natural else "stop"


def fold(events: list) -> dict:
    """The lines of an answer as one: its pieces joined, the rest from the last."""
    last = dict(events[-1])
    for key in ("response", "thinking", "content"):
        if any(key in event for event in events):
            last[key] = "".join(event.get(key, "") for event in events)
    if "message" in last:
        last["message"] = fold([event["message"] for event in events])
    return last


def openai_request(body: dict) -> dict:
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    stop = [body["stop"]] if isinstance(body.get("stop"), str) else body.get("stop")
    options = {"num_predict": limit, "stop": stop, "seed": body.get("seed"), "temperature": body.get("temperature")}
    kept = {key: body[key] for key in ("model", "messages", "prompt", "tools") if body.get(key)}
    return {"model": "", **kept, "options": {key: value for key, value in options.items() if value is not None}}


def _answer(name: str, body: dict, last: dict, part: str, text: str, thoughts: str) -> dict:
    """A recorded answer with our words. part: message or delta of a chat, text of a completion."""
    answer = copy.deepcopy(SHAPES[name])
    answer.update(model=body.get("model"), created=int(time.time()))
    choice = answer["choices"][0]
    choice["finish_reason"] = last.get("done_reason")
    if part == "text":
        choice[part] = text
    elif not name.endswith("_last"):
        choice[part] = {"role": "assistant", "content": text, **({"reasoning": thoughts} if thoughts else {})}
    if "usage" in answer:
        read, written = last.get("prompt_eval_count", 0), last.get("eval_count", 0)
        answer["usage"] = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
    return answer


def openai_whole(name: str, body: dict, event: dict) -> dict:
    """One answer. name: chat or completion; event: ours."""
    said = event.get("message") or {"content": event.get("response", "")}
    return _answer(name, body, event, "message" if name == "chat" else "text", said["content"], said.get("thinking"))


def openai_chunks(name: str, body: dict, events):
    for event in events:
        said = event.get("message") or {"content": event.get("response", "")}
        part = "delta" if name == "chat" else "text"
        kind = "last" if event["done"] else "chunk"
        chunk = _answer(f"{name}_{kind}", body, event, part, said["content"], said.get("thinking"))
        yield f"data: {json.dumps(chunk)}\n\n"
    if (body.get("stream_options") or {}).get("include_usage"):
        yield f"data: {json.dumps({**chunk, 'choices': [], 'usage': openai_whole(name, body, event)['usage']})}\n\n"
    yield "data: [DONE]\n\n"


def openai_error(status: int, message: str) -> dict:
    kind = {404: "not_found_error", 400: "invalid_request_error"}.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}
