# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What one run knows of the server's store, and what it has done or would do.

Private to this collection: it may change or go without notice.
"""

from __future__ import annotations

import time
from typing import Any, Callable

from . import client as ollama_client
from . import names


class Store:
    """What /api/tags says, asked once and again only after something was changed.

    `extend(base, name, extension)` puts a model with a longer context into the store's folder; None where that folder
    is not known.
    """

    def __init__(self, client: ollama_client.Client, extend: Callable[..., dict[str, Any]] | None = None):
        self._client = client
        self._tags: list[dict[str, Any]] | None = None
        self.extend = extend

    def changed(self) -> None:
        self._tags = None

    def all(self) -> list[dict[str, Any]]:
        if self._tags is None:
            self._tags = self._client.tags()
        return self._tags

    def find(self, name: str) -> dict[str, Any] | None:
        """The model of that name, whatever its case; None when the store has no such model."""
        key = names.parse_name(name).key
        for one in self.all():
            if str(one.get("name", "")).lower() == key:
                return one
        return None

    def digest(self, name: str) -> str | None:
        found = self.find(name)
        return found["digest"] if found else None


class Result:
    """What was found, what was done, what it would come to; `check` says whether only to predict."""

    def __init__(
        self, check: bool, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ):
        self.check, self.clock, self.sleep = check, clock, sleep
        self.changed = False
        self.actions: list[str] = []
        self.differs: list[str] = []
        self.warnings: list[str] = []
        self.bytes_pulled = 0
        self.bytes_uploaded = 0
        self.bytes_written = 0
        self.before: dict[str, Any] | None = None
        self.after: dict[str, Any] | None = None
        self.base_digest: str | None = None
        self.trained_context: int | None = None
        #: Whether this run put the model into memory, in epoch seconds: from then on the server's log is about it.
        self.loaded_at: float | None = None

    def act(self, what: str) -> bool:
        """Note an action; whether to really do it."""
        self.changed = True
        self.actions.append(what)
        return not self.check
