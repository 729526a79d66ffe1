# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The filter function that Open WebUI runs, loaded as plain Python."""

from __future__ import annotations

import copy
import importlib.util
import pathlib
import re
import sys
import time
import types

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import functions as open_webui_functions

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies
PATH = pathlib.Path(__file__).resolve().parents[3] / "roles" / "open_webui" / "files" / "context_filter.py"


@pytest.fixture(scope="module")
def filters():
    """The file as a module; pydantic, which Open WebUI brings, is played by a class that keeps defaults."""

    class BaseModel:
        def __init__(self, **values):
            for name, value in vars(type(self)).items():
                if not name.startswith("_"):
                    setattr(self, name, values.get(name, value))

    stand_in = types.ModuleType("pydantic")
    stand_in.BaseModel, stand_in.Field = BaseModel, lambda default, description: default
    former = sys.modules.get("pydantic")
    sys.modules["pydantic"] = stand_in
    try:
        spec = importlib.util.spec_from_file_location("context_filter", PATH)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        del sys.modules["pydantic"]
        if former is not None:
            sys.modules["pydantic"] = former
    return module


def conversation(rounds, thought="<think>hm</think>"):
    """A system message, whole rounds with thoughts, and a new question."""
    messages = [{"role": "system", "content": "be brief"}]
    for number in range(1, rounds):
        messages.append({"role": "user", "content": f"q{number}"})
        messages.append({"role": "assistant", "content": f"{thought}a{number}", "thinking": "t" * 40})
    return [*messages, {"role": "user", "content": f"q{rounds}"}]


def test_keeps_the_last_rounds_and_the_system_message(filters):
    sent = filters.bounded(conversation(10), max_rounds=3)
    assert [message["content"] for message in sent] == ["be brief", "q8", "a8", "q9", "a9", "q10"]
    assert not any("thinking" in message for message in sent)


@pytest.mark.parametrize(("rounds", "length"), [(0, 20), (1, 2), (6, 12), (99, 20)])
def test_max_rounds(filters, rounds, length):
    assert len(filters.bounded(conversation(10), max_rounds=rounds)) == length


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("<think>a</think>\n\nb", "b"),
        ("<think>a</think>b<think>c</think>d", "bd"),
        ("<Thinking>a\nb</Thinking>c", "c"),
        ("a</think>\n\nb", "b"),
        ("<think>cut off in the middle", ""),
        ('<details type="reasoning" done="true"><summary>x</summary>y</details>\nb', "b"),
        ("2 < 3 and 4 > 3", "2 < 3 and 4 > 3"),
        ("write <thinking about it> here", "write <thinking about it> here"),
        ("<details><summary>x</summary>kept</details>", "<details><summary>x</summary>kept</details>"),
    ],
)
def test_thoughts_in_the_content(filters, said, left):
    assert filters.without_thoughts({"role": "assistant", "content": said})["content"] == left


# The meaning of the scans in four patterns, which are right and take quadratic time.
MEANING = (
    re.compile(r"<(think|thinking|thought|reasoning)>.*?</\1>\s*", re.DOTALL | re.IGNORECASE),
    re.compile(r"<details\b[^>]*\btype=\"reasoning\"[^>]*>.*?</details>\s*", re.DOTALL | re.IGNORECASE),
    re.compile(r"\A\s*<(?:think|thinking|thought|reasoning)>.*\Z", re.DOTALL | re.IGNORECASE),
    re.compile(r"\A.*?</think>\s*", re.DOTALL | re.IGNORECASE),
)
PIECES = (
    '<think> </think> <Thinking> </thinking> <reasoning> </reasoning> <thought> </THOUGHT> <details </details> <details> </ < > a x=1 type="reasoning"'
).split()


@hypothesis.settings(max_examples=400, deadline=None)
@hypothesis.given(pieces=st.lists(st.sampled_from([*PIECES, " ", "\n", ' type="reasoning">', '<details type="reasoning">']), max_size=14))
def test_the_scans_mean_what_the_patterns_mean(filters, pieces):
    said = left = "".join(pieces)
    for pattern in MEANING:
        left = pattern.sub("", left)
    assert filters.without_thoughts({"role": "assistant", "content": said})["content"] == left


HOSTILE = (
    '<details type="reasoning">', "<details ", "<details >", "<details></details>", "<think>", "<think></think>", "<think><thought>", "<thought></think>",
    "</think>", "</", "<", "<>", " ", ' type="reasoning"', '<details type="reasoning"></details> ',
)  # fmt: skip


