# Copyright (c) 2026, gpufleet.llm maintainers
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's stand-in for Ollama: the same command, HTTP API, store and processes, and no inference.

lab/mirror packs this folder as a zipapp, twice into an archive of the shape of an upstream release: as `bin/ollama`
(the server and its client) and as `lib/ollama/llama-server` (the child process that holds a loaded model). Python 3.9,
standard library only: it runs on lab hosts. tests/contract asks it what it asks the real server; what only the real
server is asked is marked there.

    settings    environment, faults, log               card        NVML, and how much of it a model takes
    store       names, manifests and blobs             gguf        headers of weights
    model       what the store says about one          runner      the child process
    registry    pulls                                  scheduler   which models are loaded
    create      a model from a model or a file         inference   answers, nonsense but steady; recorded.json
    api, main   routes; process and command line

Left out: sense, templates, quantizing, adapters, safetensors, embeddings, Go's way to print numbers. Every answer has
the header `X-Lab-Server: standin`.
"""

VERSION = "0.0.0"
"""The version that the archive is packed as; the packed program sets it."""
