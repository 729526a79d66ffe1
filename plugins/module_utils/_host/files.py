# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Reading files: the two ways that the collection has, by what an unreadable file means to the caller."""

from __future__ import annotations

import os


def read_text(path: str, limit: int = -1) -> str | None:
    """The file's text, at most *limit* bytes of it; None where there is no such file.

    Bytes that are not UTF-8 come back as U+FFFD. Raises OSError for a file that is there and cannot be read: for a
    caller to whom "unreadable" must not pass for "absent". A pipe in its place is empty: root does not wait for whoever
    put it there.
    """
    try:
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as handle:
            return handle.read(limit).decode("utf-8", "replace")
    except FileNotFoundError:
        return None


def text_or_none(path: str, limit: int = -1) -> str | None:
    """The same, and None for whatever cannot be read: for /proc, /sys and files that other programs own."""
    try:
        return read_text(path, limit)
    except OSError:
        return None


def names_in(folder: str) -> list[str]:
    """Sorted names in a folder; [] where there is no such folder or it cannot be read."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
