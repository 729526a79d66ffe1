#!/usr/bin/env python3
# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Break a lab host in act mode and watch the guard mend it: fault, seconds to healed, actions, requests lost.

    python tests/guard_lab.py CONTAINER [FAULT …]

CONTAINER is a host of the lab that serves MODEL by the stand-in under ollama.service, with the guard in act mode
(vram_guard_mode=act). A chat runs through the whole time, one request after the other; each that ends without an
answer is counted. Prints one Markdown row per fault. Every fault is undone again.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import time

MODEL = "qwen3:14b"
FAULTS_FILE = "/var/lib/ollama/lab-faults.json"
PATIENCE_S = 420


def sh(host, script, check=True, timeout=200):
    """Output of a shell script on the host."""
    done = subprocess.run(["docker", "exec", "-i", host, "bash", "-c", script], capture_output=True, text=True, timeout=timeout, check=False)
    if check and done.returncode:
        raise RuntimeError(f"{script}: {done.returncode} {done.stdout} {done.stderr}")
    return done.stdout


ASK = """python3 - <<'E'
import json, sys, urllib.request
request = urllib.request.Request("http://127.0.0.1:{port}{path}", data={body!r}.encode() or None)
try:
    print(urllib.request.urlopen(request, timeout={timeout}).read().decode())
except Exception as error:
    print(json.dumps({{"error": str(error)}}))
E"""


def api(host, path, body=None, port=11434, timeout=60):
    text = "" if body is None else json.dumps(body)
    answer = sh(host, ASK.format(port=port, path=path, body=text, timeout=timeout), timeout=timeout + 30)
    return json.loads(answer.strip().splitlines()[-1])


def generate(host, prompt, **more):
    return api(host, "/api/generate", {"model": MODEL, "prompt": prompt, "stream": False, **more})


def faults(host, **parts):
    sh(host, f"echo {shlex.quote(json.dumps(parts))} > {FAULTS_FILE}; chown ollama: {FAULTS_FILE}")


def card(host, *words):
    sh(host, "python3 /usr/local/lib/nvml-sim/lab_card.py " + " ".join(shlex.quote(word) for word in words))


def used_mib(host):
    return int(sh(host, "sed -n 's/^used //p' /run/nvml-sim/state").split()[0])


def records(host, since):
    """What the guard wrote to the journal since then."""
    lines = sh(host, f"journalctl -u vram-guard -o cat --since=@{since} | grep '^{{' || true").splitlines()
    return [json.loads(line) for line in lines]


def done_since(host, since):
    """[(action, rule)] of real actions, and the words of the privileged part."""
    acted = [(one["action"], one["rule"]) for one in records(host, since) if one.get("done")]
    lines = sh(host, f"journalctl -u vram-guard-act -o cat --since=@{since} | grep '^{{' || true").splitlines()
    return acted, [json.loads(line)["done"] for line in lines]


class Chat(threading.Thread):
    """One request after the other, counted."""

    def __init__(self, host):
        super().__init__(daemon=True)
        self.host, self.good, self.lost, self.over = host, 0, [], threading.Event()

    def run(self):
        while not self.over.is_set():
            answer = generate(self.host, "hello", options={"num_predict": 16})
            if answer.get("done"):
                self.good += 1
            else:
                self.lost.append(answer.get("error", "no answer"))
            self.over.wait(4)


def until(condition, what):
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > PATIENCE_S:
            raise RuntimeError(f"waited {PATIENCE_S} s in vain for {what}")
        time.sleep(1)
    return time.monotonic() - began


def pids(host, name):
    paths = sh(host, f"grep -lx {name} /proc/[0-9]*/comm 2>/dev/null || true").split()
    return sorted(int(path.split("/")[2]) for path in paths)


def leak(host):
    """the runner takes 1,500 MiB more with a request, once"""
    generate(host, "hello", options={"num_predict": 1})
    time.sleep(40)  # a rest, so that the guard learns the baseline
    before = used_mib(host)
    faults(host, leak_mib_per_request=1500)
    generate(host, "grow", options={"num_predict": 1})
    faults(host)
    until(lambda: used_mib(host) > before + 1400, "the leak to show")
    return until(lambda: used_mib(host) < before + 100, "the leak to go")


def trapped(host):
    """the server holds 9,000 MiB on after an unload"""
    faults(host, trapped_mib_after_unload=9000)
    generate(host, "", keep_alive=0)
    faults(host)
    until(lambda: used_mib(host) > 8900 and not api(host, "/api/ps")["models"], "trapped memory")
    return until(lambda: used_mib(host) < 100, "trapped memory to go")


