# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Make `import ansible_collections.gpufleet.llm…` work for a plain pytest in the checkout."""

from __future__ import annotations

import importlib.util
import pathlib
import sys

import pytest

try:
    from hypothesis import settings
except ImportError:  # the tests that need it say so
    pass
else:
    # A deadline in wall-clock time fails where the machine is busy, not where the code is slow.
    settings.register_profile("house", deadline=None)
    settings.load_profile("house")

COLLECTIONS = pathlib.Path(__file__).resolve().parents[2] / ".collections"

if COLLECTIONS.is_dir():
    sys.path.insert(0, str(COLLECTIONS))


def pytest_configure(config):
    """Here and not in pyproject.toml: ansible-test brings its own configuration, and knows no mark that is not told."""
    config.addinivalue_line("markers", "slow: seconds long, so not in make test-fast")


@pytest.fixture(scope="session")
def repo():
    """The checkout's folder."""
    return pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def modinfo(repo):
    """The module tests/support/modinfo.py: what kmod's program says, on machines without it."""
    spec = importlib.util.spec_from_file_location("modinfo", repo / "tests/support/modinfo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
