# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import modelfile, parameters

WHOLE = '''# A comment
from qwen3:14b
ADAPTER ./lora.gguf

PARAMETER num_ctx 40960
PARAMETER  temperature 0.6
parameter stop <|im_end|>
PARAMETER stop "two words "
PARAMETER use_mmap false
TEMPLATE """{{ .System }}
"quoted" {{ .Prompt }}"""
SYSTEM "You are
helpful."
LICENSE MIT
LICENSE """Apache
2.0"""
MESSAGE user hello # not a comment
MESSAGE assistant "hi
there"
RENDERER qwen3-coder
PARSER qwen3
REQUIRES v0.14.0
'''


def test_the_whole_grammar():
    assert modelfile.declaration(WHOLE) == {
        "from": ["qwen3:14b"],
        "adapter": "./lora.gguf",
        "parameters": {"num_ctx": 40960, "temperature": 0.6, "stop": ["<|im_end|>", "two words "], "use_mmap": False},
        "template": '{{ .System }}\n"quoted" {{ .Prompt }}',
        "system": "You are\nhelpful.",
        "license": ["MIT", "Apache\n2.0"],
        "messages": [{"role": "user", "content": "hello # not a comment"}, {"role": "assistant", "content": "hi\nthere"}],
        "renderer": "qwen3-coder",
        "parser": "qwen3",
        "requires": "0.14.0",
    }


def test_line_ends_marks_and_last_words():
    assert modelfile.declaration("\ufeffFROM a\r\nSYSTEM one\r\nSYSTEM two\r\nPARAMETER top_k 1\rPARAMETER top_k 2") == {
        "from": ["a"],
        "system": "two",
        "parameters": {"top_k": 2},
    }


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("SYSTEM x\n", None, "no FROM line"),
        ("FROM a\nTEMPLAT x\n", 2, "Did you mean TEMPLATE?"),
        ("FROM a\nhello world\n", 2, "triple quotes"),
        ("FROM\n", 1, "takes a blank and a value"),
        ("FROM \n", 1, "FROM names nothing"),
        ('FROM a\n\nSYSTEM """open\nand\non', 3, "never closed"),
        ('FROM a\nSYSTEM "open\nand on', 2, "never closed"),
        ("FROM a\nMESSAGE robot hi", 2, 'message role must be one of "system", "user", or "assistant"'),
        ("FROM a\nPARAMETER num_ctx", 2, "a name and a value"),
        ("FROM a\nREQUIRES soon", 2, "valid semver"),
        ("FROM a\r\n\r\nPARAMETER num_ctx 4k", 3, "invalid int value [4k]"),
        ("FROM a\nSYSTEM '''\nPARAMETER\n", 3, "takes a blank and a value"),
    ],
)
def test_errors_name_the_line(text, line, words):
    with pytest.raises(parameters.ModelfileError) as caught:
        modelfile.declaration(text)
    assert words in str(caught.value)
    assert caught.value.line == line
    if line:
        assert str(caught.value).startswith(f"Modelfile line {line}: ")


