# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Models in several GGUF files: one header of all of them, or the reason why it is of a part only.

llama-gguf-split names the files ``NAME-00001-of-00006.gguf`` and gives each the keys ``split.no`` (from 0),
``split.count`` and ``split.tensors.count`` (of all files); the model's own keys are in the first (llama_split_path of
llama.cpp, tools/gguf-split). A header that is of a part only has the reason under ``incomplete``; one of several
files has their headers under ``parts``.
"""

from __future__ import annotations

import re

from .ggml import GgufError

MAX_PARTS = 512
NAME = re.compile(r"-(\d{5})-of-(\d{5})\.gguf(?=\Z|[?#])")


def place(header):
    """(number from 0, count) of the part that a header is of; (0, 1) for a model in one file."""
    keys, source = header["keys"], header["source"]
    count, number = keys.get("split.count", 0), keys.get("split.no", 0)
    whole_numbers = all(isinstance(one, int) and not isinstance(one, bool) for one in (count, number))
    if not whole_numbers or not 0 <= count <= MAX_PARTS or not 0 <= number < max(count, 1):
        raise GgufError(
            f"{source} has split.no={str(number)[:40]} and split.count={str(count)[:40]}, which is no part of at most"
            f" {MAX_PARTS}; it is damaged."
        )
    return number, max(count, 1)


def whole(header, name, read):
    """The header of all parts of the file or URL *name*; ``read(name)`` reads the header of another one."""
    number, count = place(header)
    if count == 1:
        return header
    named = NAME.search(name)
    if not named or (int(named[1]), int(named[2])) != (number + 1, count):
        ending = f"-{number + 1:05}-of-{count:05}.gguf"
        return partial(
            header,
            f"it is part {number + 1} of {count} and its name does not end in {ending}, so the others are unknown",
        )
    parts = []
    for index in range(count):
        other = f"{name[: named.start()]}-{index + 1:05}-of-{count:05}.gguf{name[named.end() :]}"
        try:
            parts.append(header if index == number else read(other))
        except GgufError as error:
            return partial(header, f"part {index + 1} of its {count} cannot be read ({str(error).rstrip('.')})")
    return combined(parts)


def combined(parts):
    """One header of these parts, in any order."""
    if len(parts) == 1 and place(parts[0])[1] == 1:
        return parts[0]
    parts = sorted(parts, key=lambda part: place(part)[0])
    first = parts[0]
    count = place(first)[1]
    if len(parts) < count:
        return partial(first, f"{len(parts)} of {count} parts are there")
    for index, part in enumerate(parts):
        if place(part) != (index, count):
            keys = ", ".join(f"{key}={part['keys'].get(key)}" for key in ("split.no", "split.count"))
            return partial(first, f"what is there as part {index + 1} of its {count} has {keys}")
    tensors = [tensor for part in parts for tensor in part["tensors"]]
    made = {
        **first,
        "tensors": tensors,
        "raw": None,
        "parts": parts,
        **{key: sum(part[key] for part in parts) for key in ("file_bytes", "bytes_read", "requests")},
    }
    if len({tensor["name"] for tensor in tensors}) != len(tensors):
        return partial(made, "a tensor is in two of its parts")
    return {**made, **_promised(made)}


def partial(header, reason):
    """The header with the reason why it is not the whole model's."""
    return {**header, "incomplete": reason}


def given(header):
    """A header that was given, or that a server gave: marked where it is of a part only."""
    number, count = place(header)
    if count == 1:
        return header
    if header["keys"].get("split.tensors.count") is None:
        return partial(header, f"it is part {number + 1} of {count}")
    return {**header, **_promised(header)}


def _promised(header):
    """{incomplete} where a header has not as many tensors as all parts together are to have."""
    announced, there = header["keys"].get("split.tensors.count"), len(header["tensors"])
    if announced is None or announced == there:
        return {}
    return {"incomplete": f"it has {there} tensors and {announced} were announced, so a part is missing"}
