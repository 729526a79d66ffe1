# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What reaches the server equals what was sent minus the runner's options, byte for byte, or the client got a 4xx.

The oracle is Python's: it takes the bodies apart with the standard library's JSON, not with the code under test.
"""

from __future__ import annotations

import http.client
import json
import os
import re

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# By hand, not from pin.js: an oracle that reads the code under test agrees with every mistake in it.
RUNNER = (
    "num_ctx num_batch num_gpu main_gpu num_thread use_mmap use_mlock draft_num_predict low_vram f16_kv vocab_only logits_all numa num_gqa "
    "kv_cache_type flash_attention flash_attn num_parallel rope_frequency_base rope_frequency_scale"
).split()
TOP = {"keep_alive", "shift"}
EXAMPLES = int(os.environ.get("GATEWAY_EXAMPLES", "400"))
DECODER = json.JSONDecoder(parse_float=str, parse_int=str)
BLANK = re.compile(r"[ \t\r\n]*")


def fold(name):
    """As Go compares the keys of JSON with the names of fields: A-Z, and the two letters beyond ASCII that fold into it."""
    return "".join(chr(ord(c) + 32) if "A" <= c <= "Z" else {"\u017f": "s", "\u212a": "k"}.get(c, c) for c in name)


def members(text):
    """[(key, raw value)] of the object that the text is; ValueError where it is none or not strict JSON."""

    def refuse(constant):
        raise ValueError(constant)

    def skip(at):
        return BLANK.match(text, at).end()

    json.loads(text, parse_constant=refuse)
    found, at = [], skip(0)
    if text[at] != "{":
        raise ValueError("no object")
    at = skip(at + 1)
    while text[at] != "}":
        began = at
        key, at = DECODER.raw_decode(text, at)
        text[began:at].encode()  # a key that is not UTF-8 is another one to whoever replaces its bytes
        at = skip(skip(at) + 1)
        _value, end = DECODER.raw_decode(text, at)
        found.append((key, text[at:end]))
        at = skip(end)
        if text[at] == ",":
            at = skip(at + 1)
    return found


def read(body):
    """A body as text; bytes that are not UTF-8 stay what they are in a string, as the gateway leaves them."""
    return body.decode("utf-8", "surrogateescape")


def expected(body):
    """What has to reach the server, as nested members; ValueError where a 4xx is due."""
    found = members(read(body))
    names = [fold(key) for key, _raw in found]
    if len(set(names)) < len(names):
        raise ValueError("a key stands there twice")
    kept = []
    for key, raw in found:
        if fold(key) == "options" and raw.startswith("{"):
            inner = members(raw)
            inner_names = [fold(one) for one, _raw in inner]
            if len(set(inner_names)) < len(inner_names):
                raise ValueError("an option stands there twice")
            kept.append((key, [(one, value) for one, value in inner if fold(one) not in RUNNER]))
        elif fold(key) == "options" and raw != "null":
            raise ValueError("options are no object")
        elif fold(key) not in TOP:
            kept.append((key, raw))
    return kept


def nested(body):
    """The body as expected() writes it, nothing taken away."""
    return [(key, members(raw) if fold(key) == "options" and raw.startswith("{") else raw) for key, raw in members(read(body))]


# --- Bodies, written as text, so that spelling matters: numbers, escapes, blanks, order ---
blanks = st.sampled_from(["", "", "", " ", "\n", "\t ", "\r\n  "])
numbers = st.sampled_from(["0", "-0", "1.0", "1e400", "12345678901234567890", "0.1e-7", "1E+2", "-1.50", "4096"])
characters = st.one_of(st.characters(exclude_categories=("Cs",)), st.sampled_from('sSkK\u017f\u212a\u2028é日😀\\/"{}[],: '))


def escaped(text, how):
    """A string's JSON, spelled in one of the ways that mean the same."""
    plain = json.dumps(text, ensure_ascii=how % 2 == 0)
    if how == 2 and text:
        return '"' + "".join(f"\\u{unit:04X}" for unit in memoryview(text.encode("utf-16-le")).cast("H")) + '"'
    return plain.replace("/", "\\/") if how == 3 else plain


strings = st.builds(escaped, st.text(characters, max_size=12), st.integers(0, 3))
scalars = st.one_of(numbers, strings, st.sampled_from(["true", "false", "null"]))


