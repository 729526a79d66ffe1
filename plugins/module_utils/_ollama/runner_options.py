# Copyright (c) 2026, gpufleet.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# Private to the collection gpufleet.llm: no stable interface for others.
"""What of a request makes Ollama load a model again or unload it: the one list of this collection.

Whoever checks or removes such options takes them from here: the Modelfile's parser, Open WebUI's declared models, the
soak test. Two programs that run elsewhere carry a copy, which a test compares: roles/gateway/files/pin.js and
roles/open_webui/files/context_filter.py. The same test compares RUNNER and MEMBERS with the source of RELEASE.
"""

from __future__ import annotations

#: The release that RUNNER and MEMBERS were read in.
RELEASE = "0.32.15"

#: Members of ``options`` (and of a Modelfile, as PARAMETER) that are a runner's identity: the JSON names of the struct
#: Runner in Ollama's api/types.go, which needsReload() in server/sched.go compares as a whole.
RUNNER = ("draft_num_predict", "main_gpu", "num_batch", "num_ctx", "num_gpu", "num_thread", "use_mmap")

#: Members of the request itself, beside ``options``, that server/routes.go hands to the scheduler: keep_alive unloads,
#: shift is a launch argument of the runner.
MEMBERS = ("keep_alive", "shift")

#: Names that earlier releases of Ollama or llama.cpp have in the same place. RELEASE ignores them; another may not.
OTHER = (
    "f16_kv",
    "flash_attention",
    "flash_attn",
    "kv_cache_type",
    "logits_all",
    "low_vram",
    "num_gqa",
    "num_parallel",
    "numa",
    "rope_frequency_base",
    "rope_frequency_scale",
    "use_mlock",
    "vocab_only",
)

#: What is taken out of ``options``.
OPTIONS = tuple(sorted(RUNNER + OTHER))

#: What is taken out where both are one dictionary, as in Open WebUI's parameters.
ALL = tuple(sorted(OPTIONS + MEMBERS))
