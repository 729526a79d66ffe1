# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Which distribution a host runs."""

from __future__ import annotations

import os

from .files import text_or_none

PLACES = ("etc/os-release", "usr/lib/os-release")


def distribution(*roots: str) -> dict[str, str]:
    """{id, version_id, pretty_name} by os-release(5), each '' where the file does not say.

    The first of *roots* that has such a file counts; without *roots* it is "/".
    """
    texts = (text_or_none(os.path.join(root, place)) for root in roots or ("/",) for place in PLACES)
    text = next((found for found in texts if found), "")
    fields = dict(line.partition("=")[::2] for line in text.splitlines() if "=" in line)
    return {key: fields.get(key.upper(), "").strip().strip("\"'") for key in ("id", "version_id", "pretty_name")}
