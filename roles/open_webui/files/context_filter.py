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

import logging
import re

from pydantic import BaseModel, Field

log = logging.getLogger(__name__)

# Options that belong to the runner: another value than the loaded one makes Ollama load the model again.
RUNNER_OPTIONS = (
    "keep_alive",
    "main_gpu",
    "num_batch",
    "num_ctx",
    "num_gpu",
    "num_thread",
    "use_mlock",
    "use_mmap",
)

# Where servers and clients put thoughts beside the content.
THOUGHT_KEYS = ("thinking", "reasoning", "reasoning_content", "reasoning_details")

# Thoughts inside the content: closed; as the page stores them; cut off before the end; begun by the prompt's template.
THOUGHTS = (
    re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>\s*", re.DOTALL | re.IGNORECASE),
    re.compile(r"<details\b[^>]*\btype=\"reasoning\"[^>]*>.*?</details>\s*", re.DOTALL | re.IGNORECASE),
    re.compile(r"\A\s*<(?:think|thinking|thought|reasoning)>.*\Z", re.DOTALL | re.IGNORECASE),
    re.compile(r"\A.*?</think>\s*", re.DOTALL | re.IGNORECASE),
)

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
    if "</" not in text and "<" not in text:
        return text
    for pattern in THOUGHTS:
        text = pattern.sub("", text)
    return text


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
    """The request without options that would make the server load the model anew."""
    kept = {key: value for key, value in body.items() if key not in RUNNER_OPTIONS}
    for place in ("options", "params"):
        if isinstance(kept.get(place), dict):
            kept[place] = {key: value for key, value in kept[place].items() if key not in RUNNER_OPTIONS}
    return kept


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
        try:
            kept = without_runner_options(body) if self.valves.strip_runner_options else dict(body)
            messages = body.get("messages")
            if isinstance(messages, list):
                kept["messages"] = bounded(messages, self.valves.max_rounds, self.valves.drop_thoughts, self.valves.max_tokens)
            # In place: callers may hold on to the object they handed over.
            body.clear()
            body.update(kept)
        except Exception:
            log.exception("gpufleet_context passed a request on as it came")
        return body
