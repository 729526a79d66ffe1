# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment of Open WebUI: what is refused, how values are written, what a diff may show."""

from __future__ import annotations

import pathlib
import re

import pytest
import yaml

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama.environment import carries_credentials, environment_file
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment as env
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import names
from ansible_collections.gpufleet.llm.tests.support import open_webui_release

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        ({"MAX_HISTORY_ROUNDS": 6}, "set open_webui_max_rounds"),
        ({"AUTO_PRUNE_ENABLED": True}, "does not read"),
        ({"ENABLE_SIGNUP": True}, "set open_webui_signup"),
        ({"DATABASE_URL": "postgresql://u:p@h/d"}, "is a secret"),
        ({"OAUTH_CLIENT_SECRET": "x"}, "is a secret"),
        ({"AUTOMATIC1111_API_AUTH": "me:u:p@h"}, "is a secret"),
        ({"TOOL_SERVER_CONNECTIONS": [{"url": "http://t", "key": "u:p@h"}]}, "is a secret"),
        ({"GOOGLE_APPLICATION_CREDENTIALS_JSON": "{}"}, "is a secret"),
        ({"AWS_SESSION_TOKEN": "x"}, "is a secret"),
        ({"HTTPS_PROXY": "http://u:p@h:3128"}, "carries credentials"),
        ({"HTTPS_PROXY": "u:p@h:3128"}, "carries credentials"),
        ({"SEARXNG_QUERY_URL": "https://u:p@h/search"}, "carries credentials"),
        ({"AUDIO_TTS_OPENAI_PARAMS": {"headers": {"Authorization": "Bearer u:p@h"}}}, "carries credentials"),
        ({"IMAGES_OPENAI_PARAMS": '{"api_key": "u:p@h"}'}, "carries credentials"),
        ({"ENABLE_CHANELS": True}, "did you mean ENABLE_CHANNELS"),
        ({"RAG_TOPK": 3}, "did you mean RAG_TOP_K"),
        ({"QWERTYUIOP": 3}, "does not read; leave it out"),
        ({"lower": 1}, "capital letters"),
        ({3: 1}, "capital letters"),
    ],
)
def test_refusals(extra, said):
    with pytest.raises(env.EnvError, match=said) as caught:
        env.render({}, extra, {"ENABLE_SIGNUP": "set open_webui_signup"})
    assert "u:p@h" not in str(caught.value)


@pytest.mark.parametrize("extra", [{"MAX_HISTORY_ROUNDS": "v4lue"}, {"OWNED": "v4lue"}, {"lower": "v4lue"}])
def test_refusals_of_secrets_never_say_a_value(extra):
    with pytest.raises(env.EnvError) as caught:
        env.render({}, extra, {"OWNED": "leave it"}, secret=True)
    assert "v4lue" not in str(caught.value)


def test_the_settings_of_the_role_carry_no_credentials_either():
    with pytest.raises(env.EnvError, match="OLLAMA_BASE_URLS would carry credentials.*set open_webui_ollama_urls") as caught:
        env.render({"OLLAMA_BASE_URLS": "http://a;http://u:p@h"}, {}, {"OLLAMA_BASE_URLS": "set open_webui_ollama_urls"})
    assert "u:p" not in str(caught.value)


def test_another_release_may_read_other_names():
    assert env.render({}, {"NEW_IN_0_13": 1}, {}, "0.13.0") == {"NEW_IN_0_13": "1"}
    with pytest.raises(env.EnvError, match="is a secret"):
        env.render({}, {"NEW_IN_0_13_API_KEY": 1}, {}, "0.13.0")
    with pytest.raises(env.EnvError, match="open_webui_secret_environment has OPENAI_API_KEYSS.*did you mean OPENAI_API_KEYS"):
        env.render({}, {"OPENAI_API_KEYSS": 1}, secret=True)


@pytest.mark.parametrize(
    ("value", "is_one"),
    [
        ("http://me:word@proxy:3128", True),
        ("socks5://token@proxy", True),
        ("http://a;https://me:w%2Ford@b/c", True),
        ({"a": [{"b": "postgresql://me:word@h/d"}]}, True),
        ('[{"Authorization": "Bearer abc"}]', True),
        ("Authorization: Bearer abc", True),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc", True),
        ({"max_tokens": 5, "token": ""}, False),
        ("https://example.org/@me?mail=me@example.org", False),
        ("me@example.org", False),
        ("A basic explanation of bearer bonds", False),
        (True, False),
        (None, False),
        ("[" * 100000, False),
    ],
)
def test_credentials_are_seen_in_any_value(value, is_one):
    assert carries_credentials(value) is is_one


# --- The names, compared with the release ---

