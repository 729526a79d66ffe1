# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stands in for the pip bootstrap script that ansible-test downloads: Python's own ensurepip does the same offline.

ansible-test runs it inside an empty virtual environment, with the packages wanted as arguments.
"""

from __future__ import annotations

import ensurepip
import os
import subprocess
import sys

if __name__ == "__main__":
    environment = {key: value for key, value in os.environ.items() if key not in ("GET_PIP", "PYTHONPATH")}
    ensurepip.bootstrap(upgrade=True, default_pip=True)
    packages = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
    raise SystemExit(subprocess.call([sys.executable, "-m", "pip", "install", *packages], env=environment))
