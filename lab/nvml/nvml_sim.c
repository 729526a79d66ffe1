/* Copyright (c) 2026, gpufleet.llm maintainers
 * GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
 * SPDX-License-Identifier: GPL-3.0-or-later
 *
 * libnvidia-ml.so.1 without a GPU: the documented ABI of NVML (nvml.h; pynvml.py mirrors it) over one text file.
 *
 * The file is read again at every call, so a test changes the hardware under a running program. It is $NVML_SIM_STATE,
 * or /run/nvml-sim/state. Without it NVML says what it says without a kernel module: DRIVER_NOT_LOADED. A file that
 * does not end in the line "end", or holds a line that is not understood, is answered with UNKNOWN; writers replace
 * the file atomically, so only a broken writer shows that.
 *
 * One "key value" a line, "-" for "the card does not say" (NOT_SUPPORTED):
 *
 *   driver 580.126.09         version of the loaded kernel module
 *   library 580.126.09        version of this library (default: as built); another than driver's is a mismatch (18)
 *   branch r580_00
 *   cuda 13000                1000 * major + 10 * minor
 *   init 9                    code that nvmlInit returns (default 0)
 *   calls 999                 code that every other call returns (default 0)
 *   gpu                       begins a card; the lines below belong to it
 *   uuid GPU-…  name NVIDIA …  pci 00000000:01:00.0  capability 8 9
 *   total N  reserved N  used N         MiB; used without reserved
 *   load GPU MEMORY  temperature C
 *   power mW  limit mW  default mW  enforced mW  range MIN MAX
 *   throttle BITS  ecc 0|1|-  persistence 0|1|-  mig 0|1|-
 *   pcie GEN MAXGEN WIDTH MAXWIDTH  replays N
 *   recovery N                nvmlDeviceGpuRecoveryAction
 *   lost 1|2                  1: no handle either, as after falling off the bus; 2: handles, but every call is 15
 *   process PID MIB|-         compute process; "-" is NVML_VALUE_NOT_AVAILABLE
 *   graphics PID MIB|-
 *   end
 */
#include <pthread.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#ifndef NVML_SIM_VERSION
#define NVML_SIM_VERSION "580.126.09"
#endif

#define EXPORT __attribute__((visibility("default")))

#include "nvml_state.h"

/* ---- what every call does first ---- */

/* The state for one call, to be freed; NULL with *code set when the call fails. */
static state_t *begin(int *code) {
  pthread_mutex_lock(&lock);
  unsigned count = users;
  pthread_mutex_unlock(&lock);
  *code = UNINITIALIZED;
  if (!count) return NULL;
  state_t *s = malloc(sizeof *s);
  *code = s ? read_state(s) : UNKNOWN;
  if (*code == SUCCESS && s->calls > 0) *code = (int)s->calls;
  if (*code == SUCCESS) return s;
  free(s);
  return NULL;
}

/* The same for a call about a device. */
static state_t *begin_device(const void *handle, gpu_t **gpu, int *code) {
  const char *cell = handle;
  state_t *s = begin(code);
  if (!s) return NULL;
  if (cell < handles || cell >= handles + GPUS) *code = INVALID_ARGUMENT;
  else if ((size_t)(cell - handles) >= s->gpus || s->gpu[cell - handles].lost > 0) *code = GPU_IS_LOST;
  if (*code == SUCCESS) {
    *gpu = &s->gpu[cell - handles];
    return s;
  }
  free(s);
  return NULL;
}

static int give_text(const char *value, char *buffer, unsigned size) {
  if (!*value) return NOT_SUPPORTED;
  if (!buffer) return INVALID_ARGUMENT;
  if (strlen(value) >= size) return INSUFFICIENT_SIZE;
  strcpy(buffer, value);
  return SUCCESS;
}

static int give_unsigned(int64_t value, unsigned *target) {
  if (!target) return INVALID_ARGUMENT;
  if (value == UNSET) return NOT_SUPPORTED;
  *target = (unsigned)value;
  return SUCCESS;
}

/* A call `name` about a device that runs the rest, with `gpu` and `code` at hand. */
#define DEVICE_CALL(name, parameters, ...)               \
  EXPORT int name parameters {                           \
    gpu_t *gpu = NULL;                                   \
    int code;                                            \
    state_t *state = begin_device(device, &gpu, &code);  \
    if (!state) return code;                             \
    __VA_ARGS__;                                         \
    free(state);                                         \
    return code;                                         \
  }

#define DEVICE_UNSIGNED(name, field) \
  DEVICE_CALL(name, (void *device, unsigned *value), code = give_unsigned(gpu->field, value))

/* ---- library and driver ---- */

