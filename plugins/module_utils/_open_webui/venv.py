# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""One virtual environment per Open WebUI version, complete or not there.

A virtual environment cannot be moved, so it is built at its final path; what makes it
count is the stamp, written last. A tree without a stamp is what an interrupted run left:
it is removed and built again.

pip brings uv (honouring the host's pip configuration), uv brings the rest: measured on 2
cores with Debian 12, 48 s of pip become 4 s.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import time

STAMP = ".gpufleet.json"
PYTHON_MIN, PYTHON_BELOW = (3, 11), (3, 13)  # Requires-Python of open-webui 0.12.4: >=3.11,<3.13.0a1
LOCK_WAIT_S = 900


class VenvError(Exception):
    """The environment could not be built; the text is fit for an operator."""


def wanted_stamp(version, package_set, requirements):
    """What the stamp of a complete environment says; ``requirements`` is the text of the pinned list or None."""
    import hashlib

    digest = hashlib.sha256(requirements.encode("utf-8")).hexdigest() if requirements else None
    return {"version": version, "package_set": package_set, "requirements_sha256": digest}


def observe(path):
    """{stamp, partial}: the stamp's dict or None, and whether a tree without a stamp lies there."""
    try:
        with open(os.path.join(path, STAMP), encoding="utf-8") as handle:
            stamp = json.load(handle)
    except (OSError, ValueError):
        stamp = None
    # A link to an interpreter that a distribution upgrade took away: the tree is there and cannot run.
    runs = os.access(os.path.join(path, "bin", "python"), os.X_OK)
    stamp = stamp if isinstance(stamp, dict) and runs else None
    return {"stamp": stamp, "partial": stamp is None and os.path.lexists(path)}


def difference(observed, wanted):
    """'' when the environment is complete and as wanted, else the reason to build it."""
    if observed["stamp"] is None:
        return "an incomplete tree lies there" if observed["partial"] else "it is not there"
    for key, value in wanted.items():
        if observed["stamp"].get(key) != value:
            return f"its {key} is {observed['stamp'].get(key)}, not {value}"
    return ""


def python_version(python, run=subprocess.run):
    """(major, minor) of an interpreter; VenvError unless Open WebUI runs on it.

    >>> import sys
    >>> python_version(sys.executable, lambda *a, **k: subprocess.CompletedProcess(a, 0, "3 12", ""))
    (3, 12)
    """
    try:
        done = run(
            [python, "-I", "-c", "import sys; print(*sys.version_info[:2])"],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise VenvError(
            f"{python} does not run ({error}); Python 3.11 or 3.12 was wanted. Correct open_webui_python."
        ) from error
    match = re.match(r"(\d+) (\d+)", done.stdout)
    if done.returncode or not match:
        said = done.stderr.strip()[-200:]
        raise VenvError(f"{python} is no Python ({said}); 3.11 or 3.12 was wanted. Correct open_webui_python.")
    version = (int(match.group(1)), int(match.group(2)))
    if not PYTHON_MIN <= version < PYTHON_BELOW:
        raise VenvError(
            f"{python} is Python {version[0]}.{version[1]}; Open WebUI needs 3.11 or 3.12. "
            "Install one and name it in open_webui_python, or set open_webui_enabled=false."
        )
    return version


def has_ensurepip(python, run=subprocess.run):
    """Whether the interpreter can make environments with pip; Debian keeps that in a package of its own."""
    try:
        done = run([python, "-I", "-c", "import ensurepip"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def uv_environment(pip_config):
    """Environment for uv that says what the host's pip configuration says; ``pip_config``: text of `pip config list`.

    Later sections win as they do in pip: file < [install] < environment.

    >>> uv_environment("global.index-url='https://mirror.example/simple'")["UV_DEFAULT_INDEX"]
    'https://mirror.example/simple'
    """
    found = {}
    for section in ("global", "install", ":env:"):
        for line in pip_config.splitlines():
            match = re.match(r"^(global|install|:env:)\.([\w-]+)=(.*)$", line.strip())
            if match and match.group(1) == section:
                try:
                    value = ast.literal_eval(match.group(3))
                except (ValueError, SyntaxError):
                    continue
                found[match.group(2).replace("_", "-")] = str(value).split()
    # uv's own store of certificates is replaced by the host's, as pip's is in distributions; the first name is for uv
    # 0.11 and later, the second for earlier ones.
    env = {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1", "UV_NO_PROGRESS": "1", "UV_NO_CONFIG": "1"}
    plain = {
        "index-url": ("UV_DEFAULT_INDEX", " "),
        "extra-index-url": ("UV_INDEX", " "),
        "find-links": ("UV_FIND_LINKS", ","),
        "cert": ("SSL_CERT_FILE", " "),
        "trusted-host": ("UV_INSECURE_HOST", " "),
        "timeout": ("UV_HTTP_TIMEOUT", " "),
        "proxy": ("ALL_PROXY", " "),
    }
    for key, (name, separator) in plain.items():
        if found.get(key):
            env[name] = separator.join(found[key])
    if "UV_INDEX" in env:
        env["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # what pip does with several indexes
    if found.get("no-index", ["0"])[0].lower() in ("1", "true", "yes", "on"):
        env["UV_NO_INDEX"] = "1"
    return env


def explain(output):
    """The lines of pip's or uv's output that say why it failed, joined; at most 600 characters."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    told = [line for line in lines if re.match(r"(ERROR|error|cause|hint|×|╰|├|Caused by)", line)]
    return " ".join(told or lines[-4:])[:600]


def _run(argv, env, what, run=subprocess.run):
    try:
        done = run(
            argv, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    except OSError as error:
        raise VenvError(f"{what} failed: {argv[0]} could not be started ({error}).") from error
    if done.returncode:
        raise VenvError(f"{what} failed with status {done.returncode}: {explain(done.stdout)}")
    return done.stdout


@contextlib.contextmanager
def alone(folder, wait_s=LOCK_WAIT_S, clock=time.monotonic, sleep=time.sleep):
    """Hold the folder against another build: a run that was cut off on the controller may still be at work here."""
    os.makedirs(folder, mode=0o755, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        until = clock() + wait_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                if clock() >= until:
                    raise VenvError(
                        f"Another installation has been at work in {folder} for {wait_s} s; wait until it ends or end "
                        "it."
                    ) from error
                sleep(1)
        yield
    finally:
        os.close(handle)


def build(path, stamp, python, requirements, uv_requirements, index_url=None, installer=None, run=subprocess.run):
    """Build the environment at ``path`` and stamp it; VenvError says which step failed.

    ``requirements`` is the path of a list with hashes that names every package, open-webui
    included, or None: then the wheel's own requirements-slim.txt (set slim) or its metadata
    (set full) decides, and packages that these do not pin are the newest. ``installer`` is the
    interpreter that pip runs with, where ``python`` is one without ensurepip.
    """
    parent = os.path.dirname(path)
    cache, tools = os.path.join(parent, ".cache"), os.path.join(parent, ".uv")
    started = time.monotonic()
    shutil.rmtree(path, ignore_errors=True)
    shutil.rmtree(tools, ignore_errors=True)
    base = {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    if index_url:
        base["PIP_INDEX_URL"] = index_url
    _run([installer or python, "-m", "venv", tools], base, "Making the environment of the installer", run)
    pip = [os.path.join(tools, "bin", "python"), "-m", "pip"]
    _run(
        [*pip, "install", "--quiet", "--no-compile", "--require-hashes", "-r", uv_requirements],
        base,
        "Installing uv",
        run,
    )
    configured = _run([*pip, "config", "list"], base, "Reading pip's configuration", run)
    env = dict(base, UV_CACHE_DIR=cache, **uv_environment(configured))
    uv = os.path.join(tools, "bin", "uv")
    _run([uv, "venv", "--python", python, path], env, "Making the environment", run)
    install = [uv, "pip", "install", "--python", os.path.join(path, "bin", "python")]
    name = f"open-webui=={stamp['version']}"
    if requirements:
        pinned = ["--no-deps", "--require-hashes", "--compile-bytecode", "-r", requirements]
        _run([*install, *pinned], env, f"Installing {name}", run)
    elif stamp["package_set"] == "full":
        _run([*install, "--compile-bytecode", name], env, f"Installing {name}", run)
    else:
        _run([*install, "--no-deps", name], env, f"Installing {name}", run)
        slim = slim_requirements(path)
        _run([*install, "--compile-bytecode", "-r", slim], env, f"Installing what {name} needs", run)
    for folder in (tools, cache):
        shutil.rmtree(folder, ignore_errors=True)
    packages = len([entry for entry in os.listdir(site_packages(path)) if entry.endswith(".dist-info")])
    facts = dict(stamp, packages=packages, seconds=round(time.monotonic() - started, 1))
    write_stamp(path, facts)
    return facts


def site_packages(path):
    """The environment's folder of packages."""
    lib = os.path.join(path, "lib")
    return os.path.join(
        lib, next(name for name in sorted(os.listdir(lib)) if name.startswith("python")), "site-packages"
    )


def slim_requirements(path):
    """Path of the wheel's own list of the slim set; VenvError where the wheel has none (before 0.11.4)."""
    listed = os.path.join(site_packages(path), "requirements-slim.txt")
    if not os.path.isfile(listed):
        raise VenvError(
            "This version's wheel has no requirements-slim.txt; set open_webui_package_set=full or take 0.11.4."
        )
    return listed


def write_stamp(path, stamp):
    """Mark the tree as complete, durably: its files first, then the stamp in one step."""
    os.sync()
    target = os.path.join(path, STAMP)
    with open(target + ".new", "w", encoding="utf-8") as handle:
        json.dump(stamp, handle, indent=2, sort_keys=True)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.chmod(target + ".new", 0o644)
    os.replace(target + ".new", target)
