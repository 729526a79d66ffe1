# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What a soak test asks of a server: presets, and requests that depend on the seed alone.

Nothing is downloaded and nothing that the server answers goes into a later prompt: the assistant's earlier turns are
made up like the user's. So two runs, also against two servers or two settings, are the same load to the letter.

A *load* is a preset with its changes (``settle``); a *request* is::

    {"conversation": int, "round": int,           # from 1
     "kind": "chat" | "title" | "embed" | "other_ctx",
     "messages": [{"role", "content"}] | None,    # None for embed
     "input": str | None,                         # of embed
     "options": {...}, "think": bool | None}
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

# rounds 0: as many as the time allows. duration_s 0: as long as the rounds take.
PRESETS: dict[str, dict[str, Any]] = {
    # The article's own: fifteen rounds of reasoning over about 8,000 tokens, a second apart.
    "article": {
        "conversations": 1,
        "rounds": 15,
        "duration_s": 0,
        "input_tokens": 8192,
        "pause_s": 1.0,
        "kinds": ("chat",),
    },
    "quick": {
        "conversations": 2,
        "rounds": 0,
        "duration_s": 120,
        "input_tokens": 1024,
        "pause_s": 0.5,
        "kinds": ("chat",),
    },
    "night": {
        "conversations": 4,
        "rounds": 0,
        "duration_s": 8 * 3600,
        "input_tokens": 8192,
        "pause_s": 1.0,
        "kinds": ("chat", "chat", "chat", "title"),
    },
    # What really arrives: a chat, the title that Open WebUI has made of it, a search's embedding, a client with an idea
    # of its own.
    "mixed": {
        "conversations": 2,
        "rounds": 12,
        "duration_s": 0,
        "input_tokens": 2048,
        "pause_s": 1.0,
        "kinds": ("chat", "title", "embed", "chat", "other_ctx", "chat"),
    },
}

# Changes that settle() takes besides the keys of a preset.
DEFAULTS: dict[str, Any] = {"seed": 1, "num_predict": 0, "think": None, "other_num_ctx": 0, "embed_model": ""}

TITLE_TOKENS = 32

# Short, common words: one token each for any tokenizer that knows English, so a prompt of so many words is one of
# about so many tokens.
WORDS = (
    "the of and to in is that it was for on are as with they be at one have this from or had by but some what there"
    " we can out other were all your when up use how each she which do their time if will way about many then them"
    " would write like so these her long make thing see him two has look more day could go come did my sound no most"
    " number who over know water than call first people may down side been now find any new work part take get place"
    " made live where after back little only round man year came show every good me give our under name very through"
    " just form much great think say help low line before turn cause same mean move right old too does tell set"
    " three want air well also play small end put home read hand large spell add even land here must big high such"
    " follow act why ask men change went light kind off need house picture try us again animal point mother world"
    " near build self earth father head stand own page should country found answer school grow study still learn"
    " plant cover food sun four"
).split()


class LoadError(Exception):
    """A load that cannot be made; the text is for an operator."""


def settle(preset: str, changes: dict[str, Any] | None = None) -> dict[str, Any]:
    """A preset with its changes, complete and checked. Raises LoadError."""
    if preset not in PRESETS:
        raise LoadError(
            f"There is no preset '{preset}'; there are {', '.join(sorted(PRESETS))}."
            " Choose one, and change what you like of it."
        )
    load = {**DEFAULTS, **PRESETS[preset], **(changes or {}), "preset": preset}
    unknown = set(load) - set(DEFAULTS) - set(PRESETS[preset]) - {"preset"}
    if unknown:
        raise LoadError(
            f"A load has no {', '.join(sorted(unknown))}; it has {', '.join(sorted({*DEFAULTS, *PRESETS[preset]}))}."
        )
    for key, least, most in (
        ("conversations", 1, 256),
        ("rounds", 0, 10**6),
        ("duration_s", 0, 14 * 86400),
        ("input_tokens", 16, 10**6),
        ("pause_s", 0, 3600),
        ("num_predict", 0, 10**6),
        ("other_num_ctx", 0, 10**7),
    ):
        value = load[key]
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise LoadError(f"{key} is {value!r}; a number from {least} to {most} was wanted.")
    if not load["rounds"] and not load["duration_s"]:
        raise LoadError("A load with rounds=0 and duration_s=0 has no end; set one of them.")
    load["kinds"] = tuple(kind for kind in load["kinds"] if kind != "embed" or load["embed_model"])
    strange = set(load["kinds"]) - {"chat", "title", "embed", "other_ctx"}
    if strange or not load["kinds"]:
        raise LoadError(
            f"kinds has {', '.join(sorted(strange)) or 'nothing'};"
            " chat, title, embed (with embed_model) and other_ctx were wanted."
        )
    if "other_ctx" in load["kinds"] and not load["other_num_ctx"]:
        raise LoadError("A client that sends another num_ctx needs to know which; set other_num_ctx, such as 8192.")
    return load


