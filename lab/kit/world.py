# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The machine's own world: where its packages come from and whom it trusts.

A host of the lab gets the same: APT sources, certificate authorities, pip's configuration, proxies. No host name of a
mirror is written anywhere in the lab.
"""

from __future__ import annotations

import ast
import glob
import os
import re
import sys
from urllib.parse import urlsplit

from .shell import LabError, run, say

PLATFORMS = {
    "debian12": {"distribution": "debian", "version": "12", "suite": "bookworm", "python": "3.11"},
    "debian13": {"distribution": "debian", "version": "13", "suite": "trixie", "python": "3.13"},
    "ubuntu2204": {"distribution": "ubuntu", "version": "22.04", "suite": "jammy", "python": "3.10"},
    "ubuntu2404": {"distribution": "ubuntu", "version": "24.04", "suite": "noble", "python": "3.12"},
    "ubuntu2604": {"distribution": "ubuntu", "version": "26.04", "suite": "resolute", "python": "3.14"},
}
"""What a host of the lab can be. python: /usr/bin/python3 of that release."""

DISTRIBUTIONS = {
    "debian": {
        "origin": "Debian",
        "components": "main",
        "mirror": "LAB_DEBIAN_MIRROR",
        "others": ("bullseye", "forky", "sid", "stable", "oldstable", "testing", "unstable"),
    },
    # Ubuntu keeps python3-venv, which a role wants, in universe.
    "ubuntu": {"origin": "Ubuntu", "components": "main universe", "mirror": "LAB_UBUNTU_MIRROR", "others": ("focal", "questing", "devel")},
}
"""others: further suites of a machine whose addresses have those of the lab's platforms too."""
TARGETS = "$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(ORIGIN)|$(LABEL)"


def _targets():
    """Return [(uri, release, component, origin, label)] of the machine's binary package sources, as apt itself reads them."""
    said = run(["apt-get", "indextargets", "--format", TARGETS, "Created-By: Packages"], check=False)
    rows = [tuple(line.split("|")) for line in said.stdout.splitlines()] if said.returncode == 0 else []
    return [row for row in rows if len(row) == 5]


def own_sources(targets, distribution, suite):
    """Return [(uri, release)] of a distribution's suite, derived from the machine's own rows; main archive first.

    A machine on bookworm that asks for trixie gets trixie from the same addresses. A row whose address only this machine can
    follow (a list of mirrors on its disk, a CD) is no source for a container.
    """
    known = DISTRIBUTIONS[distribution]
    suites = {platform["suite"] for platform in PLATFORMS.values() if platform["distribution"] == distribution} | set(known["others"])
    found = {}
    for uri, release, component, origin, label in targets:
        base, dash, kind = release.replace("/", "-").partition("-")
        kind = {"": "", "updates": "updates", "security": "security"}.get(kind if dash else "")
        unknown = origin.startswith("$(") or not origin
        if component != "main" or kind is None or base not in suites or not (unknown or origin == known["origin"]):
            continue
        if urlsplit(uri).scheme not in ("http", "https"):
            continue
        if kind == "" and not unknown and label == "Debian-Security":
            kind = "security"
        found.setdefault(kind, uri)
    if "" not in found:
        return []
    return [(found[kind], suite + (f"-{kind}" if kind else "")) for kind in ("", "updates", "security") if kind in found]


def apt_sources(name):
    """Return [(uri, release)] for a platform's image; [] where this machine has no source of its distribution."""
    platform = PLATFORMS[name]
    given = os.environ.get(DISTRIBUTIONS[platform["distribution"]]["mirror"])
    if given:
        return [(given, platform["suite"])]
    targets = _targets()
    if targets and all(row[3].startswith("$(") or not row[3] for row in targets):
        say("APT has no package lists yet; its sources are read without them")
    return own_sources(targets, platform["distribution"], platform["suite"])


def platform_of(os_release):
    """Return the platform's name of an os-release text, None if the lab has no such platform."""
    facts = {}
    for line in os_release.splitlines():
        key, equals, value = line.partition("=")
        if equals:
            facts[key.strip()] = value.strip().strip("\"'")
    for name, platform in PLATFORMS.items():
        if (facts.get("ID"), facts.get("VERSION_ID")) == (platform["distribution"], platform["version"]):
            return name
    return None


def way_to_base(sources):
    """Return how a bare image is made, "debootstrap" or "registry".

    LAB_BASE says it; without it debootstrap serves where there is a source to take the distribution from.
    """
    given = os.environ.get("LAB_BASE") or "auto"
    if given not in ("auto", "debootstrap", "registry"):
        raise LabError(f"LAB_BASE is {given!r}; wanted is debootstrap, registry or auto (debootstrap where this machine has a source of the distribution).")
    if given == "auto":
        return "debootstrap" if sources else "registry"
    return given


