# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Whose tokens the gateway knows and what each may do: checked, and turned into what its njs reads.

Tokens in clear are only seen here, on the controller; what leaves is their SHA-256. No
sentence of this file ever quotes one.
"""

from __future__ import annotations

import hashlib
import re

NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")  # part of names of nginx variables and zones
SHA256 = re.compile(r"[0-9a-f]{64}")
TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{32,512}")  # RFC 6750, b64token; 32 characters of a random alphabet are 128 bits and more
MODEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,255}")  # stands in policy.js, in the log and in a path
ROUTES = ("native", "openai")
PINS = ("strip", "refuse", "off")
LIMITS = ("rate_per_minute", "burst", "streams")
KEYS = {"name", "token", "sha256", "routes", "models", "pin", *LIMITS}


def canonical(model):
    """A model's name as gateway.js compares it: small letters, without the tag `latest`."""
    name = str(model).lower()
    return name[: -len(":latest")] if name.endswith(":latest") else name


def problems(tokens, models):
    """A sentence for each thing that is wrong with a list of tokens; [] where nothing is. Never quotes a token."""
    declared = {canonical(model["name"]) for model in models if isinstance(model, dict) and "name" in model}
    found = [
        f"The model {model['name']!r} has a name that no file should hold; wanted are letters, digits and . _ : / - that begin with a letter or digit."
        for model in models
        if isinstance(model, dict) and "name" in model and not MODEL.fullmatch(str(model["name"]))
    ]
    seen_names: set[str] = set()
    seen_hashes: dict[str, str] = {}
    for index, entry in enumerate(tokens):
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not NAME.fullmatch(entry["name"]):
            found.append(
                f"Entry {index + 1} of gateway_tokens has no name that can be used; up to 32 small letters, digits and _ that begin with a letter were wanted."
            )
            continue
        name = entry["name"]
        if name in seen_names:
            found.append(f"Token {name} stands in gateway_tokens twice; each needs a name of its own.")
        seen_names.add(name)
        unknown = sorted(set(entry) - KEYS)
        if unknown:
            found.append(f"Token {name} has {', '.join(unknown)}; known are {', '.join(sorted(KEYS))}.")
        found += _secret_problems(name, entry, seen_hashes)
        found += _right_problems(name, entry, declared)
    return found


def _secret_problems(name, entry, seen):
    if ("token" in entry) == ("sha256" in entry):
        return [f"Token {name} has {'both' if 'token' in entry else 'neither'} token and sha256; one of them was wanted."]
    if "sha256" in entry and not SHA256.fullmatch(str(entry["sha256"])):
        return [f"Token {name} has a sha256 that is none; 64 hexadecimal digits in small letters were wanted (printf %s TOKEN | sha256sum)."]
    if "token" in entry and not TOKEN.fullmatch(str(entry["token"])):
        return [
            f"Token {name} has {len(str(entry['token']))} characters or some that no bearer token has; 32 to 512 letters, digits and . _ ~ + / = - "
            "were wanted. `openssl rand -hex 32` makes one; keep it in a vault."
        ]
    value = digest(entry)
    if value in seen:
        return [f"Tokens {seen[value]} and {name} are the same; each needs its own, or revoking one revokes both."]
    seen[value] = name
    return []


def _right_problems(name, entry, declared):
    found = []
    routes = entry.get("routes", list(ROUTES))
    if not isinstance(routes, list) or not routes or set(routes) - set(ROUTES):
        found.append(f"Token {name} has routes {routes}; a list of {' and '.join(ROUTES)} was wanted.")
    if entry.get("pin", "strip") not in PINS:
        found.append(f"Token {name} has pin {entry['pin']}; one of {', '.join(PINS)} was wanted.")
    models = entry.get("models")
    if models is not None:
        strangers = sorted(str(model) for model in models if canonical(model) not in declared) if isinstance(models, list) else [str(models)]
        if strangers:
            found.append(
                f"Token {name} has models {', '.join(strangers)}, which gateway_models does not name; it names {', '.join(sorted(declared)) or 'none'}."
            )
    for key in LIMITS:
        if key in entry and not (isinstance(entry[key], int) and not isinstance(entry[key], bool) and entry[key] >= (0 if key == "burst" else 1)):
            found.append(f"Token {name} has {key} {entry[key]}; a whole number of at least {0 if key == 'burst' else 1} was wanted.")
    return found


def digest(entry):
    """SHA-256 of an entry's token in small hexadecimal digits."""
    return entry["sha256"] if "sha256" in entry else hashlib.sha256(str(entry["token"]).encode()).hexdigest()


def policy(tokens, models, defaults, context_length):
    """What gateway.js and nginx.conf are made from.

    {tokens: {sha256: name}, rights: {name: {routes, models (None is all), pin}}, limits: {name: {rate_per_minute, burst,
    streams}}, models: {canonical name: planned num_ctx}}. defaults has pin and the limits; context_length in tokens counts
    where a model's parameters do not say num_ctx.
    """
    return {
        "tokens": {digest(entry): entry["name"] for entry in tokens},
        "rights": {
            entry["name"]: {
                "routes": list(entry.get("routes", ROUTES)),
                "models": None if entry.get("models") is None else [canonical(model) for model in entry["models"]],
                "pin": entry.get("pin", defaults["pin"]),
            }
            for entry in tokens
        },
        "limits": {entry["name"]: {key: int(entry.get(key, defaults[key])) for key in LIMITS} for entry in tokens},
        "models": {canonical(model["name"]): int((model.get("parameters") or {}).get("num_ctx", context_length)) for model in models},
    }