@pytest.mark.parametrize("unit", HOSTILE)
@pytest.mark.parametrize("tail", ["", "</x>", '</x></details> type="reasoning"', "</reasoning>"])
def test_a_scan_takes_time_in_proportion_to_the_text(filters, unit, tail):
    def seconds(size):
        message = {"role": "assistant", "content": "-" + unit * (size // len(unit)) + tail}
        took = []
        for _attempt in range(3):
            began = time.process_time()
            filters.without_thoughts(message)
            took.append(time.process_time() - began)
        return min(took)

    half, whole = seconds(500_000), seconds(1_000_000)
    # 50 to 85 ms a megabyte were measured on a busy machine; what is quadratic takes minutes.
    assert whole < 0.3 and whole < 3 * half + 0.03, (half, whole)


@pytest.mark.parametrize("key", ["thinking", "reasoning", "reasoning_content", "reasoning_details"])
def test_thoughts_beside_the_content(filters, key):
    assert filters.without_thoughts({"role": "assistant", "content": "a", key: "x"}) == {"role": "assistant", "content": "a"}


def test_thoughts_in_parts(filters):
    parts = [
        {"type": "thinking", "thinking": "x"},
        {"type": "text", "text": "<think>x</think>a"},
        {"type": "image_url", "image_url": {}},
    ]
    kept = filters.without_thoughts({"role": "assistant", "content": parts})["content"]
    assert kept == [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {}}]


def test_what_a_user_wrote_is_left_alone(filters):
    message = {"role": "user", "content": "<think>what does this tag do?</think>"}
    assert filters.without_thoughts(message) is message


def test_tool_calls_stay_whole_and_the_round_at_work_keeps_its_thoughts(filters):
    work = [
        {"role": "user", "content": "q2"},
        {"role": "assistant", "content": "", "thinking": "I call", "tool_calls": [{"id": "1"}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    assert filters.bounded([*conversation(2)[:-1], *work], max_rounds=1) == [{"role": "system", "content": "be brief"}, *work]


def test_thoughts_can_be_kept(filters):
    assert filters.bounded(conversation(3), max_rounds=0, drop_thoughts=False) == conversation(3)


def test_budget_drops_the_oldest_and_always_sends_the_question(filters):
    messages = [
        {"role": "user", "content": "x" * 4000},
        {"role": "assistant", "content": "y" * 40},
        {"role": "user", "content": "z" * 400},
    ]
    assert filters.bounded(messages, max_tokens=200) == messages[2:]
    assert filters.bounded(messages, max_tokens=1) == messages[2:]
    assert filters.bounded(messages, max_tokens=5000) == messages


def test_runner_options_are_taken_out_and_others_kept(filters):
    body = {
        "model": "m",
        "keep_alive": "24h",
        "messages": conversation(2),
        "options": {"num_ctx": 64000, "num_gpu": 0, "temperature": 0.2},
        "params": {"num_batch": 1, "top_p": 1},
    }
    sent = filters.Filter().inlet(body)
    assert sent["options"] == {"temperature": 0.2} and sent["params"] == {"top_p": 1} and "keep_alive" not in sent and sent["model"] == "m"
    assert sent is body


@pytest.mark.parametrize("name", ["draft_num_predict", "DRAFT_NUM_PREDICT", "num_ctx", "ſhift", "\u212aeep_alive", "use_mmap"])
def test_a_runner_option_is_taken_out_wherever_it_is_read(filters, name):
    for body in ({name: 1}, {"options": {name: 1}}, {"Options": {name: 1}}, {"params": {name: 1}}, {"params": {"custom_params": {name: 1}}}):
        sent = filters.Filter().inlet({**copy.deepcopy(body), "model": "m"})
        assert name not in str(sent), sent


def test_messages_that_cannot_be_bounded_let_no_option_through(filters):
    sent = filters.Filter().inlet({"messages": ["text", 3], "keep_alive": 0, "options": {"num_ctx": 1}})
    assert sent == {"messages": ["text", 3], "options": {}}


@pytest.mark.parametrize(
    "body",
    [{}, {"messages": None}, {"messages": []}, {"messages": ["text", 3]}, {"messages": [{"content": 1}]}, {"options": 3}],
)
def test_never_raises(filters, body):
    before = copy.deepcopy(body)
    assert filters.Filter().inlet(body) == before


MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"])},
    optional={
        "content": st.one_of(st.none(), st.text(max_size=30), st.lists(st.dictionaries(st.text(max_size=4), st.text(max_size=4)))),
        "thinking": st.text(max_size=5),
    },
)


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(messages=st.lists(MESSAGE, max_size=14), rounds=st.integers(0, 4), budget=st.integers(0, 60))
def test_properties(filters, messages, rounds, budget):
    """Bounding twice is bounding once; order and the last round stay; no system message is lost."""
    sent = filters.bounded(messages, rounds, True, budget)
    assert filters.bounded(sent, rounds, True, budget) == sent
    roles = [message["role"] for message in messages]
    assert sum(message["role"] == "system" for message in sent) == roles.count("system")
    assert sum(message["role"] == "user" for message in sent) <= max(rounds or len(messages), 1)
    _system, split_rounds = filters.split(messages)
    if split_rounds:
        assert sent[-len(split_rounds[-1]) :] == split_rounds[-1]


def test_the_server_would_store_it_as_it_is():
    text = PATH.read_text(encoding="utf-8")
    assert open_webui_functions.as_stored(text) == text
    assert "requirements:" not in text and "self.toggle" not in text
