# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""Settings of the role cuda that no host could meet. What a host or a source cannot meet: refusals.py."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

BOOLEANS = ("true", "false", "yes", "no")


def _one_of(*names: str) -> Callable[[Any], bool]:
    return lambda value: value in names


def _matches(pattern: str, empty: bool = False) -> Callable[[Any], bool]:
    return lambda value: (empty and value == "") or re.fullmatch(pattern, str(value)) is not None


def _fingerprints(value: Any) -> bool:
    return bool(value) and all(re.fullmatch(r"[0-9A-Fa-f]{40}", re.sub(r"\s", "", str(one))) for one in value)


def _reboot(value: Any) -> bool:
    return value is None or str(value).lower() in BOOLEANS


# Setting, what tells a valid one, and what is wanted.
RULES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    (
        "cuda_driver_source",
        _one_of("none", "nvidia_repo", "distro"),
        "one source: none, nvidia_repo or distro. Two sources of one driver break each other",
    ),
    ("cuda_driver_branch", _matches(r"[0-9]{3}"), "a branch such as 580"),
    ("cuda_driver_version", _matches(r"[0-9]{3}\.[0-9]+(\.[0-9]+)?", empty=True), "one such as 580.126.09, or nothing"),
    ("cuda_driver_flavour", _one_of("open", "proprietary"), "open or proprietary"),
    ("cuda_toolkit", _matches(r"[0-9]+-[0-9]+", empty=True), "a release as packages name it, such as 13-0, or nothing"),
    (
        "cuda_repo_url",
        _matches(r"https?://[A-Za-z0-9._~:/%+-]+"),
        "the address of NVIDIA's repositories or of a mirror, such as https://mirror.example.org/cuda",
    ),
    ("cuda_repo_key_fingerprints", _fingerprints, "fingerprints of 40 hexadecimal digits, at least one"),
    (
        "cuda_repo_key_checksum",
        _matches(r"[0-9A-Fa-f]{64}", empty=True),
        "a SHA-256 of 64 hexadecimal digits, or nothing",
    ),
    ("cuda_power_limit_w", _matches(r"[0-9]+"), "a whole number of watts, or 0 for the card's own limit"),
    ("cuda_reboot", _reboot, "null (report and stop), true or false"),
    (
        "cuda_nvidia_ml_py_version",
        _matches(r"[0-9]+\.[0-9]+(\.[0-9]+)*"),
        "one version such as 13.615.71. Set one, so that every host of a fleet reads by the same rules",
    ),
    (
        "cuda_venv",
        _matches(r"(/[A-Za-z0-9_][A-Za-z0-9._-]*){2,}"),
        "an absolute path of at least two folders, as the role makes and remakes what is there. "
        "The default is /opt/gpufleet/venv",
    ),
)


def problems(settings: dict[str, Any]) -> list[str]:
    """A sentence for each setting that is not one; *settings* are the role's variables by name, all of RULES."""
    found = [
        f"{name} is '{settings[name]}'; wanted is {wanted}."
        for name, valid, wanted in RULES
        if not valid(settings[name])
    ]
    return [*found, *_plain_mirror(settings), *_expected_gpus(settings["cuda_expected_gpus"])]


def _plain_mirror(settings: dict[str, Any]) -> Iterator[str]:
    if str(settings["cuda_repo_url"]).startswith("http:") and not settings["cuda_repo_key_checksum"]:
        yield (
            f"cuda_repo_url is '{settings['cuda_repo_url']}', an address without TLS; wanted is https, or the SHA-256 "
            f"of its cuda-archive-keyring.gpg in cuda_repo_key_checksum."
        )


def _expected_gpus(gpus: Iterable[dict[str, Any]]) -> Iterator[str]:
    if any(int(entry.get("count", 1)) < 1 for entry in gpus):
        yield (
            "cuda_expected_gpus has a count below 1; wanted is 1 or more. "
            "Leave out GPUs that the host does not have, and set ollama_gpu_required to false for a host without any."
        )
