# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The environment of Open WebUI, in two files: settings that a diff may show, and secrets that nothing may show."""

from __future__ import annotations

import json
import re
import secrets

NAME = re.compile(r"[A-Z][A-Z0-9_]*")
LINE = re.compile(r'^([A-Z][A-Z0-9_]*)=(?:"((?:[^"\\]|\\.)*)"|([^\n]*))$', re.MULTILINE | re.DOTALL)

# Names that guides tell and that Open WebUI 0.12.4 does not read (grep over the installed package), with what does the job.
DEAD = {
    "ENABLE_HISTORY": "the history is bounded by open_webui_max_rounds",
    "MAX_HISTORY_ROUNDS": "set open_webui_max_rounds",
    "AUTO_PRUNE_ENABLED": "Open WebUI removes no chats by itself, and this role does not either so far",
    "AUTO_PRUNE_INTERVAL": "Open WebUI removes no chats by itself, and this role does not either so far",
    "ANONYMIZED_TELEMETRY": "Open WebUI sends none",
    "DO_NOT_TRACK": "Open WebUI sends no telemetry",
    "SCARF_NO_ANALYTICS": "Open WebUI sends no telemetry",
    "HOST": "set open_webui_host",
    "PORT": "set open_webui_port",
    "WEBUI_SECRET_KEY_FILE": "the role generates and keeps the key",
    "OLLAMA_API_BASE_URL": "set open_webui_ollama_urls",
}

# Names that belong into the file that nothing shows.
SECRET = re.compile(
    r".*(PASSWORD|SECRET|TOKEN|CREDENTIALS|_KEYS?)|OLLAMA_API_CONFIGS|OPENAI_API_CONFIGS"
    r"|(.*_)?DATABASE_URL|(.*_)?REDIS_URL|PGVECTOR_DB_URL"
)
# What matches SECRET and is none: switches and patterns about secrets.
NOT_SECRET = re.compile(
    r"ENABLE_.*|BYPASS_.*|PASSWORD_VALIDATION_.*|API_KEYS_ALLOWED_ENDPOINTS|.*_TOKENS?_(THRESHOLD|CAP|EXPIRY|TTL)|.*_MAX_TOKENS?|.*_TOKEN_(ENDPOINT|URL).*"
)


class EnvError(Exception):
    """A wish that the environment cannot carry; the text is fit for an operator."""


def is_secret(name):
    """Whether a variable's value must not be seen.

    >>> is_secret("WEBUI_SECRET_KEY"), is_secret("ENABLE_API_KEYS"), is_secret("DATABASE_URL")
    (True, False, True)
    """
    return bool(SECRET.fullmatch(name)) and not NOT_SECRET.fullmatch(name)


def text_of(value):
    """A value as Open WebUI reads it: switches in lower case, lists and dicts as JSON.

    >>> text_of(True), text_of({"a": [1]}), text_of(3)
    ('true', '{"a": [1]}', '3')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list, tuple)):
        return json.dumps(value, sort_keys=True)
    return "" if value is None else str(value)


def render(settings, extra, owned=()):
    """{name: text} of the settings with the operator's own variables on top; EnvError for what cannot be meant.

    ``owned``: names that the role sets from variables of its own and that must not be set behind its back.
    """
    for name in extra:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise EnvError(f"open_webui_environment has the key {name!r}; names are made of capital letters, digits and _.")
        if name in DEAD:
            raise EnvError(f"open_webui_environment has {name}, which Open WebUI does not read; {DEAD[name]}.")
        if name in owned:
            raise EnvError(f"open_webui_environment has {name}, which the role sets itself; {owned[name]}.")
        if is_secret(name):
            raise EnvError(f"open_webui_environment has {name}, which is a secret; put it into open_webui_secret_environment.")
    return {name: text_of(value) for name, value in {**settings, **extra}.items()}


def render_secrets(extra, owned=()):
    """{name: text} of the operator's secret variables; EnvError names keys only, never a value."""
    for name in extra:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise EnvError("open_webui_secret_environment has a key that is no name of capital letters, digits and _.")
        if name in DEAD:
            raise EnvError(f"open_webui_secret_environment has {name}, which Open WebUI does not read; {DEAD[name]}.")
        if name in owned:
            raise EnvError(f"open_webui_secret_environment has {name}, which the role sets itself; {owned[name]}.")
    return {name: text_of(value) for name, value in extra.items()}


def parse(text):
    r"""{name: value} of a file that ``_ollama.environment.environment_file`` wrote.

    >>> parse('A="x \\"y\\" \\$z"\nB=1\n')
    {'A': 'x "y" $z', 'B': '1'}
    """
    found = {}
    for match in LINE.finditer(text):
        name, quoted, plain = match.groups()
        found[name] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted, flags=re.DOTALL)
    return found


def wanted_secrets(existing, values, generate, token=secrets.token_urlsafe):
    """{name: value} of the secrets' file: ``values``, and for each name in ``generate`` what is there or 384 new bits."""
    kept = {name: existing.get(name) or token(48) for name in generate}
    return {**kept, **values}


def names_changed(before, after):
    """What a diff may show of secrets: which names came, went or got another value."""
    told = []
    for name in sorted(set(before) | set(after)):
        if name not in before:
            told.append(f"{name}: set")
        elif name not in after:
            told.append(f"{name}: removed")
        elif before[name] != after[name]:
            told.append(f"{name}: another value")
    return told
