# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ollama's Modelfile: parser and printer.

Private to this collection: it may change or go without notice.

The grammar is the one of Ollama's own client (parser/parser.go, 0.24 to 0.33): `INSTRUCTION value`, instruction
names in any case, `#` comments only where an instruction could start, values bare to the end of the line, or in
`"…"` or `\"\"\"…\"\"\"` over several lines, without escapes.

Where this parser is more patient than Ollama's client: several blanks between `PARAMETER` and its name, and
characters that the client drops without a word (control characters, zero-width joiners) are kept.
"""

from __future__ import annotations

import difflib
import re
from typing import Any, NamedTuple

from .parameters import PARAMETERS, TEXTS, ModelfileError, check_parameter, number_text

#: Instruction names as Ollama's client knows them.
INSTRUCTIONS = (
    "FROM",
    "PARAMETER",
    "TEMPLATE",
    "SYSTEM",
    "ADAPTER",
    "DRAFT",
    "LICENSE",
    "MESSAGE",
    "RENDERER",
    "PARSER",
    "REQUIRES",
)
ROLES = ("system", "user", "assistant")
_SEMVER = re.compile(r"v?(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*)){0,2}(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?\Z")
_EOL = re.compile(r"\r\n|\n|\r")
_WORD = re.compile(r"[A-Za-z]+")
_NAME = re.compile(r"[A-Za-z0-9_]+")


class Instruction(NamedTuple):
    """One instruction: its first line, its name in capitals, the word after PARAMETER or MESSAGE, its value."""

    line: int
    name: str
    key: str
    value: str


def parse(text: str) -> list[Instruction]:
    """The instructions of a Modelfile, in order.

    Raises ModelfileError with the line for whatever Ollama's client would refuse, except parameter names and
    values, which `declaration` checks.
    """
    text = text[1:] if text.startswith("\ufeff") else text
    found: list[Instruction] = []
    position, line = 0, 1
    while position < len(text):
        char = text[position]
        if char in "\r\n":
            position, line = next(_EOL.finditer(text, position)).end(), line + 1
        elif char in " \t":
            position += 1
        elif char == "#":
            end = _EOL.search(text, position)
            position = end.start() if end else len(text)
        else:
            instruction, position, line = _instruction(text, position, line)
            found.append(instruction)
    if not any(item.name == "FROM" for item in found):
        raise ModelfileError("The Modelfile has no FROM line; it names the model or the GGUF file to start from.")
    return found


def _instruction(text: str, position: int, line: int) -> tuple[Instruction, int, int]:
    """The instruction that starts at `position`, the position after it and the line there."""
    word = _WORD.match(text, position)
    name = word.group().upper() if word else ""
    if word is None or name not in INSTRUCTIONS:
        given = next(re.finditer(r"\S{0,40}", text[position : position + 41])).group()
        near = difflib.get_close_matches(given.upper(), INSTRUCTIONS, n=1)
        raise ModelfileError(
            f"'{given}' is no instruction; a line starts with one of {', '.join(INSTRUCTIONS)}."
            + (f" Did you mean {near[0]}?" if near else " Text over several lines has to be in triple quotes."),
            line,
        )
    position = word.end()
    if position >= len(text) or text[position] not in " \t":
        rest = next(re.finditer(r"\S{0,20}", text[position : position + 21])).group()
        raise ModelfileError(f"{name} is followed by '{rest}'; it takes a blank and a value.", line)
    position += 1
    key = ""
    if name in ("PARAMETER", "MESSAGE"):
        key, position = _key(text, position, line, name)
    value, position, lines = _value(text, position, line, name)
    return Instruction(line, name, key, value), position, line + lines


def _key(text: str, position: int, line: int, name: str) -> tuple[str, int]:
    """The word after PARAMETER (a name) or MESSAGE (a role) and the position of the value."""
    while position < len(text) and text[position] in " \t":
        position += 1
    word = _NAME.match(text, position)
    key = word.group() if word else ""
    after = word.end() if word else position
    if not key or (after < len(text) and text[after] not in " \t") or after >= len(text):
        what = "a name and a value" if name == "PARAMETER" else "a role and a text"
        raise ModelfileError(f"{name} takes {what}, with blanks between them.", line)
    if name == "MESSAGE" and key not in ROLES:
        raise ModelfileError(
            'message role must be one of "system", "user", or "assistant"' + f", not '{key[:40]}'.", line
        )
    return key, after + 1


def _value(text: str, position: int, line: int, name: str) -> tuple[str, int, int]:
    """The value that starts at `position`, the position of the end of its last line, and how many lines it crossed."""
    start, lines = position, 0
    while True:
        found = _EOL.search(text, position)
        end = found.start() if found else len(text)
        raw = text[start:end].strip() if lines == 0 else ""
        if lines == 0:
            whole = _unquote(raw)
            quote = '"""' if raw.startswith('"""') else '"'
            if whole is not None:
                return whole, end, lines
        elif text[position:end].rstrip().endswith(quote):
            # Only now is the value copied: a long text without its closing quote costs one pass, not one per line.
            whole = _unquote(text[start:end].strip())
            if whole is not None:
                return whole, end, lines
        if not found:
            raise ModelfileError(
                f"The quote {quote} that opens the value of {name} is never closed; close it at the end of a line.",
                line,
            )
        position, lines = found.end(), lines + 1


def _unquote(text: str) -> str | None:
    """`text` without its quotes; None while the quote is still open."""
    for quote in ('"""', '"'):
        if text.startswith(quote):
            closed = len(text) >= 2 * len(quote) and text.endswith(quote)
            return text[len(quote) : -len(quote)] if closed else None
    return text


