# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an answer of /api/show says of a model.

Private to this collection: it may change or go without notice.
"""

from __future__ import annotations

import re
from typing import Any

from . import modelfile, parameters

_DIGEST = re.compile(r"sha256[-:]([0-9a-f]{64})")


def observe(show: dict[str, Any]) -> dict[str, Any]:
    """What an answer of /api/show says of the model: FIELDS, and family and trained_context for advice.

    parent is the base's name, "" for a model made from files; weights and adapters are sorted lists of sha256 hex;
    numbers in parameters are floats, as the server keeps them.
    """
    heads, template, renderer, parser = _read_modelfile(show)
    details = show.get("details") or {}
    info = show.get("model_info") or {}
    architecture = info.get("general.architecture") or details.get("family") or ""
    return {
        "parent": details.get("parent_model") or "",
        "weights": sorted(set(heads["FROM"])),
        "adapters": sorted(set(heads["ADAPTER"])),
        "template": template,
        "system": show.get("system") or "",
        "renderer": renderer,
        "parser": parser,
        "parameters": _read_parameters(show.get("parameters") or ""),
        "messages": [
            {"role": one.get("role", ""), "content": one.get("content", "")} for one in show.get("messages") or []
        ],
        "license": show.get("license") or "",
        "requires": show.get("requires") or "",
        "family": details.get("family") or "",
        "trained_context": info.get(f"{architecture}.context_length"),
    }


def _read_modelfile(show: dict[str, Any]) -> tuple[dict[str, list[str]], str, str, str]:
    """Digests by instruction, the stored template, renderer and parser from the `modelfile` of /api/show.

    That text is printed for people, with lossy quotes; its order is fixed (images.go, Model.String): FROM, ADAPTER,
    DRAFT and further FROM lines, TEMPLATE, SYSTEM, RENDERER, PARSER, then the rest. So the head is read line by line,
    the template by the text that the answer gives beside it where that is the stored one, and the two names after it.
    """
    heads: dict[str, list[str]] = {"FROM": [], "ADAPTER": [], "DRAFT": []}
    text = show.get("modelfile") or ""
    position = 0
    while position < len(text):
        end = text.find("\n", position)
        end = len(text) if end < 0 else end
        word, _blank, value = text[position:end].partition(" ")
        if word in heads:
            digest = _DIGEST.search(value)
            heads[word].append(digest.group(1) if digest else value)
        elif word != "#" and word.strip() and not word.startswith("#"):
            break
        position = end + 1
    template, position = _read_value(text, position, "TEMPLATE", show.get("template") or "")
    _system, position = _read_value(text, position, "SYSTEM", show.get("system") or "")
    renderer, position = _read_value(text, position, "RENDERER", "")
    parser, position = _read_value(text, position, "PARSER", "")
    return heads, template, renderer, parser


def _read_value(text: str, position: int, name: str, expected: str) -> tuple[str, int]:
    """The value of instruction `name` if it stands at `position`, and the position of the line after it."""
    head = f"{name} "
    if not text.startswith(head, position):
        return "", position
    start = position + len(head)
    printed = _server_quote(expected)
    if (
        expected
        and text.startswith(printed, start)
        and text[start + len(printed) : start + len(printed) + 1] in ("", "\n")
    ):
        return expected, start + len(printed) + 1
    if text.startswith('"""', start):
        # The first closing quotes that another instruction, or nothing, follows.
        for found in re.finditer(rf'"""(?=\n(?:{"|".join(modelfile.INSTRUCTIONS)}) |\n?\Z)', text[start + 3 :]):
            end = start + 3 + found.start()
            return text[start + 3 : end], end + 4
    elif text.startswith('"', start):
        # Printed in single quotes only when there is none inside.
        end = text.find('"\n', start + 1)
        if end >= 0:
            return text[start + 1 : end], end + 2
    end = text.find("\n", start)
    end = len(text) if end < 0 else end
    return text[start:end], end + 1


def _server_quote(text: str) -> str:
    """`text` as the server prints it in a Modelfile (parser.go, quote)."""
    if "\n" in text or text.startswith(" ") or text.endswith(" "):
        return f'"""{text}"""' if '"' in text else f'"{text}"'
    return text


def _read_parameters(text: str) -> dict[str, Any]:
    """The parameters that /api/show prints: name, blanks, value in Go's syntax; one line for each entry of a list."""
    found: dict[str, Any] = {}
    for line in text.split("\n"):
        name, _blank, value = line.strip().partition(" ")
        if not name:
            continue
        read = _go_value(value.strip())
        if parameters.PARAMETERS.get(name, ("",))[0] == parameters.TEXTS:
            found.setdefault(name, []).append(read)
        elif name in found:
            before = found[name]
            found[name] = [*(before if isinstance(before, list) else [before]), read]
        else:
            found[name] = read
    return found


_ESCAPES = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'"}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{3}|.)", re.DOTALL)


def _go_value(text: str) -> Any:
    """A value printed with Go's %#v: a float for every number, bool, text; anything else as it was printed."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return _ESCAPE.sub(_unescape, text[1:-1])
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _unescape(match) -> str:
    code = match.group(1)
    if code[0] in "xuU" and len(code) > 1:
        return chr(int(code[1:], 16))
    if len(code) == 3 and code.isdigit():
        return chr(int(code, 8))
    return _ESCAPES.get(code, code)