def test_the_error_of_the_house_style():
    text = "FROM a\n" * 8 + "PARAMETER cache_type q8_0\n"
    with pytest.raises(parameters.ModelfileError) as caught:
        modelfile.declaration(text)
    expected = "Modelfile line 9: unknown parameter 'cache_type'. The KV cache type is a server setting: ollama_kv_cache_type."
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("name", "value", "typed"),
    [
        ("num_ctx", 4096, 4096),
        ("num_ctx", "4096", 4096),
        ("num_ctx", 4096.0, 4096),
        ("num_gpu", -1, -1),
        ("seed", "-1", -1),
        ("temperature", 1, 1.0),
        ("temperature", "0.6", 0.6),
        ("min_p", 0, 0.0),
        ("use_mmap", "false", False),
        ("use_mmap", True, True),
        ("stop", "a", ["a"]),
        ("stop", ["a", "b"], ["a", "b"]),
        ("stop", [], []),
    ],
)
def test_values_take_their_type(name, value, typed):
    got = parameters.check_parameter(name, value)
    assert got == typed
    assert type(got) is type(typed)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "num_ctx",
            "4k",
            "invalid int value [4k] of parameter num_ctx; write a whole number without unit, such as num_ctx: 40960.",
        ),
        ("num_ctx", True, "invalid int value [true]"),
        ("num_ctx", 4096.5, "invalid int value [4096.5]"),
        ("num_ctx", "1.048576e+06", "invalid int value"),
        ("num_ctx", "9" * 5000, "invalid int value"),
        ("num_ctx", "٤٠٩٦", "invalid int value"),
        ("num_ctx", 3, "at least 4"),
        ("top_k", -2, "at least -1"),
        ("num_ctx", None, "has no value"),
        ("num_ctx", [4096], "invalid int value"),
        ("temperature", "warm", "invalid float value [warm]"),
        ("temperature", "nan", "invalid float value"),
        ("temperature", float("inf"), "invalid float value"),
        ("temperature", 10**400, "invalid float value"),
        ("temperature", -0.1, "at least 0"),
        ("top_p", 1.5, "from 0 to 1"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("stop", [1], "each entry is a text"),
        ("stop", [""], "each entry is a text"),
        ("mirostat", 1, "removed from Ollama"),
        ("TEMPERATURE", 1, "small letters: temperature."),
        ("log_level", "debug", "OLLAMA_DEBUG"),
        ("num_parallel", 2, "ollama_num_parallel"),
        ("n_ctx", 2, "Use num_ctx."),
        ("temprature", 2, "Did you mean temperature?"),
        ("zzz", 2, "Ollama knows: draft_num_predict"),
        (7, 2, "unknown parameter '7'"),
    ],
)
def test_values_that_the_server_would_swallow(name, value, words):
    with pytest.raises(parameters.ModelfileError) as caught:
        parameters.check_parameter(name, value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_all_faults_at_once():
    with pytest.raises(parameters.ModelfileError, match=r"(?s)num_ctx.*cache_type|cache_type.*num_ctx"):
        parameters.validate_parameters({"num_ctx": "4k", "cache_type": "q8_0", "top_k": 20})


def test_every_name_that_is_not_one_has_advice():
    for name in {**parameters.NEVER, **parameters.DEPRECATED}:
        assert name not in parameters.PARAMETERS
        with pytest.raises(parameters.ModelfileError, match=r"unknown parameter '.*'\. .+\.$"):
            parameters.check_parameter(name, 1)


TEXT = st.text(alphabet=st.one_of(st.sampled_from('" \n\r\t#a{}:'), st.characters(codec="utf-8", exclude_characters="\ufeff")), max_size=40)
WORD = st.from_regex(r"[A-Za-z0-9_.:/-]{1,12}", fullmatch=True)
NUMBERS = {
    parameters.INT: st.integers(4, 2**31),
    parameters.FLOAT: st.floats(0, 1, allow_nan=False),
    parameters.BOOL: st.booleans(),
    parameters.TEXTS: st.lists(TEXT.filter(bool), min_size=1, max_size=3),
}
PARAMETERS = st.fixed_dictionaries({}, optional={name: NUMBERS[kind[0]] for name, kind in parameters.PARAMETERS.items()})
DECLARED = st.fixed_dictionaries(
    {"from": st.lists(WORD, min_size=1, max_size=2)},
    optional={
        "parameters": PARAMETERS.filter(bool),
        "template": TEXT.filter(bool),
        "system": TEXT.filter(bool),
        "license": st.lists(TEXT.filter(bool), min_size=1, max_size=2),
        "messages": st.lists(st.fixed_dictionaries({"role": st.sampled_from(modelfile.ROLES), "content": TEXT}), min_size=1, max_size=2),
        "renderer": WORD,
        "parser": WORD,
    },
)


def texts(declared):
    yield from (declared.get(key, "") for key in ("template", "system"))
    yield from declared.get("license", [])
    yield from declared.get("parameters", {}).get("stop", [])
    yield from (message["content"] for message in declared.get("messages", []))


@settings(max_examples=150, deadline=None)
@given(DECLARED)
def test_what_is_printed_reads_back(declared):
    printed = modelfile.render(declared, ("for people",))
    if all(modelfile.carried(text) for text in texts(declared)):
        assert modelfile.declaration(printed) == declared
    else:
        assert modelfile.UNCARRIED in printed


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_a_text_is_carried_unless_quotes_end_a_line_inside(text):
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]
    if not any(line.rstrip().endswith('"""') for line in lines):
        assert modelfile.carried(text)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.text(max_size=200), st.text(alphabet='FROMPAETSYfrom "\n\r\t#_x1', max_size=200)))