EXPORT int nvmlInitWithFlags(unsigned flags) {
  (void)flags;
  state_t *s = malloc(sizeof *s);
  if (!s) return UNKNOWN;
  int code = read_state(s);
  if (code == SUCCESS && s->init > 0) code = (int)s->init;
  if (code == SUCCESS && strcmp(s->driver, s->library)) code = LIB_RM_VERSION_MISMATCH;
  free(s);
  if (code == SUCCESS) {
    pthread_mutex_lock(&lock);
    users++;
    pthread_mutex_unlock(&lock);
  }
  return code;
}

EXPORT int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
EXPORT int nvmlInit(void) { return nvmlInitWithFlags(0); }

EXPORT int nvmlShutdown(void) {
  pthread_mutex_lock(&lock);
  int code = users ? SUCCESS : UNINITIALIZED;
  if (users) users--;
  pthread_mutex_unlock(&lock);
  return code;
}

EXPORT const char *nvmlErrorString(int code) {
  switch (code) {
    case SUCCESS: return "The operation was successful";
    case UNINITIALIZED: return "NVML was not first initialized";
    case INVALID_ARGUMENT: return "A supplied argument is invalid";
    case NOT_SUPPORTED: return "The requested operation is not available on the target device";
    case NO_PERMISSION: return "The current user does not have permission for the operation";
    case NOT_FOUND: return "A query to find an object was unsuccessful";
    case INSUFFICIENT_SIZE: return "An input argument is not large enough";
    case DRIVER_NOT_LOADED: return "NVIDIA driver is not loaded";
    case GPU_IS_LOST: return "The GPU has fallen off the bus or is otherwise inaccessible";
    case LIB_RM_VERSION_MISMATCH: return "RM detected a driver/library version mismatch";
    case ARGUMENT_VERSION_MISMATCH: return "The provided version is invalid or unsupported";
    default: return "Unknown Error";
  }
}

/* Works before nvmlInit, and without a driver: CUDA's major number, then the library's version. */
EXPORT int nvmlSystemGetNVMLVersion(char *version, unsigned length) {
  char full[TEXT + 8];
  state_t *s = malloc(sizeof *s);
  if (!s) return UNKNOWN;
  int readable = read_state(s) == SUCCESS;
  const char *library = readable ? s->library : NVML_SIM_VERSION;
  snprintf(full, sizeof full, "%d.%s", atoi(library) >= 580 ? 13 : 12, library);
  free(s);
  return give_text(full, version, length);
}

EXPORT int nvmlSystemGetDriverVersion(char *version, unsigned length) {
  int code;
  state_t *s = begin(&code);
  if (!s) return code;
  code = give_text(s->driver, version, length);
  free(s);
  return code;
}

typedef struct { unsigned version; char branch[80]; } branch_t;

EXPORT int nvmlSystemGetDriverBranch(branch_t *info, unsigned length) {
  int code;
  state_t *s = begin(&code);
  if (!s) return code;
  if (!info || info->version != 0x1000054) code = info ? ARGUMENT_VERSION_MISMATCH : INVALID_ARGUMENT;
  else code = give_text(s->branch, info->branch, length < sizeof info->branch ? length : sizeof info->branch);
  free(s);
  return code;
}

EXPORT int nvmlSystemGetCudaDriverVersion_v2(int *version) {
  int code;
  state_t *s = begin(&code);
  if (!s) return code;
  code = give_unsigned(s->cuda, (unsigned *)version);
  free(s);
  return code;
}

EXPORT int nvmlSystemGetCudaDriverVersion(int *version) { return nvmlSystemGetCudaDriverVersion_v2(version); }

/* ---- finding devices ---- */

EXPORT int nvmlDeviceGetCount_v2(unsigned *count) {
  int code;
  state_t *s = begin(&code);
  if (!s) return code;
  code = give_unsigned(s->gpus, count);
  free(s);
  return code;
}

EXPORT int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
  int code;
  state_t *s = begin(&code);
  if (!s) return code;
  if (!device || index >= s->gpus) code = INVALID_ARGUMENT;
  else if (s->gpu[index].lost == 1) code = GPU_IS_LOST;
  else *device = &handles[index];
  free(s);
  return code;
}

/* By the text at `offset` of each card. */
static int find(const char *wanted, size_t offset, void **device) {
  int code;
  state_t *s = begin(&code);
  if (!s) return code;
  code = wanted && device ? NOT_FOUND : INVALID_ARGUMENT;
  for (unsigned i = 0; code == NOT_FOUND && i < s->gpus; i++) {
    if (strcasecmp((const char *)&s->gpu[i] + offset, wanted)) continue;
    code = s->gpu[i].lost == 1 ? GPU_IS_LOST : SUCCESS;
    if (code == SUCCESS) *device = &handles[i];
    break;
  }
  free(s);
  return code;
}

