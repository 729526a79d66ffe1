# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shlex
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama import environment as ollama_environment

SETTINGS = {"OLLAMA_HOST": "127.0.0.1:11434", "OLLAMA_FLASH_ATTENTION": True, "OLLAMA_NUM_PARALLEL": 1, "OLLAMA_ORIGINS": None}


def test_settings_become_text_and_null_leaves_a_key_out():
    assert ollama_environment.render(SETTINGS) == {
        "OLLAMA_FLASH_ATTENTION": "1",
        "OLLAMA_HOST": "127.0.0.1:11434",
        "OLLAMA_NUM_PARALLEL": "1",
    }


@pytest.mark.parametrize("key", ["LLAMA_ARG_RPC", "CUDA_VISIBLE_DEVICES", "GGML_CUDA_NO_PINNED", "HTTPS_PROXY", "no_proxy", "GODEBUG"])
def test_what_the_server_hands_on_is_let_through(key):
    assert ollama_environment.render({}, {key: "x"}) == {key: "x"}


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ({"OLLAMA_NOHISTORY": 1}, ["OLLAMA_NOHISTORY", "no effect", "open_webui_max_rounds"]),
        ({"OLLAMA_MAX_VRAM": 1}, ["gone since 0.7.0", "ollama_reserve_mib"]),
        ({"OLLAMA_LOG_LEVEL": "debug"}, ["never existed", "OLLAMA_DEBUG"]),
        ({"OLLAMA_KEEPALIVE": 300}, ["reads no variable OLLAMA_KEEPALIVE", "did you mean OLLAMA_KEEP_ALIVE?"]),
        ({"PATH": "/bin"}, ["reads no variable PATH"]),
        ({"OLLAMA_HOST": "0.0.0.0"}, ["OLLAMA_HOST", "option of its own"]),
        ({"OLLAMA_SCHED_SPREAD": "yes"}, ["OLLAMA_SCHED_SPREAD", "true or false"]),
        ({"OLLAMA_MAX_TRANSFER_STREAMS": "8k"}, ["8k", "whole number"]),
        ({"LLAMA_ARG_RPC": "a\nb"}, ["LLAMA_ARG_RPC", "line break"]),
        ({"HTTPS_PROXY": "http://me:secret@proxy:3128"}, ["HTTPS_PROXY", "credentials"]),
        ({"OLLAMA_CLOUD_BASE_URL": "http://me:secret@proxy:3128"}, ["OLLAMA_CLOUD_BASE_URL", "credentials"]),
    ],
)
def test_what_would_be_misread_is_refused(extra, words):
    with pytest.raises(ollama_environment.EnvError) as caught:
        ollama_environment.render(SETTINGS, extra)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize("value", ["http://me:secret@proxy:3128", "me:secret@proxy:3128", "http://me:se/secret@proxy", "socks5://me@secret@proxy"])
def test_credentials_do_not_stand_in_the_refusal_itself(value):
    with pytest.raises(ollama_environment.EnvError) as caught:
        ollama_environment.render({}, {"https_proxy": value})
    assert "credentials" in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("OLLAMA_KEEP_ALIVE", ["300", "-1", "5m", "1h30m", "0"], ["5 minutes", "", "m5"]),
        ("OLLAMA_KV_CACHE_TYPE", ["f16", "q8_0", "q4_0", "bf16"], ["fp8", "q5_1", "Q8_0"]),
        ("OLLAMA_MODELS", ["/var/lib/ollama/models"], ["models", "~/models"]),
        ("OLLAMA_DEBUG", ["0", "1", "2"], ["debug"]),
    ],
)
def test_values_by_kind(kind, good, bad):
    for value in good:
        assert ollama_environment.text_of(kind, value) == value
    for value in bad:
        with pytest.raises(ollama_environment.EnvError):
            ollama_environment.text_of(kind, value)


def unquote(text):
    """How systemd reads a value: bare, or in double quotes with backslash escapes."""
    if not text.startswith('"'):
        return text
    return text[1:-1].replace("\\`", "`").replace("\\$", "$").replace('\\"', '"').replace("\\\\", "\\")


@given(st.text(string.ascii_letters + string.digits + " \"$`'/=:,#%"))
def test_a_file_gives_back_what_was_written(value):
    line = ollama_environment.environment_file({"KEY": value})
    assert line.endswith("\n") and line.count("\n") == 1
    assert unquote(line[len("KEY=") : -1]) == value


def test_the_file_is_sorted_and_one_key_a_line():
    assert ollama_environment.environment_file({"B": "a b", "A": 1}) == 'A=1\nB="a b"\n'
    assert shlex.split(ollama_environment.environment_file({"B": "a b"})) == ["B=a b"]