def test_any_text_is_read_or_refused(text):
    try:
        declared = modelfile.declaration(text)
    except parameters.ModelfileError as error:
        assert len(str(error)) < 700
    else:
        assert declared["from"]


#: A defect put between two valid instructions, and words of its refusal.
DEFECTS = {
    "TEMPLAT x": "Did you mean TEMPLATE",
    "FROM": "takes a blank and a value",
    "FROM ": "FROM names nothing",
    "PARAMETER top_k": "with blanks between them",
    "PARAMETER top_k many": "invalid int value",
    "PARAMETER cache_type q8_0": "unknown parameter 'cache_type'",
    "MESSAGE robot hello": "message role must be one of",
    'SYSTEM """never closed': "is never closed",
    "REQUIRES soon": "valid semver",
    "SYSTEM_x y": "takes a blank and a value",
    "two lines\nof text": "is no instruction",
}
LINES = ["PARAMETER top_k 3", 'PARAMETER stop "a b"', "SYSTEM be brief", 'LICENSE """two\n\nlines"""', "MESSAGE user hi", "# FROM nothing", "", "  "]


SOME_LINES = st.lists(st.sampled_from(LINES), max_size=6)


def modelfile_of(before, defect, after, windows):
    text = "\n".join(["FROM base", *before, *defect, *after, ""])
    return text.replace("\n", "\r\n") if windows else text


@pytest.mark.parametrize("defect", DEFECTS)
def test_one_defect_among_valid_instructions_is_refused_with_its_line(defect):
    @settings(max_examples=25, deadline=None)
    @given(SOME_LINES, SOME_LINES, st.booleans())
    def one(before, after, windows):
        if '"""' in defect:
            after = [line for line in after if '"""' not in line]  # they would close it
        with pytest.raises(parameters.ModelfileError) as caught:
            modelfile.declaration(modelfile_of(before, [defect], after, windows))
        assert DEFECTS[defect] in str(caught.value)
        assert caught.value.line == 2 + sum(line.count("\n") + 1 for line in before)

    one()


@settings(max_examples=100, deadline=None)
@given(SOME_LINES, SOME_LINES, st.booleans())
def test_the_same_instructions_without_the_defect_are_read(before, after, windows):
    declared = modelfile.declaration(modelfile_of(before, [], after, windows))
    lines = [*before, *after]
    assert declared["from"] == ["base"]
    assert len(declared.get("messages", [])) == lines.count("MESSAGE user hi")
    assert declared.get("parameters", {}).get("stop", []) == ["a b"] * lines.count('PARAMETER stop "a b"')
    assert len(declared.get("license", [])) == len([line for line in lines if line.startswith("LICENSE")])


@pytest.mark.parametrize("text", ['FROM a\nSYSTEM """' + "x\n" * 200_000, "\n" * 300_000 + "FROM a", "FROM a\n" + 'LICENSE "a"\n' * 50_000])
def test_long_text_costs_one_pass(text):
    began = time.process_time()
    try:
        modelfile.declaration(text)
    except parameters.ModelfileError as error:
        assert "never closed" in str(error)
    assert time.process_time() - began < 3