EXPORT int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  return find(uuid, offsetof(gpu_t, uuid), device);
}
EXPORT int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
  return find(bus, offsetof(gpu_t, pci), device);
}

DEVICE_CALL(nvmlDeviceGetIndex, (void *device, unsigned *index), code = give_unsigned(gpu - state->gpu, index))
DEVICE_CALL(nvmlDeviceGetName, (void *device, char *name, unsigned length), code = give_text(gpu->name, name, length))
DEVICE_CALL(nvmlDeviceGetUUID, (void *device, char *uuid, unsigned length), code = give_text(gpu->uuid, uuid, length))

typedef struct { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; } pci_t;

static int give_pci(const gpu_t *gpu, pci_t *pci) {
  if (!pci) return INVALID_ARGUMENT;
  memset(pci, 0, sizeof *pci);
  if (sscanf(gpu->pci, "%x:%x:%x", &pci->domain, &pci->bus, &pci->device) != 3) return NOT_SUPPORTED;
  snprintf(pci->legacy, sizeof pci->legacy, "%04x:%02x:%02x.0", pci->domain & 0xffff, pci->bus & 0xff,
           pci->device & 0xff);
  strcpy(pci->bus_id, gpu->pci);
  pci->id = 0x268410de; /* an RTX 4090 */
  return SUCCESS;
}

DEVICE_CALL(nvmlDeviceGetPciInfo_v3, (void *device, pci_t *pci), code = give_pci(gpu, pci))

DEVICE_CALL(nvmlDeviceGetCudaComputeCapability, (void *device, int *major, int *minor), {
  code = give_unsigned(gpu->major, (unsigned *)major);
  if (code == SUCCESS) code = give_unsigned(gpu->minor, (unsigned *)minor);
})

/* ---- memory ---- */

typedef struct { uint64_t total, free, used; } memory_t;
typedef struct { unsigned version; uint64_t total, reserved, free, used; } memory_v2_t;

static uint64_t bytes(int64_t mib) { return mib > 0 ? (uint64_t)mib * MIB : 0; }

static uint64_t free_bytes(const gpu_t *gpu) {
  uint64_t taken = bytes(gpu->reserved) + bytes(gpu->used);
  return bytes(gpu->total) > taken ? bytes(gpu->total) - taken : 0;
}

/* The first structure counts what is reserved as used (nvml.h). */
DEVICE_CALL(nvmlDeviceGetMemoryInfo, (void *device, memory_t *memory), {
  if (!memory) code = INVALID_ARGUMENT;
  else if (gpu->total == UNSET) code = NOT_SUPPORTED;
  else *memory = (memory_t){bytes(gpu->total), free_bytes(gpu), bytes(gpu->total) - free_bytes(gpu)};
})

DEVICE_CALL(nvmlDeviceGetMemoryInfo_v2, (void *device, memory_v2_t *memory), {
  if (!memory) code = INVALID_ARGUMENT;
  else if (memory->version != 0x02000028) code = ARGUMENT_VERSION_MISMATCH;
  else if (gpu->total == UNSET) code = NOT_SUPPORTED;
  else {
    memory->total = bytes(gpu->total);
    memory->reserved = bytes(gpu->reserved);
    memory->free = free_bytes(gpu);
    memory->used = memory->total - memory->reserved - memory->free;
  }
})

/* ---- processes ---- */

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_info_t;

/* With too little room (a first question has none) the answer is INSUFFICIENT_SIZE and how many there are. */
static int give_processes(const gpu_t *gpu, int graphics, unsigned *count, process_info_t *infos) {
  unsigned found = 0, room;
  if (!count) return INVALID_ARGUMENT;
  room = infos ? *count : 0;
  for (unsigned i = 0; i < gpu->processes; i++) {
    const process_t *p = &gpu->process[i];
    if (p->graphics != graphics) continue;
    if (found < room)
      infos[found] = (process_info_t){p->pid, p->mib == UNSET ? ~0ULL : bytes(p->mib), ~0U, ~0U};
    found++;
  }
  *count = found;
  return found > room ? INSUFFICIENT_SIZE : SUCCESS;
}

#define PROCESS_CALL(name, graphics)                                                \
  DEVICE_CALL(name, (void *device, unsigned *count, process_info_t *infos),         \
              code = give_processes(gpu, graphics, count, infos))

PROCESS_CALL(nvmlDeviceGetComputeRunningProcesses_v3, 0)
PROCESS_CALL(nvmlDeviceGetComputeRunningProcesses_v2, 0)
PROCESS_CALL(nvmlDeviceGetGraphicsRunningProcesses_v3, 1)
PROCESS_CALL(nvmlDeviceGetGraphicsRunningProcesses_v2, 1)

/* ---- load, heat, power ---- */

typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned version, sensor; int temperature; } temperature_t;

