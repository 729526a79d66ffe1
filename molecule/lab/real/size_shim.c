/* Copyright (c) 2026, gpufleet.llm maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Preloaded into ggml-rpc-server: the size of its "card" is the physical
 * memory that sysconf tells it, so LAB_CARD_MIB (default: an RTX 4090's
 * 24,564 MiB less the driver's 354) is answered in place of the host's.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>

long sysconf(int name)
{
    static long (*real)(int);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sysconf");
    if (name == _SC_PHYS_PAGES || name == _SC_AVPHYS_PAGES) {
        const char *text = getenv("LAB_CARD_MIB");
        long mib = text ? strtol(text, NULL, 10) : 0;
        return (mib > 0 ? mib : 24210) * (1048576 / real(_SC_PAGESIZE));
    }
    return real(name);
}
