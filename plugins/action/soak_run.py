# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Controller side of gpufleet.llm.soak_run: install the program, run it as a unit, show its progress, fetch its measure, clean up."""

from __future__ import annotations

import base64
import gzip
import io
import json
import os
import shlex
import signal
import tarfile
import time

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase

from ansible_collections.gpufleet.llm.plugins.module_utils._host import programs
from ansible_collections.gpufleet.llm.plugins.module_utils._soak import measure

UNIT = "gpufleet-soak.service"
MARK = "--gpufleet-state--"
PATIENCE_S = 300  # for a host that cannot be reached for a while: the test goes on there


class _Interrupted(BaseException):
    """Ctrl-C on the controller: Ansible ends its workers by SIGTERM."""


class ActionModule(ActionBase):
    """Needs systemd and Python on the host; leaves nothing there."""

    _VALID_ARGS = frozenset(("config", "python", "dest", "poll_s"))
    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        args = self.validate_argument_spec(
            argument_spec={
                "config": {"type": "dict", "required": True, "no_log": True},
                "python": {"type": "path", "required": True},
                "dest": {"type": "path", "required": True},
                "poll_s": {"type": "float", "default": 2.0},
            }
        )[1]
        self._host = (task_vars or {}).get("inventory_hostname", "host")
        result.update(changed=False, dest=args["dest"])
        if self._task.check_mode:
            return {**result, "skipped": True, "msg": "A soak test puts a load on the server; check mode does not."}
        self._refuse_a_second_one()
        folder = self._sh("mktemp -d /var/tmp/gpufleet-soak.XXXXXXXX", "make a folder for the test").strip()
        before = signal.signal(signal.SIGTERM, self._interrupt)
        try:
            self._start(folder, args)
            reason = self._follow(folder, args["poll_s"])
        except (_Interrupted, KeyboardInterrupt):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            self._display.display(f"{self._host}: stopping the soak test; what was measured so far is fetched")
            reason = "interrupted"
            self._sh(f"systemctl stop {UNIT}", "stop the test", must=False)
        finally:
            signal.signal(signal.SIGTERM, before)
        self._fetch(folder, args["dest"])
        self._sh(f"rm -rf -- {shlex.quote(folder)}", "remove the test's folder")
        if reason == "interrupted":
            self._display.display(f"{self._host}: the measure is {args['dest']}; `ansible-playbook gpufleet.llm.soak_report` makes its report")
            raise AnsibleActionFail(f"The soak test was interrupted; its measure so far is {args['dest']}.")
        return result

    @staticmethod
    def _interrupt(_number, _frame):
        raise _Interrupted

    def _sh(self, command, purpose, must=True, data=None):
        """Standard output of a shell command on the host, as the play's become user."""
        done = self._low_level_execute_command(command, in_data=data, sudoable=True)
        if must and done["rc"] != 0:
            raise AnsibleActionFail(f"Could not {purpose}: {(done.get('stderr') or done.get('stdout') or '').strip()[-400:]}")
        return done["stdout"]

    def _refuse_a_second_one(self):
        state = self._sh(f"systemctl is-active {UNIT}", "ask systemd", must=False).strip()
        if state in ("active", "activating", "deactivating"):
            raise AnsibleActionFail(
                f"A soak test runs on {self._host} already ({UNIT}); one at a time was wanted. Wait for it, or end it: `systemctl stop {UNIT}` leaves"
                " what it measured in /var/tmp/gpufleet-soak.*/run.jsonl."
            )

    def _start(self, folder, args):
        quoted = shlex.quote(folder)
        data = base64.b64encode(archive(args["config"]))
        self._sh(f"base64 -d | tar -xzf - -C {quoted}", "write the program", data=data)
        command = (
            f"systemd-run --quiet --collect --unit={UNIT} --property=WorkingDirectory={quoted} --property=TimeoutStopSec=45 --property=KillMode=mixed"
            f" --property=StandardOutput=null --property=StandardError=append:{quoted}/stderr"
            f" {shlex.quote(args['python'])} -u -m {programs.PACKAGE}._soak.program {quoted}"
        )
        self._sh(command, f"start {UNIT}")

    def _follow(self, folder, poll_s):
        """Show the lines of progress as they come until the unit is gone."""
        place, unreachable_since = 1, None
        # The state is asked first: what the program wrote last is then in what is read after it.
        command = f"s=$(systemctl is-active {UNIT}); tail -c +%d {shlex.quote(folder)}/progress 2>/dev/null; printf '%%s%%s' {MARK} \"$s\""
        while True:
            try:
                said, _mark, state = self._sh(command % place, "follow the test").rpartition(MARK)
                unreachable_since = None
            except AnsibleConnectionFailure:
                unreachable_since = unreachable_since or time.monotonic()
                if time.monotonic() - unreachable_since > PATIENCE_S:
                    raise
                time.sleep(poll_s)
                continue
            whole = said[: said.rfind("\n") + 1]
            place += len(whole.encode())
            for line in whole.splitlines():
                self._display.display(f"{self._host}: {line}")
            if state.strip() not in ("active", "activating", "deactivating"):
                return "ended"
            time.sleep(poll_s)

    def _fetch(self, folder, dest):
        """The measure, compressed, into a file of the controller; AnsibleActionFail where there is none worth the name."""
        quoted = shlex.quote(folder)
        raw = base64.b64decode(self._sh(f"gzip -c {quoted}/run.jsonl | base64 -w0", "fetch the measure"))
        text = gzip.decompress(raw).decode("utf-8", "replace") if raw else ""
        try:
            measure.parse(text.splitlines())
        except measure.SoakError as error:
            said = self._sh(f"tail -c 1500 {quoted}/stderr", "read its errors", must=False).strip()
            raise AnsibleActionFail(f"The soak test on {self._host} left no measure: {said or error}") from error
        os.makedirs(os.path.dirname(dest) or ".", exist_ok=True)
        with open(dest, "wb") as handle:
            handle.write(raw)


def archive(config):
    """A gzipped tar of the shared files and the configuration, which only root may read: it may hold a token."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path, text in programs.sources("soak").items():
            _add(tar, path, text.encode())
        _add(tar, "config.json", json.dumps(config).encode(), 0o600)
    return buffer.getvalue()


def _add(tar, name, content, mode=0o644):
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    tar.addfile(info, io.BytesIO(content))
