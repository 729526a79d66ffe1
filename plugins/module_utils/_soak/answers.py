# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What an answer says: tokens, times, the reason of its end, and whether its text repeats itself. Pure."""

from __future__ import annotations

import json
from typing import Any


class AskError(Exception):
    """A request that was not answered; ``status`` is HTTP's where there was one."""

    def __init__(self, text, status=None):
        super().__init__(text)
        self.status = status


def parse(raw: bytes, kind: str, embed: bool = False) -> dict[str, Any]:
    """{tokens_in, tokens_out, s_per_token, load_s, done_reason, text} of an answer's body.

    *kind*: ollama, or a server that speaks OpenAI's way. Raises AskError for an answer that broke off, or that is of
    another shape.
    """
    try:
        if embed:
            return _of_embedding(_object(raw))
        entries = list(_entries(raw))
        return _of_ollama(entries) if kind == "ollama" else _of_openai(entries)
    except (AttributeError, IndexError, KeyError, TypeError):
        raise AskError(f"The answer is of another shape than that of {kind}: {error_in(raw)}") from None


def _entries(raw):
    """The JSON objects of an answer that came line by line, or as events. Raises AskError for one that is an error."""
    for whole in raw.split(b"\n"):
        line = whole.strip()
        line = line[5:].strip() if line.startswith(b"data:") else line
        if not line or line.startswith(b":") or line == b"[DONE]":
            continue
        entry = _object(line)
        if entry.get("error"):
            raise AskError(f"The answer broke off: {error_in(line)}")
        yield entry


def _object(raw):
    try:
        entry = json.loads(raw)
    except ValueError:
        raise AskError(f"The answer is no JSON: {error_in(raw)}") from None
    if not isinstance(entry, dict):
        raise AskError(f"The answer is no object: {error_in(raw)}")
    return entry


def _of_embedding(answer):
    usage = answer.get("usage") or answer
    tokens = {"prompt_eval_count": usage.get("prompt_eval_count", usage.get("prompt_tokens"))}
    return _answer({**tokens, "load_duration": answer.get("load_duration")})


def _of_ollama(entries):
    last = next((entry for entry in reversed(entries) if entry.get("done")), None)
    if last is None:
        raise AskError("The answer broke off without its last line.")
    messages = [entry.get("message") or {} for entry in entries]
    pieces = [(one.get("thinking") or "") + (one.get("content") or "") for one in messages]
    return _answer(last, pieces, last.get("done_reason"))


def _of_openai(entries):
    choices = [(entry.get("choices") or [{}])[0] for entry in entries]
    reasons = [choice["finish_reason"] for choice in choices if choice.get("finish_reason")]
    if not reasons:
        raise AskError("The answer broke off before it gave a reason for its end.")
    deltas = [choice.get("delta") or choice.get("message") or {} for choice in choices]
    pieces = [
        (one.get("reasoning") or one.get("reasoning_content") or "") + (one.get("content") or "") for one in deltas
    ]
    usage: dict = next((entry["usage"] for entry in reversed(entries) if entry.get("usage")), {})
    return _answer(usage, pieces, reasons[-1])


def _answer(counts, pieces=(), done_reason=None):
    """The answer of parse(); *counts* has tokens and nanoseconds by the names of either API."""
    text = [piece for piece in pieces if piece]
    seconds, load = None, counts.get("load_duration")
    if counts.get("eval_duration") and counts.get("eval_count"):
        seconds = counts["eval_duration"] / 1e9 / counts["eval_count"]
    return {
        "tokens_in": counts.get("prompt_eval_count", counts.get("prompt_tokens")),
        "tokens_out": counts.get("eval_count", counts.get("completion_tokens")) or len(text) or None,
        "s_per_token": seconds,
        "load_s": None if load is None else round(load / 1e9, 4),
        "done_reason": done_reason,
        "text": "".join(text),
    }


def error_in(raw: bytes) -> str:
    """The error in an answer's body, in short."""
    try:
        answer = json.loads(raw)
        error = answer.get("error", answer.get("detail", answer))
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError):
        return " ".join(raw[:300].decode("utf-8", "replace").split()) or "nothing"


def loop_of(text, least_chars=400, least_turns=6):
    """{at, period} in characters where a text's end repeats itself, None where it does not.

    The end of a text that is at least six times the same, and 400 characters of it, is no thought any more.
    """
    tail = text[-8 * least_chars :][::-1]
    if len(tail) < least_chars:
        return None
    # The failure function of Knuth, Morris and Pratt: the shortest period of each prefix of the reversed tail.
    fail = [0] * len(tail)
    best, length = None, 0
    for place in range(1, len(tail)):
        while length and tail[place] != tail[length]:
            length = fail[length - 1]
        if tail[place] == tail[length]:
            length += 1
        fail[place] = length
        period, size = place + 1 - length, place + 1
        if size >= least_chars and size >= least_turns * period:
            best = (size, period)
    return {"at": len(text) - best[0], "period": best[1]} if best else None