def declaration(text: str) -> dict[str, Any]:
    """What a Modelfile declares, checked.

    A dict with the keys that the file sets, of: `from` (list of names or paths, in order), `parameters` (typed),
    `template`, `system`, `adapter`, `draft`, `renderer`, `parser`, `requires` (text), `license` (list),
    `messages` (list of {role, content}).
    """
    declared: dict[str, Any] = {"from": []}
    parameters: dict[str, Any] = {}
    for item in parse(text):
        if item.name == "FROM":
            if not item.value:
                raise ModelfileError(
                    "FROM names nothing; it takes a model's name or the path of a GGUF file.", item.line
                )
            declared["from"].append(item.value)
        elif item.name == "PARAMETER":
            value = check_parameter(item.key, item.value, item.line)
            if PARAMETERS[item.key][0] == TEXTS:
                value = parameters.get(item.key, []) + value
            parameters[item.key] = value
        elif item.name == "MESSAGE":
            declared.setdefault("messages", []).append({"role": item.key, "content": item.value})
        elif item.name == "LICENSE":
            declared.setdefault("license", []).append(item.value)
        elif item.name == "REQUIRES":
            declared["requires"] = check_requires(item.value, item.line)
        else:
            declared[item.name.lower()] = item.value
    if parameters:
        declared["parameters"] = parameters
    return declared


def check_requires(value: str, line: int | None = None) -> str:
    """`value` without a leading v, if it is a version (the client's rule)."""
    if not _SEMVER.match(str(value)):
        raise ModelfileError(f"requires must be a valid semver (e.g. 0.14.0), not '{str(value)[:40]}'.", line)
    return str(value).lstrip("v")


UNCARRIED = (
    "# The next value has quotes at the end of a line, which this grammar cannot carry: the server holds it as shown."
)


def render(declared: dict[str, Any], comments: tuple[str, ...] = ()) -> str:
    """A Modelfile for `declared` (the shape that `declaration` returns), in one order whatever the order given.

    `parse` of it gives the same values, but for texts that no Modelfile can carry (see `carried`), which get a
    comment. `comments` stand on top.
    """
    lines = [f"# {line}" if line else "#" for comment in comments for line in comment.splitlines() or [""]]
    lines += [_line("FROM", value) for value in _list(declared.get("from"))]
    for name in ("adapter", "draft", "template", "system", "renderer", "parser"):
        lines += [_line(name.upper(), value) for value in _list(declared.get(name))]
    for name, value in sorted((declared.get("parameters") or {}).items()):
        for one in value if isinstance(value, (list, tuple)) else [value]:
            lines.append(_line(f"PARAMETER {name}", number_text(one)))
    for message in declared.get("messages") or []:
        lines.append(_line(f"MESSAGE {message['role']}", message["content"]))
    lines += [_line("LICENSE", value) for value in _list(declared.get("license"))]
    lines += [_line("REQUIRES", value) for value in _list(declared.get("requires"))]
    return "".join(f"{line}\n" for line in lines)


def carried(text: str) -> bool:
    """Whether a Modelfile can carry `text` as a value."""
    return _quoted(text) is not None


def _line(head: str, value: str) -> str:
    quoted = _quoted(value)
    return f"{head} {quoted}" if quoted is not None else f'{UNCARRIED}\n{head} """{value}"""'


def _quoted(text: str) -> str | None:
    """`text` bare where that is the same, else in the quotes that close where they should, else None."""
    if text and text == text.strip() and not text.startswith('"') and not _EOL.search(text):
        return text
    inner = [line.rstrip() for line in _EOL.split(text)[:-1]]
    single = not f'"{text}"'.startswith('"""') and not any(line.endswith('"') for line in inner)
    if single and '"' not in text:
        return f'"{text}"'
    if not any(line.endswith('"""') for line in inner):
        return f'"""{text}"""'
    return f'"{text}"' if single else None


def _list(value: Any) -> list[str]:
    """Texts to print: nothing for None and empty, which the server takes as not set."""
    values = value if isinstance(value, (list, tuple)) else [value]
    return [str(one) for one in values if one not in (None, "")]
