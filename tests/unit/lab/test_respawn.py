# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""gpu_info starts itself again under the managed interpreter; run through Ansible itself, so not under ansible-test."""

from __future__ import annotations

import json
import os
import subprocess
import sys


def test_the_managed_python_is_taken(tmp_path, repo):
    """With another interpreter than the one it runs under, the module starts itself again there (through Ansible itself)."""
    other = tmp_path / "venv/bin/python"
    other.parent.mkdir(parents=True)
    other.symlink_to(sys.executable)

    command = ["-m", "ansible", "adhoc", "localhost", "-c", "local", "-i", "localhost,", "-m", "gpufleet.llm.gpu_info"]
    done = subprocess.run(
        [sys.executable, *command, "-e", f"ansible_python_interpreter={sys.executable}", "-a", f"python={other}"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=dict(os.environ, ANSIBLE_CALLBACK_RESULT_FORMAT="json", ANSIBLE_COLLECTIONS_PATH=str(repo / ".collections")),
    )
    assert json.loads(done.stdout.partition("=>")[2])["client"]["python"] == str(other)
