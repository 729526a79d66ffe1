# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The environment of the Ollama server: which keys exist, what they take, which are dead.

Source: envconfig/config.go of Ollama v0.33.0-rc2. The server itself refuses nothing: an
unknown key is ignored, an unparsable boolean counts as true, an unparsable number becomes
the default with a warning. So every key is judged here, before it reaches the host.
"""

from __future__ import annotations

import difflib
import json
import re

# key -> kind. 'flag' is a boolean, 'mib' and 'uint' whole numbers, 'duration' Go's or seconds.
SERVER_KEYS = {
    "OLLAMA_HOST": "text",
    "OLLAMA_MODELS": "path",
    "OLLAMA_ORIGINS": "text",
    "OLLAMA_KEEP_ALIVE": "duration",
    "OLLAMA_LOAD_TIMEOUT": "duration",
    "OLLAMA_CONTEXT_LENGTH": "uint",
    "OLLAMA_NUM_PARALLEL": "uint",
    "OLLAMA_MAX_LOADED_MODELS": "uint",
    "OLLAMA_MAX_QUEUE": "uint",
    "OLLAMA_MAX_TRANSFER_STREAMS": "uint",
    "OLLAMA_GPU_OVERHEAD": "uint",
    "OLLAMA_FLASH_ATTENTION": "flag",
    "OLLAMA_KV_CACHE_TYPE": "kv_cache_type",
    "OLLAMA_SCHED_SPREAD": "flag",
    "OLLAMA_LLM_LIBRARY": "text",
    "OLLAMA_VULKAN": "flag",
    "OLLAMA_IGPU_ENABLE": "flag",
    "OLLAMA_GO_TEMPLATE": "flag",
    "OLLAMA_NOPRUNE": "flag",
    "OLLAMA_DEBUG": "debug",
    "OLLAMA_DEBUG_LOG_REQUESTS": "flag",
    "OLLAMA_NO_CLOUD": "flag",
    "OLLAMA_REMOTES": "text",
    "OLLAMA_CLOUD_BASE_URL": "text",
}

# Keys that people set and that do nothing for a server: what to do instead.
DEAD_KEYS = {
    "OLLAMA_NOHISTORY": "it is read by the interactive client only; history is bounded by open_webui_max_rounds",
    "OLLAMA_EDITOR": "it is read by the interactive client only",
    "OLLAMA_SKILLS": "it is read by the interactive client only",
    "OLLAMA_AUTH": "it makes a client sign its requests and the server checks nothing; access is the gateway's matter",
    "OLLAMA_VERSION": "it is read by install.sh only; set ollama_version",
    "OLLAMA_NO_START": "it is read by the macOS installer only",
    "OLLAMA_MAX_VRAM": "it is gone since 0.7.0; the reserve is ollama_reserve_mib",
    "OLLAMA_TMPDIR": "it is gone since 0.5.2",
    "OLLAMA_RUNNERS_DIR": "it is gone since 0.3.11",
    "OLLAMA_NEW_ESTIMATES": "it is gone since 0.11.11",
    "OLLAMA_INTEL_GPU": "it is gone since 0.12.11",
    "OLLAMA_MULTIUSER_CACHE": "it is gone since 0.30.0; slots are ollama_num_parallel",
    "OLLAMA_NEW_ENGINE": "it is gone since 0.30.0",
    "OLLAMA_REGISTRY": "it never existed; put the registry's host into the model's name",
    "OLLAMA_REGISTRY_URL": "it never existed; put the registry's host into the model's name",
    "OLLAMA_REGISTRIES": "it never existed; put the registry's host into the model's name",
    "OLLAMA_LOG_LEVEL": "it never existed; OLLAMA_DEBUG=1 is what the server reads",
    "OLLAMA_METRICS": "it is in no release; see docs/development/README.md for where the figures come from",
}

# Variables that the server hands on to llama-server or that its runtime reads.
OTHER_KEYS = re.compile(
    r"(LLAMA_ARG|LLAMA_LOG|GGML|CUDA|NVIDIA|HIP|ROCR|HSA)_[A-Z0-9_]+"
    r"|GPU_DEVICE_ORDINAL|GOMAXPROCS|GOMEMLIMIT|GODEBUG|GOGC|SSL_CERT_(FILE|DIR)|TZ"
    r"|(HTTPS?|NO|ALL)_PROXY|(https?|no|all)_proxy"
)
PROXY_KEY = re.compile(r"(https?|all)_proxy", re.IGNORECASE)
DURATION = re.compile(r"-?(\d+|(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+)")  # seconds, or Go's time.ParseDuration

# Only these have CUDA kernels for flash attention in release builds (llama.cpp PR 28456).
KV_CACHE_TYPES = ("f16", "bf16", "q8_0", "q4_0")


# What a value has in it that nothing may show: user and password (or a token) of an address, a header's credentials, a
# private key; and members of JSON that are named like one.
CREDENTIALS = re.compile(
    r"://[^\s/]*@|\bauthorization\W{1,5}(?:bearer|basic|token)\s+\S|-----BEGIN [A-Z ]*PRIVATE KEY-----", re.IGNORECASE
)
CREDENTIALS_MEMBER = re.compile(
    r"(.*[_-])?(api_?key|(access|private|secret)_?key|token|passw(or)?d|secret|credentials?|authorization)",
    re.IGNORECASE,
)


class EnvError(Exception):
    """A key or value that the server would silently misread; the text is fit for an operator."""


def render(settings, extra=None):
    """Environment of the server as {key: text}, checked.

    ``settings``: keys that the role's own options stand for; a value of None leaves the key out.
    ``extra``: what the operator adds (``ollama_environment``); it may not repeat a key of settings.
    Raises EnvError naming the first key that would not do what it says.
    """
    extra = extra or {}
    for key in extra:
        if key in settings:
            raise EnvError(
                f"ollama_environment sets {key}, which the role sets from an option of its own; set that option "
                "instead."
            )
    rendered = {}
    for key, value in {**settings, **extra}.items():
        if value is not None:
            check_key(key)
            rendered[key] = text_of(key, value)
    return dict(sorted(rendered.items()))


def problems(extra, settings):
    """What is wrong with ``ollama_environment`` beside the role's settings, a sentence each; [] where nothing is."""
    try:
        render(settings, extra)
    except EnvError as error:
        return [str(error)]
    return []


