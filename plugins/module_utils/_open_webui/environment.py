# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The environment of Open WebUI, in two files: settings that a diff may show, and secrets that nothing may show."""

from __future__ import annotations

import difflib
import json
import re
import secrets

from .._ollama.environment import PROXY_KEY, carries_credentials
from . import names

NAME = re.compile(r"[A-Z][A-Z0-9_]*")
LINE = re.compile(r'^([A-Z][A-Z0-9_]*)=(?:"((?:[^"\\]|\\.)*)"|([^\n]*))$', re.MULTILINE | re.DOTALL)

# Names that guides tell and that Open WebUI does not read (names.py), with what does the job.
DEAD = {
    "ENABLE_HISTORY": "the history is bounded by open_webui_max_rounds",
    "MAX_HISTORY_ROUNDS": "set open_webui_max_rounds",
    "AUTO_PRUNE_ENABLED": "set open_webui_retention_days or open_webui_retention_chats_per_user",
    "AUTO_PRUNE_INTERVAL": "set open_webui_retention_interval_s",
    "ANONYMIZED_TELEMETRY": "Open WebUI sends none",
    "DO_NOT_TRACK": "Open WebUI sends no telemetry",
    "SCARF_NO_ANALYTICS": "Open WebUI sends no telemetry",
    "HOST": "set open_webui_host",
    "PORT": "set open_webui_port",
    "WEBUI_SECRET_KEY_FILE": "the role generates and keeps the key",
}

# Names that are in neither table of names.py and still are a secret: variables of libraries, and of other releases.
SECRET = re.compile(
    r".*(PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS|_HEADERS|_KEYS?|_AUTH|_CONNECTIONS)|(.*_)?(DATABASE|DB|REDIS)_URL|.*_(DSN|API_CONFIGS)"
)

# Variables that Python and the packages beneath Open WebUI read.
LIBRARIES = re.compile(
    r"(AWS|AZURE|CUDA|CURL|GOOGLE|HF|HUGGINGFACE|LANGCHAIN|LANGSMITH|LC|MALLOC|MKL|NLTK|OMP|ONNXRUNTIME|OPENBLAS|OTEL|PLAYWRIGHT|REQUESTS|SSL"
    r"|TORCH|TRANSFORMERS|UNSTRUCTURED|UV|UVICORN)_[A-Z0-9_]+|PYTHON[A-Z0-9_]+|PG[A-Z]+|HOME|LANG|PATH|TMPDIR|TZ|(HTTPS?|NO|ALL)_PROXY"
)


class EnvError(Exception):
    """A setting that the environment cannot carry; the text is fit for an operator."""


def is_secret(name):
    """Whether a variable's value must not be seen.

    >>> is_secret("WEBUI_SECRET_KEY"), is_secret("ENABLE_API_KEYS"), is_secret("DATABASE_URL")
    (True, False, True)
    """
    return name in names.SECRETS or (name not in names.KNOWN and bool(SECRET.fullmatch(name)))


def check_name(variable, name, owned, release):
    """Raise EnvError for a name that Open WebUI does not read or that the role sets itself.

    ``variable`` is the inventory's, for the sentence; ``release`` that of Open WebUI: another one than that of the
    table may read other names, so an unknown one passes there.
    """
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise EnvError(f"{variable} has a key that is no name of capital letters, digits and _.")
    if name in DEAD:
        raise EnvError(f"{variable} has {name}, which Open WebUI does not read; {DEAD[name]}.")
    if name in owned:
        raise EnvError(f"{variable} has {name}, which the role sets itself; {owned[name]}.")
    if name in names.KNOWN or LIBRARIES.fullmatch(name) or release != names.RELEASE:
        return
    near = difflib.get_close_matches(name, names.KNOWN, n=1)
    hint = f"did you mean {near[0]}?" if near else "leave it out."
    raise EnvError(f"{variable} has {name}, which Open WebUI {release} does not read; {hint}")


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


def render(settings, extra, owned=(), release=names.RELEASE, secret=False):
    """{name: text} of the settings with the operator's own variables on top.

    ``owned``: names that the role sets from variables of its own, with what to set; they must not be set behind its
    back. ``secret``: whether it is the secret environment, where credentials belong. EnvError for what cannot be
    meant; it never has a value in it.
    """
    for name, value in extra.items():
        if secret:
            check_name("open_webui_secret_environment", name, owned, release)
        else:
            _check_public(name, value, owned, release)
    for name, value in settings.items():
        if carries_credentials(value) and not secret:
            what = dict(owned).get(name, f"correct {name}")
            raise EnvError(f"{name} would carry credentials, and a diff shows it; {what} to a value that has none.")
    return {name: text_of(value) for name, value in {**settings, **extra}.items()}


def _check_public(name, value, owned, release):
    check_name("open_webui_environment", name, owned, release)
    to_do = "put it into open_webui_secret_environment."
    if is_secret(name):
        raise EnvError(f"open_webui_environment has {name}, which is a secret; {to_do}")
    if carries_credentials(value) or (PROXY_KEY.fullmatch(name) and "@" in str(value)):
        raise EnvError(f"open_webui_environment has {name}, whose value carries credentials; {to_do}")


def problems(extra, settings, owned=(), release=names.RELEASE):
    """What is wrong with ``open_webui_environment`` or the role's settings, a sentence each; [] where nothing is."""
    return _problems(settings, extra, owned, release, secret=False)


def secret_problems(extra, owned=(), release=names.RELEASE):
    """What is wrong with ``open_webui_secret_environment``, a sentence each; names keys only, never a value."""
    return _problems({}, extra, owned, release, secret=True)


def _problems(settings, extra, owned, release, secret):
    try:
        render(settings, extra, owned, release, secret)
    except EnvError as error:
        return [str(error)]
    return []


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
    """{name: value} of the secrets' file: ``values``, and for each of ``generate`` what is there or 384 new bits."""
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
