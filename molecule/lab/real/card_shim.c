/* Copyright (c) 2026, gpufleet.llm maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Preloaded into ggml-rpc-server, it turns that program into a graphics card:
 *
 * - The size. ggml's CPU device reports sysconf(_SC_PHYS_PAGES) as its free
 *   and total memory, at every question. Here the answer is the card's size,
 *   less what its clients hold, less what a second tenant holds: what a driver
 *   would call free. LAB_CARD_FILE names a file with "SIZE_MIB TAKEN_MIB" that
 *   is read at every question, so a card shrinks or fills while it runs;
 *   without it LAB_CARD_MIB counts, or an RTX 4090's 24,564 MiB less the
 *   driver's 354.
 * - Its end. What a client allocates is counted, and what does not fit is
 *   refused, as cudaMalloc refuses it.
 * - Several clients. ggml-rpc-server serves one connection after the other; a
 *   card serves many processes. Each connection gets a process of its own, so
 *   a question about free memory is answered while a model runs, and the
 *   memory of each client is the RSS of one process.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLIENTS 64
#define BUFFERS 256
#define MIB 1048576L

/* Shared by the listening process and its children, one a client. */
struct card {
    pid_t client[CLIENTS];
    long held[CLIENTS]; /* bytes */
};

static struct card *card;
static int serving = -1; /* the slot of the client that this process serves */
static struct { void *start; long size; } buffer[BUFFERS];

static long real_sysconf(int name)
{
    static long (*real)(int);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sysconf");
    return real(name);
}

/* Whether a process lives and is no zombie: a zombie has no memory left. */
static int lives(pid_t pid)
{
    char path[64];
    long size = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)pid);
    FILE *file = fopen(path, "re");
    if (!file)
        return 0;
    if (fscanf(file, "%ld", &size) != 1)
        size = 0;
    fclose(file);
    return size > 0;
}

static long held_mib(void)
{
    long bytes = 0;
    for (int i = 0; card && i < CLIENTS; i++)
        if (card->held[i] && lives(card->client[i]))
            bytes += card->held[i];
    return bytes / MIB;
}

static long free_mib(void)
{
    const char *text = getenv("LAB_CARD_MIB"), *path = getenv("LAB_CARD_FILE");
    long size = text ? strtol(text, NULL, 10) : 0, taken = 0, left;
    FILE *file = path ? fopen(path, "re") : NULL;
    if (file) {
        if (fscanf(file, "%ld %ld", &size, &taken) < 1)
            size = 0;
        fclose(file);
    }
    left = (size > 0 ? size : 24210) - taken - held_mib();
    return left > 0 ? left : 1;
}

long sysconf(int name)
{
    if (name == _SC_PHYS_PAGES || name == _SC_AVPHYS_PAGES)
        return free_mib() * (MIB / real_sysconf(_SC_PAGESIZE));
    return real_sysconf(name);
}

/* ggml's buffers come from here; small things are no buffers. */
int posix_memalign(void **start, size_t alignment, size_t size)
{
    static int (*real)(void **, size_t, size_t);
    int slot = 0, failed;
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "posix_memalign");
    if (serving < 0 || size < MIB)
        return real(start, alignment, size);
    if ((long)(size / MIB) > free_mib())
        return ENOMEM;
    failed = real(start, alignment, size);
    while (slot < BUFFERS && buffer[slot].start)
        slot++;
    if (!failed && slot < BUFFERS) {
        buffer[slot].start = *start;
        buffer[slot].size = (long)size;
        __atomic_add_fetch(&card->held[serving], (long)size, __ATOMIC_RELAXED);
    }
    return failed;
}

void free(void *start)
{
    static void (*real)(void *);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "free");
    for (int i = 0; serving >= 0 && start && i < BUFFERS; i++)
        if (buffer[i].start == start) {
            __atomic_sub_fetch(&card->held[serving], buffer[i].size, __ATOMIC_RELAXED);
            buffer[i].start = NULL;
            break;
        }
    real(start);
}

static void reap(void)
{
    pid_t gone;
    while ((gone = waitpid(-1, NULL, WNOHANG)) > 0)
        for (int i = 0; i < CLIENTS; i++)
            if (card->client[i] == gone)
                card->held[i] = card->client[i] = 0;
}

int accept(int listener, struct sockaddr *address, socklen_t *length)
{
    static int (*real)(int, struct sockaddr *, socklen_t *);
    if (serving >= 0)
        _exit(0); /* this process's client has gone, and its memory with it */
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "accept");
    if (!card) {
        card = mmap(NULL, sizeof *card, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        if (card == MAP_FAILED)
            abort();
    }
    for (;;) {
        int slot = 0, client = real(listener, address, length);
        pid_t parent = getpid(), child;
        if (client < 0) {
            if (errno == EINTR)
                continue;
            return client;
        }
        reap();
        while (slot < CLIENTS && card->client[slot])
            slot++;
        fflush(NULL); /* or the child would print its parent's lines again */
        child = slot < CLIENTS ? fork() : -1;
        if (child == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent)
                _exit(1);
            close(listener);
            serving = slot;
            return client;
        }
        if (child > 0)
            card->client[slot] = child;
        close(client);
    }
}
