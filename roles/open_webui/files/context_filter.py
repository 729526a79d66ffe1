"""
title: Bounded context
author: gpufleet.llm maintainers
version: 1.0.0
license: GPL-3.0-or-later
description: Keeps the last rounds of a conversation, drops earlier thoughts, takes runner options out of requests.
"""

# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Runs inside Open WebUI, before each request to a model. A filter that raises makes the chat fail, so
# whatever it cannot understand it passes on as it came.

from __future__ import annotations

import itertools
import logging
import re

from pydantic import BaseModel, Field

log = logging.getLogger(__name__)

# Options of Ollama's runner and members of the request that load a model again or unload it: the collection's one list
# (plugins/module_utils/_ollama/runner_options.py), which a test compares with this one.
RUNNER_OPTIONS = (
    "draft_num_predict",
    "f16_kv",
    "flash_attention",
    "flash_attn",
    "keep_alive",
    "kv_cache_type",
    "logits_all",
    "low_vram",
    "main_gpu",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_gqa",
    "num_parallel",
    "num_thread",
    "numa",
    "rope_frequency_base",
    "rope_frequency_scale",
    "shift",
    "use_mlock",
    "use_mmap",
    "vocab_only",
)

# Where servers and clients put thoughts beside the content.
THOUGHT_KEYS = ("thinking", "reasoning", "reasoning_content", "reasoning_details")

# What the scans below look for. No pattern has a part of open length, so a scan reads each byte once: its time grows with
# the text's length, whatever a client has put into it.
TAG = re.compile(r"<(/?)((?i:think|thinking|thought|reasoning))>")
DETAILS = re.compile(r"<(?i:details)\b")
REASONING = re.compile(r'\b(?i:type="reasoning")')
DETAILS_END = re.compile(r"</(?i:details)>")
OPENED = re.compile(r"\s*<(?i:think|thinking|thought|reasoning)>")
CLOSED = re.compile(r"</(?i:think)>")
BLANKS = re.compile(r"\s*")
MAX_TAGS = 10000  # of one message; what stands behind them stays as it is

CHARACTERS_PER_TOKEN = 4  # a rough middle for Latin text; Qwen3's own tokenizer is not here
TOKENS_PER_MESSAGE = 4  # role and the template's marks around it
TOKENS_PER_IMAGE = 1000


def split(messages):
    """(system messages, rounds): a round is a user's message with everything up to the next one.

    What stands before the first user's message and is no system message (a greeting) is a round of its own,
    so that answers of tools always stay with the call that asked for them.
    """
    system, rounds = [], []
    for message in messages:
        if message.get("role") in ("system", "developer"):
            system.append(message)
        elif message.get("role") == "user" or not rounds:
            rounds.append([message])
        else:
            rounds[-1].append(message)
    return system, rounds


def without_thoughts(message):
    """The message without what its author thought; the same object where there is nothing to leave out."""
    if message.get("role") != "assistant":
        return message
    kept = {key: value for key, value in message.items() if key not in THOUGHT_KEYS}
    content = kept.get("content")
    if isinstance(content, str):
        kept["content"] = _clean(content)
    elif isinstance(content, list):
        kept["content"] = [
            {**part, "text": _clean(part["text"])} if isinstance(part, dict) and isinstance(part.get("text"), str) else part
            for part in content
            if not (isinstance(part, dict) and part.get("type") in ("thinking", "reasoning", "redacted_thinking"))
        ]
    return message if kept == message else kept


def _clean(text):
    """The text without thoughts: closed ones; those that Open WebUI stores; one cut off before its end; one begun by the template."""
    if "</" in text:
        text = _cut(text, _tagged(text))
        text = _cut(text, _stored(text))
    if OPENED.match(text):
        return ""
    end = CLOSED.search(text) if "</" in text else None
    return text[end.end() :].lstrip() if end else text


def _tagged(text):
    """[start, end) of each `<think>…</think>` and its like."""
    found = itertools.islice(TAG.finditer(text), MAX_TAGS)
    tags = [(tag.start(), tag.end(), not tag[1], tag[2].lower()) for tag in found]
    last = {name: end for _start, end, opens, name in tags if not opens}
    begun, thought = None, None
    for start, end, opens, name in tags:
        if begun is None:
            if opens and last.get(name, 0) > end:
                begun, thought = start, name
        elif not opens and name == thought:
            yield begun, end
            begun = None