def base_image(name):
    """Return the name under which the engine finds the official image of a platform; LAB_BASE_PREFIX goes in front."""
    platform = PLATFORMS[name]
    return f"{os.environ.get('LAB_BASE_PREFIX', '')}{platform['distribution']}:{platform['version']}"


def apt_configuration():
    """Return the lines of the machine's APT configuration that say how to reach a source."""
    wanted = re.compile(r"^Acquire::((http|https|ftp)(::|\s)|Retries|ForceIPv|Check-Valid-Until|Max-ValidTime)")
    lines = []
    for line in run(["apt-config", "dump"], check=False).stdout.splitlines():
        if wanted.match(line) and not line.rstrip().endswith('"";') and "Proxy-Auto-Detect" not in line:
            lines.append(line)
    for line in lines:
        if re.search(r"//(localhost|127\.)", line):
            raise LabError(
                f"APT of this machine uses a proxy on its own loopback ({line.strip()}), which containers "
                "cannot reach. Let it listen on an address that they can."
            )
    return lines


def split_pem(text):
    """Return the certificates of a PEM bundle, one string each."""
    return re.findall(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", text, re.S)


def authorities(bundles):
    """Return the PEM texts of the certificate authorities that this machine's administrator added.

    bundles: files named by pip or the environment; the distribution's own bundle is not carried, the image has its own.
    """
    files = sorted(glob.glob("/usr/local/share/ca-certificates/**/*.crt", recursive=True))
    for bundle in bundles:
        if bundle and os.path.isfile(bundle) and os.path.realpath(bundle) != "/etc/ssl/certs/ca-certificates.crt" and "certifi" not in bundle:
            files.append(bundle)
    found = {}
    for path in files:
        with open(path, encoding="utf-8", errors="replace") as handle:
            for pem in split_pem(handle.read()):
                found.setdefault(pem.strip(), None)
    return list(found)


def effective_pip(listing):
    """Return {option: value} of `pip config list`, later kinds over earlier ones: global, site, user, install, environment."""
    layers = {}
    for line in listing.splitlines():
        name, equals, value = line.partition("=")
        if not equals:
            continue
        section, _dot, option = name.rpartition(".")
        try:
            text = str(ast.literal_eval(value))
        except (ValueError, SyntaxError):
            text = value
        layers.setdefault(section, {})[option] = text
    merged = {}
    for section in ("global", "install", ":env:"):
        merged.update(layers.get(section, {}))
    return merged


def pip_configuration(options):
    """Return pip.conf's text for a host: the controller's way to the registry, without what exists only on the controller."""
    kept = {"cert": "/etc/ssl/certs/ca-certificates.crt"}
    for option in (
        "index-url",
        "extra-index-url",
        "proxy",
        "trusted-host",
        "timeout",
        "default-timeout",
        "retries",
        "no-index",
    ):
        if options.get(option):
            kept[{"default-timeout": "timeout"}.get(option, option)] = options[option]
    links = [link for link in options.get("find-links", "").split() if urlsplit(link).scheme in ("http", "https")]
    if links:
        kept["find-links"] = " ".join(links)
    lines = []
    for option in sorted(kept):
        words = kept[option].split() if option in ("extra-index-url", "trusted-host", "find-links") else [kept[option]]
        lines.append(f"{option} = " + "\n    ".join(words))
    return "[global]\n" + "\n".join(lines) + "\n"


def pip_options():
    """Return the controller's effective pip options; {} where it has no pip."""
    said = run([sys.executable, "-m", "pip", "config", "list"], check=False)
    if said.returncode != 0:
        said = run(["pip3", "config", "list"], check=False) if _has("pip3") else said
    if said.returncode == 0:
        return effective_pip(said.stdout)
    return {name[4:].lower().replace("_", "-"): value for name, value in os.environ.items() if name.startswith("PIP_")}


def _has(command):
    return any(os.access(os.path.join(folder, command), os.X_OK) for folder in os.environ.get("PATH", "").split(":"))


def proxies(inside):
    """Return the proxy variables for a container. inside: the names that it must reach without a proxy."""
    found = {}
    for name in ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy"):
        value = os.environ.get(name) or os.environ.get(name.upper())
        if value:
            if re.search(r"//([^/@]*@)?(localhost|127\.)", value):
                raise LabError(
                    f"{name} of this machine is a proxy on its own loopback ({urlsplit(value).hostname}), which "
                    "containers cannot reach. Let it listen on an address that they can."
                )
            found[name] = found[name.upper()] = value
    if found:
        known = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        names = [name for name in known.split(",") if name] + ["localhost", "127.0.0.1", *inside]
        found["no_proxy"] = found["NO_PROXY"] = ",".join(dict.fromkeys(names))
    return found
