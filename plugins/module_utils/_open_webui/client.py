# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Private to the collection gpufleet.llm: no stable interface for others.
"""Client of Open WebUI's HTTP API.

The server's own habits, measured on 0.12.4: an unknown id answers 401; an unknown path answers 200 with the UI's HTML.
"""

from __future__ import annotations

import json

from .. import _http


class OpenWebuiError(Exception):
    """A request that failed; the text is fit for an operator and carries no secret.

    ``status`` is HTTP's, None without an answer.
    """

    def __init__(self, message, status=None):
        super().__init__(message)
        self.status = status


class Client:
    """One server, with or without a token."""

    def __init__(self, url, token=None, timeout=30):
        self.url = url.rstrip("/")
        self.token = token
        self.server = _http.Server(self.url, timeout_s=timeout, connect_timeout_s=timeout, retries=0)

    def call(self, method, path, body=None):
        """The decoded JSON answer; OpenWebuiError for everything else."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        try:
            response = self.server.send(method, path, body, headers)
            raw = self.server.read(response)
        except _http.HttpError as error:
            raise OpenWebuiError(f"{error} Is open-webui.service active?") from error
        if response.status >= 300:
            raise OpenWebuiError(self._refusal(method, path, response.status, raw), response.status)
        if "json" not in (response.headers.get("Content-Type") or ""):
            told = f"{method} {path} answered with HTML, not JSON; this Open WebUI has no such route."
            raise OpenWebuiError(told, 200)
        try:
            return json.loads(raw.decode("utf-8", "replace"))
        except ValueError as error:
            raise OpenWebuiError(f"{method} {path} answered with broken JSON ({error}).", 200) from error

    def _refusal(self, method, path, status, raw):
        try:
            detail = json.loads(raw.decode("utf-8", "replace")).get("detail")
        except (ValueError, AttributeError):
            detail = raw.decode("utf-8", "replace")[:200]
        detail = detail if isinstance(detail, str) else json.dumps(detail)
        hint = {
            403: " The account has to be an administrator's.",
            429: " Open WebUI takes 15 sign-ins in 180 s per e-mail, successes included; wait three minutes.",
        }.get(status, "")
        if "validation criteria" in detail:
            hint = " Eight characters and more with a small and a capital letter, a digit and a sign are wanted."
        if status == 401 and not self.token:
            hint = " A token was needed and none was given."
        return f"{method} {path} was refused with {status}: {detail.rstrip('.')}.{hint}"


def unless_fresh(read, check_mode):
    """What ``read()`` returns; in check mode None where no server answers, as on a host without one so far."""
    try:
        return read()
    except OpenWebuiError as error:
        if check_mode and error.status is None:
            return None
        raise


def difference(observed, wanted):
    """Names of the keys of ``wanted`` that the observed function (or None) does not have so."""
    return [key for key in wanted if (observed or {}).get(key) != wanted[key]]