def _stored(text):
    """[start, end) of each `<details type="reasoning">…</details>`, as Open WebUI stores a thought."""
    reasoning, at = REASONING.search(text), 0
    for _attempt in range(MAX_TAGS):
        begun = DETAILS.search(text, at) if reasoning else None
        bracket = text.find(">", begun.end()) if begun else -1
        if bracket < 0:
            return
        if reasoning.start() < begun.end():
            reasoning = REASONING.search(text, begun.end())
        at = bracket + 1
        if reasoning and reasoning.start() < bracket:
            end = DETAILS_END.search(text, at)
            if not end:
                return
            yield begun.start(), end.end()
            at = end.end()


def _cut(text, ranges):
    """The text without these ranges and the blanks behind each."""
    kept, at = [], 0
    for start, end in ranges:
        kept.append(text[at:start])
        at = BLANKS.match(text, end).end()
    return "".join([*kept, text[at:]])


def tokens(messages):
    """Estimate of the tokens that the messages take."""
    total = 0
    for message in messages:
        total += TOKENS_PER_MESSAGE
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            if isinstance(part, str):
                total += len(part) // CHARACTERS_PER_TOKEN
            elif isinstance(part, dict):
                text = part.get("text")
                total += len(text) // CHARACTERS_PER_TOKEN if isinstance(text, str) else TOKENS_PER_IMAGE
        beside = [message[key] for key in ("tool_calls", *THOUGHT_KEYS) if message.get(key)]
        total += sum(len(str(value)) // CHARACTERS_PER_TOKEN for value in beside)
        total += TOKENS_PER_IMAGE * len(message.get("images") or ())
    return total


def bounded(messages, max_rounds=6, drop_thoughts=True, max_tokens=0):
    """The messages to send: system messages, then the last rounds that count and budget allow; the last round always, whole."""
    system, rounds = split(messages)
    if not rounds:
        return messages
    if max_rounds > 0:
        rounds = rounds[-max_rounds:]
    if drop_thoughts:
        # Thoughts of the round at work stay: a model that calls tools goes on from them.
        rounds = [[without_thoughts(message) for message in earlier] for earlier in rounds[:-1]] + rounds[-1:]
    if max_tokens > 0:
        left = max_tokens - tokens(system) - tokens(rounds[-1])
        kept = rounds[-1:]
        for earlier in reversed(rounds[:-1]):
            left -= tokens(earlier)
            if left < 0:
                break
            kept.insert(0, earlier)
        rounds = kept
    return system + [message for whole in rounds for message in whole]


def without_runner_options(body):
    """The request without what would make the server load the model again or unload it, in whatever case it is written."""
    kept = _without_runner_names(body)
    for key in kept:
        if _folded(key) in ("options", "params") and isinstance(kept[key], dict):
            kept[key] = _without_runner_names(kept[key])
            for inner in kept[key]:
                if inner == "custom_params" and isinstance(kept[key][inner], dict):
                    kept[key][inner] = _without_runner_names(kept[key][inner])
    return kept


def _without_runner_names(members):
    return {key: value for key, value in members.items() if _folded(key) not in RUNNER_OPTIONS}


def _folded(key):
    """A name as Go's encoding/json compares it: in any case, where the long s and the Kelvin sign are s and k."""
    return str(key).lower().replace("\u017f", "s").replace("\u212a", "k")


class Filter:
    """What Open WebUI calls."""

    class Valves(BaseModel):
        """Settings that the administrator's page shows."""

        priority: int = Field(default=0, description="Order among filters; the lowest runs first.")
        max_rounds: int = Field(default=6, description="Rounds sent with a new question, it included; 0 sends all.")
        drop_thoughts: bool = Field(default=True, description="Leave out what the model thought in earlier rounds.")
        max_tokens: int = Field(default=0, description="Budget in tokens for the whole request, estimated; 0 sets none.")
        strip_runner_options: bool = Field(default=True, description="Take num_ctx and the like out of requests.")

    def __init__(self):
        self.valves = self.Valves()

    def inlet(self, body):
        """The request as it is to reach the model."""
        kept = without_runner_options(body) if self.valves.strip_runner_options else dict(body)
        try:
            messages = body.get("messages")
            if isinstance(messages, list):
                kept["messages"] = bounded(messages, self.valves.max_rounds, self.valves.drop_thoughts, self.valves.max_tokens)
        except Exception:
            log.exception("gpufleet_context passed the messages of a request on as they came")
        # In place: callers may hold on to the object they handed over.
        body.clear()
        body.update(kept)
        return body
