/* Copyright (c) 2026, gpufleet.llm maintainers
   GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
   SPDX-License-Identifier: GPL-3.0-or-later

   The state file of the NVML simulator: what it says of driver, cards and processes. nvml_sim.c includes it. */

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define GPUS 16
#define PROCESSES 256
#define TEXT 96
#define STATE_BYTES 65536
#define UNSET INT64_MIN /* not in the file, or "-" */
#define MIB 1048576ULL

enum {
  SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6,
  INSUFFICIENT_SIZE = 7, DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15, LIB_RM_VERSION_MISMATCH = 18,
  ARGUMENT_VERSION_MISMATCH = 25, UNKNOWN = 999
};

typedef struct { unsigned pid; int64_t mib; int graphics; } process_t;

typedef struct {
  char uuid[TEXT], name[TEXT], pci[32];
  int64_t major, minor, total, reserved, used, load, memory_load, temperature, power, limit, default_limit, enforced,
      minimum, maximum, throttle, ecc, persistence, mig, generation, max_generation, width, max_width, replays, recovery,
      lost;
  unsigned processes;
  process_t process[PROCESSES];
} gpu_t;

typedef struct {
  char driver[TEXT], library[TEXT], branch[TEXT];
  int64_t cuda, init, calls;
  unsigned gpus;
  gpu_t gpu[GPUS];
} state_t;

/* A handle is the address of one of these cells: it outlives what the file says. */
static char handles[GPUS];
static unsigned users; /* nvmlInit less nvmlShutdown */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- the state file ---- */

/* One number of the rest of a line; "-" is UNSET. Moves on; 0 when there is none. */
static int number(char **rest, int64_t *value) {
  char *word = strtok_r(NULL, " \t", rest), *stop;
  if (!word) return 0;
  *value = UNSET;
  if (!strcmp(word, "-")) return 1;
  *value = strtoll(word, &stop, 0);
  return !*stop;
}

static int text(char **rest, char *value, size_t size) {
  const char *line = *rest ? *rest : "";
  line += strspn(line, " \t");
  return *line && (size_t)snprintf(value, size, "%s", line) < size;
}

static int process_line(gpu_t *gpu, char **rest, int graphics) {
  int64_t pid = 0, mib = 0;
  if (gpu->processes == PROCESSES || !number(rest, &pid) || !number(rest, &mib) || pid <= 0) return 0;
  gpu->process[gpu->processes++] = (process_t){(unsigned)pid, mib, graphics};
  return 1;
}

static int gpu_line(gpu_t *g, const char *key, char **rest) {
  if (!strcmp(key, "uuid")) return text(rest, g->uuid, sizeof g->uuid);
  if (!strcmp(key, "name")) return text(rest, g->name, sizeof g->name);
  if (!strcmp(key, "pci")) return text(rest, g->pci, sizeof g->pci);
  if (!strcmp(key, "capability")) return number(rest, &g->major) && number(rest, &g->minor);
  if (!strcmp(key, "total")) return number(rest, &g->total);
  if (!strcmp(key, "reserved")) return number(rest, &g->reserved);
  if (!strcmp(key, "used")) return number(rest, &g->used);
  if (!strcmp(key, "load")) return number(rest, &g->load) && number(rest, &g->memory_load);
  if (!strcmp(key, "temperature")) return number(rest, &g->temperature);
  if (!strcmp(key, "power")) return number(rest, &g->power);
  if (!strcmp(key, "limit")) return number(rest, &g->limit);
  if (!strcmp(key, "default")) return number(rest, &g->default_limit);
  if (!strcmp(key, "enforced")) return number(rest, &g->enforced);
  if (!strcmp(key, "range")) return number(rest, &g->minimum) && number(rest, &g->maximum);
  if (!strcmp(key, "throttle")) return number(rest, &g->throttle);
  if (!strcmp(key, "ecc")) return number(rest, &g->ecc);
  if (!strcmp(key, "persistence")) return number(rest, &g->persistence);
  if (!strcmp(key, "mig")) return number(rest, &g->mig);
  if (!strcmp(key, "pcie"))
    return number(rest, &g->generation) && number(rest, &g->max_generation) && number(rest, &g->width) &&
           number(rest, &g->max_width);
  if (!strcmp(key, "replays")) return number(rest, &g->replays);
  if (!strcmp(key, "recovery")) return number(rest, &g->recovery);
  if (!strcmp(key, "lost")) return number(rest, &g->lost);
  if (!strcmp(key, "process")) return process_line(g, rest, 0);
  if (!strcmp(key, "graphics")) return process_line(g, rest, 1);
  return 0;
}

static int state_line(state_t *s, const char *key, char **rest) {
  if (!strcmp(key, "gpu")) {
    if (s->gpus == GPUS) return 0;
    gpu_t *g = &s->gpu[s->gpus++];
    int64_t *fields[] = {&g->major, &g->minor, &g->total, &g->reserved, &g->used, &g->load, &g->memory_load,
                         &g->temperature, &g->power, &g->limit, &g->default_limit, &g->enforced, &g->minimum,
                         &g->maximum, &g->throttle, &g->ecc, &g->persistence, &g->mig, &g->generation,
                         &g->max_generation, &g->width, &g->max_width, &g->replays, &g->recovery};
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) *fields[i] = UNSET;
    return 1;
  }
  if (s->gpus) return gpu_line(&s->gpu[s->gpus - 1], key, rest);
  if (!strcmp(key, "driver")) return text(rest, s->driver, sizeof s->driver);
  if (!strcmp(key, "library")) return text(rest, s->library, sizeof s->library);
  if (!strcmp(key, "branch")) return text(rest, s->branch, sizeof s->branch);
  if (!strcmp(key, "cuda")) return number(rest, &s->cuda);
  if (!strcmp(key, "init")) return number(rest, &s->init);
  if (!strcmp(key, "calls")) return number(rest, &s->calls);
  return 0;
}

static int parse(state_t *s, char *content) {
  char *lines = content, *line;
  while ((line = strsep(&lines, "\n"))) {
    char *rest, *key;
    if (!*line || *line == '#') continue;
    if (!strcmp(line, "end")) return SUCCESS;
    key = strtok_r(line, " \t", &rest);
    if (!key || !state_line(s, key, &rest)) return UNKNOWN;
  }
  return UNKNOWN; /* no "end": half of a file */
}

static int read_state(state_t *s) {
  const char *path = getenv("NVML_SIM_STATE");
  memset(s, 0, sizeof *s);
  s->cuda = UNSET;
  snprintf(s->library, sizeof s->library, "%s", NVML_SIM_VERSION);
  FILE *file = fopen(path && *path ? path : "/run/nvml-sim/state", "re");
  if (!file) return DRIVER_NOT_LOADED;
  char *content = malloc(STATE_BYTES + 1);
  size_t length = content ? fread(content, 1, STATE_BYTES, file) : 0;
  int whole = content && feof(file);
  fclose(file);
  int code = UNKNOWN;
  if (whole && !memchr(content, 0, length)) {
    content[length] = 0;
    code = parse(s, content);
  }
  free(content);
  return code;
}
