#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Put the lab's large blobs into a models folder as sparse files, so that a pull has only the small ones to fetch.

    place_blob.py MODELS_DIR PLACE_JSON [--wait SECONDS]

PLACE_JSON is what make_mirror.py wrote: [{"digest", "size", "header_file"}]; header_file lies beside it. A blob is its
header followed by a hole. Ollama trusts a blob that is there by its name, so `pull` transfers
manifest, config, template, parameters and licence, and says "pulling <digest>" for the weights as for a download.

The owner is that of MODELS_DIR: the server sets the times of its blobs and must own them. --wait: wait until the folder
exists and no longer belongs to root, for a host on which a role is still to make it. Prints one JSON line; running it
again changes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time


def place(models: str, table: str) -> dict:
    """Return {"placed": [digests], "present": [digests]} after making what is missing."""
    with open(table, encoding="utf-8") as handle:
        entries = json.load(handle)
    owner = os.stat(models)
    blobs = os.path.join(models, "blobs")
    if not os.path.isdir(blobs):
        os.mkdir(blobs, 0o755)
        os.chown(blobs, owner.st_uid, owner.st_gid)
    result: dict = {"placed": [], "present": []}
    for entry in entries:
        target = os.path.join(blobs, entry["digest"].replace(":", "-"))
        if os.path.exists(target) and os.path.getsize(target) == entry["size"]:
            result["present"].append(entry["digest"])
            continue
        with open(os.path.join(os.path.dirname(os.path.abspath(table)), entry["header_file"]), "rb") as header:
            head = header.read()
        half = target + "-placing"
        with open(half, "wb") as out:
            out.write(head)
            out.truncate(entry["size"])
            os.fchmod(out.fileno(), 0o644)
            os.fchown(out.fileno(), owner.st_uid, owner.st_gid)
        os.replace(half, target)
        result["placed"].append(entry["digest"])
    return result


def ready(models: str) -> bool:
    """Return whether the folder is there and is the server's own."""
    return os.path.isdir(models) and os.stat(models).st_uid != 0


def main(argv: list | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models_dir")
    parser.add_argument("place_json")
    parser.add_argument("--wait", type=float, default=0, metavar="SECONDS")
    args = parser.parse_args(argv)
    deadline = time.monotonic() + args.wait
    while args.wait and not ready(args.models_dir):
        if time.monotonic() > deadline:
            sys.stderr.write(f"place_blob: {args.models_dir} did not come, or stayed root's, within {args.wait:g} s\n")
            return 1
        time.sleep(0.1)
    try:
        print(json.dumps(place(args.models_dir, args.place_json)))
    except (OSError, ValueError, KeyError) as error:
        sys.stderr.write(f"place_blob: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
