# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The environment of Open WebUI: what is refused, how values are written, what a diff may show."""

from __future__ import annotations

import pytest

from ansible_collections.gpufleet.llm.plugins.module_utils._ollama.environment import environment_file
from ansible_collections.gpufleet.llm.plugins.module_utils._open_webui import environment as env

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
        env.render_secrets(extra, {"OWNED": "leave it"})
    assert "v4lue" not in str(caught.value)


@pytest.mark.parametrize("name", ["WEBUI_SECRET_KEY", "OPENAI_API_KEY", "OPENAI_API_KEYS", "SCIM_TOKEN", "LDAP_APP_PASSWORD", "REDIS_URL"])
def test_secrets_are_known(name):
    assert env.is_secret(name)


@pytest.mark.parametrize("name", ["ENABLE_API_KEYS", "ENABLE_PASSWORD_AUTH", "API_KEYS_ALLOWED_ENDPOINTS", "WEBUI_NAME", "ENABLE_CHANNELS"])
def test_switches_about_secrets_are_none(name):
    assert not env.is_secret(name)


def test_the_operator_wins_and_values_are_text():
    assert env.render({"A": True, "B": {"x": False}}, {"A": False, "C": None}) == {"A": "false", "B": '{"x": false}', "C": ""}


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