def check_key(key):
    """Raise EnvError unless the server, its engine or its runtime reads the key."""
    if key in SERVER_KEYS:
        return
    if key in DEAD_KEYS:
        raise EnvError(f"ollama_environment: {key} has no effect on the server: {DEAD_KEYS[key]}.")
    if OTHER_KEYS.fullmatch(str(key)):
        return
    near = difflib.get_close_matches(str(key), SERVER_KEYS, n=1)
    hint = f"did you mean {near[0]}?" if near else "leave it out; docs/guides/ollama.md lists the keys that are read."
    raise EnvError(f"ollama_environment: the Ollama server reads no variable {key}; {hint}")


def text_of(key, value):
    """The value as the server parses it back to what was meant."""
    kind = SERVER_KEYS.get(key, "text")
    if isinstance(value, bool):
        text = "1" if value else "0"
    else:
        text = str(value).strip()
    if "\n" in text or "\x00" in text:
        raise EnvError(f"ollama_environment: the value of {key} has a line break; give one line.")
    if not PROXY_KEY.fullmatch(key) and carries_credentials(text):
        raise EnvError(
            f"ollama_environment: {key} carries credentials, and the server's environment is no place for them; give "
            "an address that needs none."
        )
    problem = _PROBLEMS.get(kind, _no_problem)(text)
    if problem:
        raise EnvError(f"ollama_environment: {key} is '{text}'; {problem}")
    # Anything with an @: Go takes a proxy without a scheme too, and a password may hold any character.
    if PROXY_KEY.fullmatch(key) and "@" in text:
        raise EnvError(
            f"ollama_environment: {key} carries credentials, and the server prints this variable in its log at every "
            "start; "
            "give the address of a proxy that needs none, such as a forwarder on loopback (docs/guides/ollama.md has "
            "one)."
        )
    return text


def carries_credentials(value):
    """Whether a value has a credential in it, whatever its variable is called: text, or lists and dicts of JSON.

    >>> [carries_credentials(one) for one in ("http://me:word@proxy:3128", '{"api_key": "sk-1"}', "me@example.org")]
    [True, True, False]
    """
    if isinstance(value, dict):
        named = (isinstance(one, str) and one and CREDENTIALS_MEMBER.fullmatch(str(key)) for key, one in value.items())
        return any(named) or any(carries_credentials(one) for one in value.values())
    if isinstance(value, (list, tuple)):
        return any(carries_credentials(one) for one in value)
    if not isinstance(value, str):
        return False
    if value.lstrip()[:1] in ("{", "["):
        try:
            return carries_credentials(json.loads(value))
        except (ValueError, RecursionError):
            pass
    return bool(CREDENTIALS.search(value))


def _no_problem(_text):
    return None


def _uint(text):
    return (
        None
        if re.fullmatch(r"[0-9]+", text)
        else "a whole number was wanted (the server would fall back to its default)."
    )


def _flag(text):
    return (
        None
        if text in ("0", "1", "true", "false")
        else "true or false was wanted (the server takes any other word for true)."
    )


def _duration(text):
    return None if DURATION.fullmatch(text) else "seconds or a duration such as 5m was wanted."


def _kv_cache_type(text):
    if text in KV_CACHE_TYPES:
        return None
    return f"one of {', '.join(KV_CACHE_TYPES)} was wanted (with any other every load fails or runs on the CPU)."


def _path(text):
    return None if text.startswith("/") else "an absolute path was wanted."


def _debug(text):
    return None if text in ("0", "1", "2", "true", "false") else "0, 1 or 2 was wanted."


_PROBLEMS = {
    "uint": _uint,
    "flag": _flag,
    "duration": _duration,
    "kv_cache_type": _kv_cache_type,
    "path": _path,
    "debug": _debug,
}


def environment_file(environment):
    """Text of a file for systemd's EnvironmentFile=, one key a line, sorted; quoted where needed.

    >>> environment_file({"B": "a b", "A": "1"})
    'A=1\\nB="a b"\\n'
    """
    for key in environment:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", str(key)):
            raise EnvError(f"{key!r} is no name of an environment variable; letters, digits and _ were wanted.")
    return "".join(f"{key}={_quoted(str(value))}\n" for key, value in sorted(environment.items()))


def _quoted(value):
    """systemd.exec(5): inside double quotes, backslash escapes \\, ", $ and `."""
    if "\0" in value:
        raise EnvError("A value of the environment has a NUL in it, and no variable can hold one.")
    if re.fullmatch(r"[A-Za-z0-9_@%+=:,./-]*", value):
        return value
    return '"' + re.sub(r'([\\"$`])', r"\\\1", value) + '"'