DEVICE_CALL(nvmlDeviceGetUtilizationRates, (void *device, utilization_t *load), {
  code = load ? give_unsigned(gpu->load, &load->gpu) : INVALID_ARGUMENT;
  if (code == SUCCESS) code = give_unsigned(gpu->memory_load, &load->memory);
})

DEVICE_CALL(nvmlDeviceGetTemperature, (void *device, unsigned sensor, unsigned *value),
            code = sensor ? INVALID_ARGUMENT : give_unsigned(gpu->temperature, value))

DEVICE_CALL(nvmlDeviceGetTemperatureV, (void *device, temperature_t *temperature), {
  if (!temperature || temperature->sensor) code = INVALID_ARGUMENT;
  else if (temperature->version != 0x100000C) code = ARGUMENT_VERSION_MISMATCH;
  else code = give_unsigned(gpu->temperature, (unsigned *)&temperature->temperature);
})

DEVICE_UNSIGNED(nvmlDeviceGetPowerUsage, power)
DEVICE_UNSIGNED(nvmlDeviceGetPowerManagementLimit, limit)
DEVICE_UNSIGNED(nvmlDeviceGetPowerManagementDefaultLimit, default_limit)
DEVICE_UNSIGNED(nvmlDeviceGetEnforcedPowerLimit, enforced)

DEVICE_CALL(nvmlDeviceGetPowerManagementLimitConstraints, (void *device, unsigned *minimum, unsigned *maximum), {
  code = give_unsigned(gpu->minimum, minimum);
  if (code == SUCCESS) code = give_unsigned(gpu->maximum, maximum);
})

#define THROTTLE_CALL(name)                                     \
  DEVICE_CALL(name, (void *device, unsigned long long *bits), { \
    if (!bits) code = INVALID_ARGUMENT;                         \
    else if (gpu->throttle == UNSET) code = NOT_SUPPORTED;      \
    else *bits = (unsigned long long)gpu->throttle;             \
  })

THROTTLE_CALL(nvmlDeviceGetCurrentClocksEventReasons)
THROTTLE_CALL(nvmlDeviceGetCurrentClocksThrottleReasons)

/* ---- modes, link, health ---- */

DEVICE_UNSIGNED(nvmlDeviceGetPersistenceMode, persistence)
DEVICE_UNSIGNED(nvmlDeviceGetCurrPcieLinkGeneration, generation)
DEVICE_UNSIGNED(nvmlDeviceGetMaxPcieLinkGeneration, max_generation)
DEVICE_UNSIGNED(nvmlDeviceGetCurrPcieLinkWidth, width)
DEVICE_UNSIGNED(nvmlDeviceGetMaxPcieLinkWidth, max_width)
DEVICE_UNSIGNED(nvmlDeviceGetPcieReplayCounter, replays)

#define MODE_CALL(name, field)                                               \
  DEVICE_CALL(name, (void *device, unsigned *current, unsigned *pending), {  \
    code = give_unsigned(gpu->field, current);                               \
    if (code == SUCCESS) code = give_unsigned(gpu->field, pending);          \
  })

MODE_CALL(nvmlDeviceGetEccMode, ecc)
MODE_CALL(nvmlDeviceGetMigMode, mig)

typedef struct {
  uint32_t id, scope;
  int64_t timestamp, latency;
  unsigned type;
  int code;
  union { double d; unsigned u; unsigned long long l; } value;
} field_t;

DEVICE_CALL(nvmlDeviceGetFieldValues, (void *device, int count, field_t *fields), {
  if (count < 1 || !fields) code = INVALID_ARGUMENT;
  for (int i = 0; code == SUCCESS && i < count; i++) {
    fields[i].timestamp = (int64_t)time(NULL) * 1000000;
    fields[i].latency = 0;
    fields[i].type = 1; /* unsigned int */
    fields[i].value.l = 0;
    fields[i].code = fields[i].id == 230 ? give_unsigned(gpu->recovery, &fields[i].value.u) : NOT_SUPPORTED;
  }
})

/* Events are not simulated: a card may say so, and its users have to live with it. */
EXPORT int nvmlEventSetCreate(void **set) { (void)set; return NOT_SUPPORTED; }
EXPORT int nvmlEventSetFree(void *set) { (void)set; return NOT_SUPPORTED; }
EXPORT int nvmlEventSetWait_v2(void *set, void *data, unsigned timeout) {
  (void)set, (void)data, (void)timeout;
  return NOT_SUPPORTED;
}
EXPORT int nvmlDeviceRegisterEvents(void *device, unsigned long long types, void *set) {
  (void)device, (void)types, (void)set;
  return NOT_SUPPORTED;
}
EXPORT int nvmlDeviceGetSupportedEventTypes(void *device, unsigned long long *types) {
  (void)device, (void)types;
  return NOT_SUPPORTED;
}