def listed(parts, blank):
    return "[" + blank + ("," + blank).join(parts) + blank + "]"


def obj(pairs, blank):
    return "{" + blank + ("," + blank).join(f"{key}{blank}:{value}" for key, value in pairs) + blank + "}"


# Names that count in one place, in all the others, too.
names = st.one_of(strings, st.sampled_from(['"options"', '"num_ctx"', '"keep_alive"', '"model"', '"num_gpu"']))
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.builds(listed, st.lists(inner, max_size=4), blanks), st.builds(obj, st.lists(st.tuples(names, inner), max_size=4), blanks)),
    max_leaves=12,
)


def shouted(name, how):
    """A name as it is, in capitals, or with the letters that Go takes for s and k."""
    return [name, name.upper(), name.replace("s", "\u017f").replace("k", "\u212a"), name.title()][how]


option_names = st.builds(shouted, st.sampled_from(sorted(RUNNER)), st.integers(0, 3)) | st.sampled_from(
    ["temperature", "top_k", "num_ctx ", "num_keep", "stop"]
)
option_keys = st.builds(escaped, option_names | st.text(characters, max_size=6), st.integers(0, 3))
options = st.builds(obj, st.lists(st.tuples(option_keys, values), max_size=6), blanks)
top_names = st.builds(shouted, st.sampled_from([*sorted(TOP), "options"]), st.integers(0, 3)) | st.sampled_from(
    ["messages", "tools", "format", "num_ctx", "stream"]
)
top_keys = st.builds(escaped, top_names | st.text(characters, max_size=6), st.integers(0, 3))
top_members = st.one_of(st.tuples(top_keys, values), st.tuples(st.builds(escaped, st.just("options"), st.integers(0, 3)), options | values))


@st.composite
def bodies(draw):
    """A JSON object with the declared model somewhere in it."""
    pairs = draw(st.lists(top_members, max_size=7))
    pairs.insert(draw(st.integers(0, len(pairs))), ('"model"', '"qwen3"'))
    blank = draw(blanks)
    return (blank + obj(pairs, blank) + blank).encode()


@st.composite
def spoiled(draw):
    """A body with a byte changed, taken out, or put in."""
    body = bytearray(draw(bodies()))
    at = draw(st.integers(0, len(body) - 1))
    what = draw(st.integers(0, 2))
    if what == 0:
        body[at] = draw(st.integers(0, 255))
    elif what == 1:
        del body[at]
    else:
        body[at:at] = draw(st.sampled_from([b'"', b"\\", b",", b"{", b"}", b"[", b"]", b"0", b"\xff", b"\x00", b"\n", b'"model":"other",', b"\xc3\xa9"]))
    return bytes(body)


def send(gateway, ollama, body):
    """(status, what reached the server or None)."""
    ollama.seen.clear()
    if not hasattr(gateway, "line"):
        gateway.line = http.client.HTTPSConnection("localhost", gateway.port, context=gateway.context(), timeout=30)
    gateway.line.request("POST", "/api/chat", body, {"Authorization": "Bearer test-token-of-alice-0123456789abcdef"})
    answer = gateway.line.getresponse()
    answer.read()
    return answer.status, ollama.seen[0]["body"] if ollama.seen else None


def check(gateway, ollama, body, has_to_pass):
    status, arrived = send(gateway, ollama, body)
    try:
        wanted = expected(body)
    except (ValueError, IndexError, RecursionError):
        wanted = None
    if wanted is None:
        assert 400 <= status < 500 and arrived is None, (status, body, arrived)
    elif has_to_pass or status == 200:
        assert status == 200, (status, body)
        assert nested(arrived) == wanted, (body, arrived)
        if nested(body) == wanted:
            assert arrived == body
    else:
        assert 400 <= status < 500 and arrived is None


FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@FUZZ
@given(body=bodies())
def test_a_body_arrives_without_the_runner_options_or_not_at_all(gateway, ollama, body):
    names = [fold(key) for key, _raw in members(read(body))]
    check(gateway, ollama, body, names.count("model") == 1 and "name" not in names)


@FUZZ
@given(body=spoiled())
def test_a_spoiled_body_arrives_without_the_runner_options_or_not_at_all(gateway, ollama, body):
    check(gateway, ollama, body, False)
