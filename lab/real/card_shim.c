/* Copyright (c) 2026, gpufleet.llm maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * Preloaded into ggml-rpc-server, it turns each device of that program (-d
 * CPU,CPU is two) into a graphics card:
 *
 * - The size. ggml's CPU device reports sysconf(_SC_PHYS_PAGES) as its free
 *   and total memory, at every question. Here the answer is the card's size,
 *   less what its clients hold, less what a second tenant holds: what a driver
 *   would call free. LAB_CARD_DIR names a folder with a file "SIZE_MIB
 *   TAKEN_MIB" for each card, 0, 1 and so on, that is read at every question,
 *   so a card shrinks or fills while it runs; without it LAB_CARD_MIB counts,
 *   or an RTX 4090's 24,564 MiB less the driver's 354.
 * - Its end. What a client allocates is counted, and what does not fit is
 *   refused, as cudaMalloc refuses it.
 * - Which one. All devices are one CPU to ggml, so the card is told by the
 *   backend that ggml's RPC code asks about just before it allocates or
 *   measures: the first backend that was made is card 0.
 * - Several clients. ggml-rpc-server serves one connection after the other; a
 *   card serves many processes. Each connection gets a process of its own, so
 *   a question about free memory is answered while a model runs.
 *
 * LAB_CARD_LEDGER names a file that shows who holds what: struct client, as it
 * stands below, CLIENTS times. lab_card.py shows it as NVML's figures.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define CARDS 8
#define CLIENTS 64
#define BUFFERS 256
#define MIB 1048576L

/* Shared by the listening process and its children, one a client. */
struct client {
    int32_t pid;         /* of the child that serves it, 0: a free entry */
    int32_t port;        /* of its end of the connection */
    int64_t held[CARDS]; /* bytes */
};

static struct client *clients;
static int serving = -1; /* the entry of the client that this process serves */
static int card;         /* the one that is spoken of */
static struct { void *start; long size; int card; } buffer[BUFFERS];
static struct { void *backend[CARDS]; int count; } made;

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
    for (int i = 0; clients && i < CLIENTS; i++)
        if (clients[i].held[card] && lives(clients[i].pid))
            bytes += clients[i].held[card];
    return bytes / MIB;
}

static long free_mib(void)
{
    const char *text = getenv("LAB_CARD_MIB"), *folder = getenv("LAB_CARD_DIR");
    long size = text ? strtol(text, NULL, 10) : 0, taken = 0, left;
    char path[4096];
    FILE *file = NULL;
    if (folder && snprintf(path, sizeof path, "%s/%d", folder, card) < (int)sizeof path)
        file = fopen(path, "re");
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

static void *next(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "card_shim: %s is not in this engine, so its cards cannot be told apart\n", name);
        abort();
    }
    return found;
}

void *ggml_backend_dev_init(void *device, const char *params)
{
    void *(*real)(void *, const char *);
    *(void **)&real = next("ggml_backend_dev_init");
    void *backend = real(device, params);
    if (backend && made.count < CARDS) {
        made.backend[made.count++] = backend;
        card = made.count % CARDS; /* the next one that the program lists */
    }
    return backend;
}

static void turn_to(void *backend)
{
    for (int i = 0; i < made.count; i++)
        if (made.backend[i] == backend)
            card = i;
}

void *ggml_backend_get_default_buffer_type(void *backend)
{
    static void *(*real)(void *);
    if (!real)
        *(void **)&real = next("ggml_backend_get_default_buffer_type");
    turn_to(backend);
    return real(backend);
}

void *ggml_backend_get_device(void *backend)
{
    static void *(*real)(void *);
    if (!real)
        *(void **)&real = next("ggml_backend_get_device");
    turn_to(backend);
    return real(backend);
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
        buffer[slot].card = card;
        __atomic_add_fetch(&clients[serving].held[card], (long)size, __ATOMIC_RELAXED);
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
            __atomic_sub_fetch(&clients[serving].held[buffer[i].card], buffer[i].size, __ATOMIC_RELAXED);
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
            if (clients[i].pid == gone)
                clients[i] = (struct client){0};
}

static struct client *open_ledger(void)
{
    const char *path = getenv("LAB_CARD_LEDGER");
    size_t size = CLIENTS * sizeof *clients;
    int file = path ? open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
    void *ledger;
    if (path && (file < 0 || ftruncate(file, (off_t)size))) {
        perror(path);
        abort();
    }
    ledger = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | (path ? 0 : MAP_ANONYMOUS), file, 0);
    if (ledger == MAP_FAILED)
        abort();
    return ledger;
}

static int peer_port(int client)
{
    struct sockaddr_in peer = {0};
    socklen_t length = sizeof peer;
    return getpeername(client, (struct sockaddr *)&peer, &length) == 0 && peer.sin_family == AF_INET ? ntohs(peer.sin_port) : 0;
}

int accept(int listener, struct sockaddr *address, socklen_t *length)
{
    static int (*real)(int, struct sockaddr *, socklen_t *);
    if (serving >= 0)
        _exit(0); /* this process's client has gone, and its memory with it */
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "accept");
    if (!clients)
        clients = open_ledger();
    for (;;) {
        int slot = 0, client = real(listener, address, length);
        pid_t parent = getpid(), child;
        if (client < 0) {
            if (errno == EINTR)
                continue;
            return client;
        }
        reap();
        while (slot < CLIENTS && clients[slot].pid)
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
        if (child > 0) {
            clients[slot].port = peer_port(client);
            clients[slot].pid = child;
        }
        close(client);
    }
}
