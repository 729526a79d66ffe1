# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that says when the disk behind Open WebUI is nearly full, with a df and a sleep of the test's own."""

from __future__ import annotations

import os
import pathlib
import subprocess

PROGRAM = pathlib.Path(__file__).resolve().parents[3] / "roles/open_webui/files/open-webui-space"


def run(folder, *free):
    """(whether the flag is there after each look, what was said) for a disk with so many MiB free at each look."""
    (folder / "free").write_text("".join(f"{one}\n" for one in free))
    programs = {
        # Asked as the program asks; one line of the file a look.
        "df": '[ "$*" = "--output=avail --block-size=M $DATA" ] || exit 9\nprintf " Avail\\n%sM\\n" "$(head -n 1 "$STATE/free")"\nsed -i 1d "$STATE/free"',
        "sleep": 'test -e "$STATE/flag" && echo 1 >> "$STATE/seen" || echo 0 >> "$STATE/seen"\n[ -s "$STATE/free" ] || kill $PPID',
    }
    (folder / "bin").mkdir()
    for name, text in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / "bin" / name).chmod(0o755)
    data = folder / "a folder's data"
    env = {"PATH": f"{folder}/bin:{os.environ['PATH']}", "STATE": str(folder), "DATA": str(data)}
    done = subprocess.run(["sh", PROGRAM, data, "2048", folder / "flag"], env=env, capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == -15, done
    return [line == "1" for line in (folder / "seen").read_text().split()], done.stdout.splitlines()


def test_the_flag_is_there_while_too_little_is_free(tmp_path):
    seen, said = run(tmp_path, 5000, 2048, 2047, 12, 2048, 9000)
    assert seen == [False, False, True, True, False, False]
    assert len(said) == 2 and said[0].startswith("Only 2047 MiB are free") and said[1].startswith("2048 MiB are free")