def orphan(host):
    """a second server is killed, its runner stays"""
    environment = sh(host, "systemctl show ollama -p Environment --value").strip()
    start = sh(host, "systemctl show ollama -p ExecStart --value").split("argv[]=", 1)[1].split(" ;", 1)[0]
    flags = " ".join(f"-p Environment={word}" for word in environment.split())
    unit = f"lab-second-{int(time.time())}"
    flags += " -p User=ollama -p KillMode=process -p Environment=OLLAMA_HOST=127.0.0.1:11555"
    sh(host, f"systemd-run --unit={unit} {flags} {start}")
    until(lambda: "version" in api(host, "/api/version", port=11555), "the second server")
    mine = set(pids(host, "llama-server"))
    answer = api(host, "/api/generate", {"model": MODEL, "options": {"num_ctx": 4096}, "stream": False}, port=11555)
    strays = set(pids(host, "llama-server")) - mine
    if len(strays) != 1:
        raise RuntimeError(f"the second server has runners {strays}; it said {answer}")
    stray = strays.pop()
    sh(host, f"systemctl kill --kill-whom=main -s KILL {unit}")
    seconds = until(lambda: stray not in pids(host, "llama-server"), "the orphan to end")
    if mine - set(pids(host, "llama-server")):
        raise RuntimeError("another runner ended, too")
    return seconds


def hang(host):
    """the runner is stopped (SIGSTOP)"""
    generate(host, "", options={"num_predict": 1})
    victim = pids(host, "llama-server")[0]
    sh(host, f"kill -STOP {victim}")
    return until(lambda: victim not in pids(host, "llama-server"), "the stopped runner to go")


def mismatch(host):
    """NVML and driver disagree for three minutes; nothing may be touched"""
    server = pids(host, "llama-server"), sh(host, "systemctl show ollama -p MainPID")
    card(host, "set", "init_error=18")
    time.sleep(180)
    card(host, "clear")
    if server != (pids(host, "llama-server"), sh(host, "systemctl show ollama -p MainPID")):
        raise RuntimeError("something was restarted")
    return 0.0


def hopeless(host):
    """memory that comes back with every restart: a helper of the unit holds it"""
    program = "/usr/bin/python3 /usr/local/lib/nvml-sim/lab_card.py hold 9000"
    drop = "/etc/systemd/system/ollama.service.d"
    sh(host, f"mkdir -p {drop}; printf '[Service]\\nExecStartPost=/bin/sh -c \"{program} &\"\\n' > {drop}/lab.conf")
    sh(host, "systemctl daemon-reload; systemctl restart ollama")
    began = int(time.time())
    try:
        seconds = until(lambda: "fence" in [one["action"] for one in records(host, began)], "a fence")
    finally:
        sh(host, f"rm -r {drop}; systemctl daemon-reload; systemctl restart ollama; vram-guard unfence")
    return seconds


def healthy(host):
    """nothing: a planned model with two slots and f16 KV fills the card; 120 ticks"""
    drop = "/etc/systemd/system/ollama.service.d"
    full = "Environment=OLLAMA_NUM_PARALLEL=2 OLLAMA_KV_CACHE_TYPE=f16"
    sh(host, f"mkdir -p {drop}; printf '[Service]\\n{full}\\n' > {drop}/lab.conf")
    sh(host, "systemctl daemon-reload; systemctl restart ollama; sleep 2")
    began = int(time.time())
    try:
        generate(host, "")
        plan = {"models": [{"name": MODEL, "total_mib": used_mib(host)}]}
        old = sh(host, "cat /etc/gpufleet/plan.json")
        sh(host, f"echo {shlex.quote(json.dumps(plan))} > /etc/gpufleet/plan.json")
        share = used_mib(host) / 24210
        sh(host, "for i in $(seq 120); do systemctl start vram-guard; done", timeout=300)
        sh(host, f"echo {shlex.quote(old)} > /etc/gpufleet/plan.json")
    finally:
        sh(host, f"rm -r {drop}; systemctl daemon-reload; systemctl restart ollama; sleep 2")
    if any(one["action"] != "none" for one in records(host, began)):
        raise RuntimeError(f"not quiet: {records(host, began)}")
    print(f"(the card was {share:.0%} full)", file=sys.stderr)
    return 0.0


FAULTS = {one.__name__: one for one in (leak, trapped, orphan, hang, mismatch, hopeless, healthy)}


def main(argv):
    host, names = argv[0], argv[1:] or list(FAULTS)
    print("| fault | seconds to healed | actions | requests: answered, lost |")
    print("|---|---|---|---|")
    for name in names:
        fault = FAULTS[name]
        faults(host)
        generate(host, "")
        since = int(time.time())
        # The faults that need a resting or absent model are tried without the chat; the others under it.
        chat = Chat(host) if name in ("orphan", "mismatch", "hang") else None
        if chat:
            chat.start()
        seconds = fault(host)
        if chat:
            chat.over.set()
            chat.join(90)
        time.sleep(2)
        acted, words = done_since(host, since)
        shown = ", ".join(f"{action} ({rule})" for action, rule in acted) or "none"
        if name not in ("mismatch", "healthy", "hopeless"):
            answer = generate(host, "again", options={"num_predict": 4})
            if not answer.get("done"):
                raise RuntimeError(f"the model does not answer afterwards: {answer}")
        lost = f"{chat.good}, {len(chat.lost)}" if chat else "no chat"
        print(f"| {name}: {fault.__doc__} | {seconds:.0f} | {shown}; {'; '.join(words)} | {lost} |", flush=True)
        time.sleep(35)  # until the last action has settled


if __name__ == "__main__":
    main(sys.argv[1:])
