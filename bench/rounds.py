# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""`make bench-rounds`: ten rounds of 500-token thoughts through Open WebUI, and what of them reaches Ollama, as docs/measurements/open_webui_rounds.*.

Without arguments it makes the scenario open_webui's host, measures there and writes; with the file of an earlier measurement it
only writes.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
WAYS = {
    "ours": ("this collection's settings", "#1b7837"),
    "none": ("Open WebUI as it is installed", "#b2182b"),
    "guides": ("the same, num_ctx in its default parameters", "#e08214"),
}


def measure(results):
    """Converge the scenario's host and let rounds.yml measure on it; the lab is taken away afterwards."""
    env = {**os.environ, "ROUNDS_RESULTS": results, "PATH": f"{ROOT / '.venv/bin'}:{os.environ['PATH']}"}
    scenario = ROOT / "molecule/open_webui"
    try:
        for words in (["create"], ["side-effect", str(scenario / "record.yml")], ["converge"], ["side-effect", str(scenario / "rounds.yml")]):
            subprocess.run(["molecule", words[0], "-s", "open_webui", *words[1:]], cwd=ROOT, env=env, check=True)
    finally:
        subprocess.run(["molecule", "destroy", "-s", "open_webui"], cwd=ROOT, env=env, check=True)


def total_tokens(one):
    """Prompt tokens of a round: the question's own request and the hidden ones."""
    return one["prompt_tokens"] + one["hidden_tokens"]


def table(found):
    """The measurement as Markdown."""
    server = "the real server" if found["server"] == "real" else "the lab's stand-in, where a word is a token"
    lines = [
        f"Measured by `make bench-rounds` on {server}; each answer begins with 500 tokens of thought.",
        "Each cell: messages in the request / prompt tokens as the server counted them, tools not among them.",
        "A hidden request counts where it comes before the model has been quiet for six seconds; what comes after the last round is not counted.",
        "",
    ]
    ways = [way for way in WAYS if way in found]
    lines.append("| round | " + " | ".join(WAYS[way][0] for way in ways) + " |")
    lines.append("|---|" + "---|" * len(ways))
    for number in range(len(found["ours"]["rounds"])):
        cells = [found[way]["rounds"][number] for way in ways]
        lines.append(f"| {number + 1} | " + " | ".join(f"{one['messages']} / {one['prompt_tokens']:,}" for one in cells) + " |")
    every = {way: found[way]["rounds"] for way in ways}
    sums = [
        ("hidden requests", lambda way: sum(one["hidden"] for one in every[way])),
        ("prompt tokens in all, hidden ones too", lambda way: sum(total_tokens(one) for one in every[way])),
        ("earlier thoughts sent again, bytes", lambda way: sum(one["thought_bytes"] for one in every[way])),
        ("tools, bytes of JSON a request", lambda way: max(one["tools_bytes"] for one in every[way])),
        ("runners that Ollama started", lambda way: found[way]["runners_seen"]),
    ]
    lines += [f"| {name} | " + " | ".join(f"{value(way):,}" for way in ways) + " |" for name, value in sums]
    return "\n".join(lines) + "\n"


def plot(found, width=720, height=360):
    """Prompt tokens of each round as SVG."""
    left, right, top, bottom = 64, 16, 20, 44
    ways = [way for way in WAYS if way in found]
    series = {way: [total_tokens(one) for one in found[way]["rounds"]] for way in ways}
    rounds, highest = len(series["ours"]), max(max(values) for values in series.values())
    step = 10 ** (len(str(highest)) - 1)
    ceiling = -(-highest // step) * step

    def at(number, value):
        x = left + (width - left - right) * number / max(rounds - 1, 1)
        return x, height - bottom - (height - top - bottom) * value / ceiling

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for line in range(0, ceiling + 1, max(ceiling // 5, 1)):
        _x, y = at(0, line)
        parts.append(f'<line x1="{left}" x2="{width - right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{line:,}</text>')
    for number in range(rounds):
        parts.append(f'<text x="{at(number, 0)[0]:.1f}" y="{height - bottom + 18}" text-anchor="middle">{number + 1}</text>')
    parts.append(
        f'<text x="{(width + left) / 2:.0f}" y="{height - 8}" text-anchor="middle">round; prompt tokens that reach Ollama, hidden requests included</text>'
    )
    for place, way in enumerate(ways):
        name, colour = WAYS[way]
        points = " ".join("{:.1f},{:.1f}".format(*at(number, value)) for number, value in enumerate(series[way]))
        dashes = ' stroke-dasharray="6 4"' if way == "guides" else ""
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dashes}/>')
        parts.append(f'<text x="{left + 10}" y="{top + 12 + 16 * place}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def main(argv):
    with tempfile.TemporaryDirectory() as folder:
        path = argv[0] if argv else os.path.join(folder, "rounds.json")
        if not argv:
            measure(path)
        found = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    docs = ROOT / "docs" / "measurements"
    page = f"# What ten rounds send to the model\n\n{table(found)}\n![The same as a plot](open_webui_rounds.svg)\n"
    (docs / "open_webui_rounds.md").write_text(page, encoding="utf-8")
    (docs / "open_webui_rounds.svg").write_text(plot(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main(sys.argv[1:])
