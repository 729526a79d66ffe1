# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Names of models as the Ollama server takes them, and of the sources that this collection keeps beside them.

Private to this collection: it may change or go without notice.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

DEFAULT_REGISTRY = "registry.ollama.ai"


class Name(NamedTuple):
    """A model's name in full: registry host (may carry a port), namespace, model, tag."""

    host: str
    namespace: str
    model: str
    tag: str

    @property
    def short(self) -> str:
        """As the server shows it: without the default registry and the namespace library, always with its tag."""
        if self.host.lower() != DEFAULT_REGISTRY:
            head = f"{self.host}/{self.namespace}/"
        else:
            head = "" if self.namespace.lower() == "library" else f"{self.namespace}/"
        return f"{head}{self.model}:{self.tag}"

    @property
    def key(self) -> str:
        """For comparisons: the server finds models whatever the case of their names."""
        return self.short.lower()


_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}\Z")
_SPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}\Z")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}\Z")


def parse_name(text: Any) -> Name:
    """The parts of `[host/][namespace/]model[:tag]` (types/model/name.go).

    Raises ValueError with what is wrong. Tags that the server keeps for its cloud (`cloud`, `local`, `*-cloud`)
    are refused: a model of such a name can be created and then not be shown.
    """
    if not isinstance(text, str) or not text:
        raise ValueError(f"'{text}' is no model name; wanted [host/][namespace/]model[:tag], such as qwen3:14b.")
    given = text
    text = re.sub(r"\Ahttps?://", "", text)
    head, slash, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    host, namespace = DEFAULT_REGISTRY, "library"
    if slash:
        host_part, more, namespace = head.rpartition("/")
        host = host_part if more else host
    tag = tag if colon else "latest"
    parts = (("host", host, _HOST), ("namespace", namespace, _SPACE), ("model", model, _PART), ("tag", tag, _PART))
    for what, part, rule in parts:
        if not rule.match(part):
            raise ValueError(
                f"'{given[:120]}' is no model name: its {what} '{part[:90]}' has to start with a letter, a digit or "
                "'_' "
                "and go on"
                f" with these{' or -' if what == 'namespace' else ', . or -'}, at most 80 in all."
                + (
                    " A name with a registry host needs a namespace too: host/namespace/model."
                    if what == "namespace"
                    else ""
                )
            )
    if tag.lower() in ("cloud", "local") or tag.lower().endswith("-cloud"):
        raise ValueError(f"'{given[:120]}' has the tag '{tag}', which Ollama keeps for its cloud; choose another tag.")
    return Name(host, namespace, model, tag)


def short_name(text: str) -> str:
    """`qwen3` -> `qwen3:latest`, `registry.ollama.ai/library/x:y` -> `x:y`."""
    return parse_name(text).short


def same_name(one: str, other: str) -> bool:
    """Whether both are the same model to the server."""
    try:
        return parse_name(one).key == parse_name(other).key
    except ValueError:
        return one.lower() == other.lower()


def source_name(name: str, content: str, quantize: str | None) -> str:
    """The name under which the source of model `name` is kept; the same content has the same name."""
    parts = parse_name(name)
    tag = f".src-{content[:12]}" + (f"-{quantize}" if quantize else "")
    return parts._replace(tag=parts.tag[: 80 - len(tag)] + tag).short


_SOURCE = re.compile(r"\A(?P<tag>.*)\.src-[0-9a-f]{12}(-[a-z0-9_]+)?\Z")


def is_source(name: str) -> bool:
    """Whether a model is one that this module keeps as the source of another."""
    return bool(_SOURCE.match(name.rpartition(":")[2]))


def sources_of(name: str, tags: list[dict[str, Any]]) -> list[str]:
    """The sources that the store keeps for model `name`."""
    parts = parse_name(name)
    found = []
    for one in tags:
        head, _colon, tag = str(one.get("name", "")).rpartition(":")
        match = _SOURCE.match(tag)
        if match and f"{head}:{match.group('tag')}".lower() == parts.key:
            found.append(str(one["name"]))
    return sorted(found)
