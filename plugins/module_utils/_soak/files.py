# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""The files of a run: what it writes while it works, and the plan that it is held against."""

from __future__ import annotations

import json
import os
import threading
import time

from .._host.files import read_text


class RunFiles:
    """``run.jsonl`` and ``progress``, written by several threads."""

    def __init__(self, folder, out=None):
        self._lock = threading.Lock()
        self._run = open(os.path.join(folder, "run.jsonl"), "w", encoding="utf-8")  # noqa: SIM115
        self._progress = open(os.path.join(folder, "progress"), "w", encoding="utf-8")  # noqa: SIM115
        self._out = out
        self.closed = False

    def write(self, kind, entry):
        """One JSON line of the measure."""
        text = json.dumps({"k": kind, **entry}, separators=(",", ":"), ensure_ascii=False)
        with self._lock:
            if not self.closed:
                self._run.write(text + "\n")
                self._run.flush()

    def say(self, text):
        """One line for people."""
        line = f"{time.strftime('%H:%M:%S')} {text}"
        with self._lock:
            if not self.closed:
                self._progress.write(line + "\n")
                self._progress.flush()
                if self._out:
                    self._out.write(line + "\n")
                    self._out.flush()

    def close(self):
        """No line after this one."""
        with self._lock:
            self.closed = True
            self._run.close()
            self._progress.close()


def read_plan(path):
    """{models, gpus} of the serving plan, as far as a run needs it; None where there is none that can be read."""
    try:
        plan = json.loads(read_text(path) or "")
        plan = plan.get("plan", plan)
        keys = ("name", "total_mib", "scratch_mib", "effective_num_ctx", "num_parallel", "kv_cache_type")
        models = [{key: model.get(key) for key in keys} for model in plan["models"]]
        gpus = [{key: gpu.get(key) for key in ("index", "planned_mib", "budget_mib")} for gpu in plan["gpus"]]
        return {"models": models, "gpus": gpus}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