# What a name says of its value. Not the tables' own rule: each exception has been read in the release.
SOUNDS_SECRET = re.compile(
    r"PASSWORD|SECRET|TOKEN|CREDENTIAL|_KEYS?$|_KEY_|_AUTH$|HEADERS|CONNECTIONS|API_CONFIGS|(DB|DATABASE|REDIS|VALKEY|WEBHOOK)_URL$|DSN$"
)
HARMLESS = re.compile(
    r"(ENABLE|BYPASS|USER_PERMISSIONS|DATABASE_ENABLE|MFA_ALLOW)_.*|API_KEYS?_ALLOWED_ENDPOINTS|PASSWORD_(HASH|VALIDATION)_.*|OAUTH_(ACCESS|REFRESH)_TOKEN_.*"
    r"|OAUTH_TOKEN_E.*|.*_TOKENS?_(CAP|THRESHOLD|EXPIRES_IN)|BRAVE_SEARCH_CONTEXT_TOKENS|RAG_(TOKENIZER_MODEL|SOURCE_METADATA_KEYS)|(REDIS|S3)_KEY_PREFIX"
    r"|(CODE_EXECUTION|CODE_INTERPRETER)_JUPYTER_AUTH|CUSTOM_API_KEY_HEADER|LICENSE_PUBLIC_KEY|SEARXNG_CLIENT_KEY_FILE|WEBUI_AUTH|WEBUI_SECRET_KEY_LENGTH"
    r"|AIOHTTP_POOL_CONNECTIONS(_PER_HOST)?|TIKTOKEN_.*"
)


def test_each_name_is_in_one_table_and_sounds_like_it():
    assert not names.SECRETS & names.SETTINGS
    assert {name for name in names.SETTINGS if SOUNDS_SECRET.search(name) and not HARMLESS.fullmatch(name)} == set()
    assert {name for name in names.SECRETS if HARMLESS.fullmatch(name)} == set()
    assert {name for name in env.DEAD if name in names.KNOWN} == set(), "what is dead is not read"
    for name in ("AUTOMATIC1111_API_AUTH", "S3_ACCESS_KEY_ID", "SOUGOU_API_SK", "WEBSOCKET_REDIS_OPTIONS", "PIP_OPTIONS"):
        assert env.is_secret(name)
    for name in ("ENABLE_API_KEYS", "ENABLE_PASSWORD_AUTH", "API_KEYS_ALLOWED_ENDPOINTS", "WEBUI_NAME", "ENABLE_CHANNELS"):
        assert not env.is_secret(name)


def test_the_role_sets_no_name_that_is_not_read():
    role = pathlib.Path(__file__).resolve().parents[4] / "roles/open_webui"
    variables = yaml.safe_load((role / "vars/main.yml").read_text(encoding="utf-8"))
    for name in variables["__open_webui_settings"]:
        env.check_name("the role", name, {}, names.RELEASE)
        assert not env.is_secret(name) or name == "OLLAMA_API_CONFIGS", name  # which has no key: enable and model_ids only
    assert yaml.safe_load((role / "defaults/main.yml").read_text(encoding="utf-8"))["open_webui_version"] == names.RELEASE


@pytest.mark.slow
def test_the_tables_hold_what_the_release_reads():
    found = open_webui_release.wheel(names.RELEASE)
    if isinstance(found, str):
        pytest.skip(found)
    read, computed = open_webui_release.names(found)
    # Helpers hand a name on, which is read where they are called.
    assert sorted(computed) == ["open_webui/env.py: name", "open_webui/utils/security_headers.py: env_var"]
    assert len(read) > 900
    assert set(read) == names.KNOWN, {name: sorted(read.get(name, ())) for name in set(read) ^ names.KNOWN}


def test_the_operator_wins_and_values_are_text():
    assert env.render({"HSTS": True, "ENV": {"x": False}}, {"HSTS": False, "TZ": None}) == {"HSTS": "false", "ENV": '{"x": false}', "TZ": ""}


@hypothesis.settings(max_examples=80, deadline=None)
@hypothesis.given(
    st.dictionaries(
        st.from_regex(r"[A-Z][A-Z0-9_]{0,8}", fullmatch=True),
        st.text(st.characters(codec="utf-8", exclude_characters="\x00\r"), max_size=20),
        max_size=4,
    )
)
def test_what_is_written_is_read(values):
    assert env.parse(environment_file(values)) == values


def test_the_key_is_kept():
    made = env.wanted_secrets({}, {"A": "1"}, ["KEY"], token=lambda size: "k" * size)
    assert made == {"KEY": "k" * 48, "A": "1"}
    assert env.wanted_secrets(made, {"A": "2"}, ["KEY"], token=lambda _size: "other")["KEY"] == "k" * 48
    assert env.names_changed(made, {"A": "2", "B": "3"}) == ["A: another value", "B: set", "KEY: removed"]