def words(source: random.Random, count: int) -> str:
    """So many words in sentences of a dozen, about as many tokens."""
    made = source.choices(WORDS, k=max(count, 1))
    return ". ".join(" ".join(made[start : start + 12]).capitalize() for start in range(0, len(made), 12)) + "."


def question(seed: int, conversation: int, number: int) -> str:
    """A question that is worth a thought; the same for the same three numbers."""
    source = random.Random(f"{seed}/{conversation}/{number}/question")
    shelves, boxes, parts, lost = (source.randint(low, high) for low, high in ((3, 40), (5, 60), (10, 200), (1, 9)))
    return (
        f"Round {number}. A store has {shelves} shelves with {boxes} boxes each and {parts} parts a box;"
        f" every {lost}th box is short of {lost} parts."
        " How many parts are there, and how sure can one be of it? Reason step by step, then answer in one line."
    )


def messages(load: dict[str, Any], conversation: int, number: int) -> list[dict[str, str]]:
    """Round `number` of a conversation: earlier turns and a text, together about input_tokens long in every round.

    Half of the length is history (as many of the last rounds as go into it), the rest a text that is new each round, so
    that rounds can be compared with each other and no cache of prompts answers them.
    """
    seed, budget = load["seed"], int(load["input_tokens"])
    asked = question(seed, conversation, number)
    left = budget - len(asked.split())
    history: list[dict[str, str]] = []
    turn = max(budget // 8, 8)
    for earlier in range(number - 1, 0, -1):
        if len(history) // 2 >= 4 or left < 2 * turn:
            break
        source = random.Random(f"{seed}/{conversation}/{earlier}/turn")
        history[:0] = [
            {"role": "user", "content": question(seed, conversation, earlier)},
            {"role": "assistant", "content": words(source, turn)},
        ]
        left -= turn + len(history[0]["content"].split())
    text = words(random.Random(f"{seed}/{conversation}/{number}/text"), left) if left > 0 else ""
    return [*history, {"role": "user", "content": f"{text}\n\n{asked}".strip()}]


def request(load: dict[str, Any], conversation: int, number: int) -> dict[str, Any]:
    """The request of one round of one conversation."""
    kind = load["kinds"][(number - 1) % len(load["kinds"])]
    made: dict[str, Any] = {
        "conversation": conversation,
        "round": number,
        "kind": kind,
        "messages": None,
        "input": None,
        "options": {},
        "think": load["think"],
    }
    if load["num_predict"]:
        made["options"]["num_predict"] = int(load["num_predict"])
    if kind == "embed":
        made.update(
            input=words(random.Random(f"{load['seed']}/{conversation}/{number}/embed"), 128), options={}, think=None
        )
    elif kind == "title":
        text = words(
            random.Random(f"{load['seed']}/{conversation}/{number}/title"), min(int(load["input_tokens"]), 256)
        )
        made.update(
            messages=[{"role": "user", "content": f"Give this chat a title of at most five words.\n\n{text}"}],
            think=None,
        )
        made["options"]["num_predict"] = TITLE_TOKENS
    else:
        made["messages"] = messages(load, conversation, number)
        if kind == "other_ctx":
            made["options"]["num_ctx"] = int(load["other_num_ctx"])
    return made


def requests(load: dict[str, Any], conversation: int) -> Iterator[dict[str, Any]]:
    """All requests of one conversation, without an end where rounds is 0."""
    number = 0
    while not load["rounds"] or number < load["rounds"]:
        number += 1
        yield request(load, conversation, number)


def share_done(load: dict[str, Any], elapsed_s: float, rounds_done: int) -> float:
    """How much of the load is done, 0 to 1, by whichever bound is nearer."""
    shares = [0.0]
    if load["duration_s"]:
        shares.append(elapsed_s / load["duration_s"])
    if load["rounds"]:
        shares.append(rounds_done / (load["rounds"] * load["conversations"]))
    return min(max(shares), 1.0)


def problems(changes, preset):
    """What is wrong with the changes (``soak_load``) to a preset, a sentence each; [] where nothing is."""
    try:
        settle(preset, dict(changes))
    except (LoadError, TypeError, ValueError) as error:
        return [f"soak_load: {error}"]
    return []
