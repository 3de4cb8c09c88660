/* A stand-in for the library of NVIDIA's driver, with the calls that opusclip_mlops makes.

   What it answers stands in the file that NVML_STUB names, one "name number" a line, read anew at
   every call; a name that is not there has its default:

     gpus 2          how many there are
     missing 1       the one that is not counted any more, none by default
     lost 1          the one that is off the bus, none by default
     driver 1        another number: the driver was loaded anew, and knows no library opened before
     pid 0           the process that uses the GPUs, none by default
     untold 1        the memory of processes is not told
     total 0         bytes of memory of a GPU, 8 GB by default
     limit 0         milliwatts a GPU may take, 300 W by default
     hang 1          questions to GPUs are not answered, for as long as this stands there
     <function> 3    the function answers with this error

   Each call of nvmlInitWithFlags and nvmlShutdown is a line in the file <NVML_STUB>.calls. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, TOO_SMALL = 7, LOST = 15, UNKNOWN = 999 };

typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;
typedef struct {
    unsigned pid;
    unsigned long long used;
    unsigned gpu_instance, compute_instance;
} Process;

static int open_count = 0, opened = 0;
static long long opened_driver = 0;

static long long setting(const char *name, long long otherwise) {
    char found[100];
    long long value, result = otherwise;
    FILE *file = fopen(getenv("NVML_STUB"), "r");
    if (!file) return otherwise;
    while (fscanf(file, "%99s %lld", found, &value) == 2)
        if (!strcmp(found, name)) result = value;
    fclose(file);
    return result;
}

static void note(const char *call) {
    char path[4096];
    snprintf(path, sizeof path, "%s.calls", getenv("NVML_STUB"));
    FILE *file = fopen(path, "a");
    if (file) {
        fprintf(file, "%s\n", call);
        fclose(file);
    }
}

/* A handle holds the opening it was given in, and the number of the GPU from 1. */
static int gpu_of(void *handle) { return (int)((unsigned long)handle & 0xff) - 1; }

static int checked(const char *call) {
    if (!open_count) return UNINITIALIZED;
    if (setting("driver", 1) != opened_driver) return UNKNOWN;
    return (int)setting(call, OK);
}

static int checked_gpu(const char *call, void *handle) {
    int code = checked(call);
    while (setting("hang", 0)) usleep(10000);
    if (code) return code;
    if ((unsigned long)handle >> 8 != (unsigned long)opened) return INVALID;
    return setting("lost", -1) == gpu_of(handle) ? LOST : OK;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    note("init");
    int code = (int)setting("nvmlInitWithFlags", OK);
    if (code) return code;
    if (!open_count++) {
        opened++;
        opened_driver = setting("driver", 1);
    }
    return OK;
}

int nvmlShutdown(void) {
    note("shutdown");
    if (!open_count) return UNINITIALIZED;
    open_count--;
    return (int)setting("nvmlShutdown", OK);
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    *count = (unsigned)(setting("gpus", 2) - (setting("missing", -1) >= 0));
    return checked("nvmlDeviceGetCount_v2");
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) {
    long long missing = setting("missing", -1);
    unsigned gpu = missing >= 0 && index >= missing ? index + 1 : index;
    *handle = (void *)((unsigned long)opened << 8 | (gpu + 1));
    return checked_gpu("nvmlDeviceGetHandleByIndex_v2", *handle);
}

int nvmlDeviceGetUUID(void *handle, char *uuid, unsigned size) {
    snprintf(uuid, size, "GPU-%d", gpu_of(handle));
    return checked_gpu("nvmlDeviceGetUUID", handle);
}

int nvmlDeviceGetMemoryInfo(void *handle, Memory *memory) {
    memory->total = (unsigned long long)setting("total", 8000000000ll);
    memory->used = 1000000000ull * (gpu_of(handle) + 1);
    memory->free = memory->total - memory->used;
    return checked_gpu("nvmlDeviceGetMemoryInfo", handle);
}

int nvmlDeviceGetUtilizationRates(void *handle, Utilization *use) {
    use->gpu = 40 + gpu_of(handle);
    use->memory = 10;
    return checked_gpu("nvmlDeviceGetUtilizationRates", handle);
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
    *milliwatts = 100640 + 1000 * gpu_of(handle);
    return checked_gpu("nvmlDeviceGetPowerUsage", handle);
}

int nvmlDeviceGetEnforcedPowerLimit(void *handle, unsigned *milliwatts) {
    *milliwatts = (unsigned)setting("limit", 300000);
    return checked_gpu("nvmlDeviceGetEnforcedPowerLimit", handle);
}

/* On each GPU somebody else's process, and the one of the setting. */
int nvmlDeviceGetComputeRunningProcesses_v3(void *handle, unsigned *count, Process *found) {
    int code = checked_gpu("nvmlDeviceGetComputeRunningProcesses_v3", handle);
    unsigned pid = (unsigned)setting("pid", 0), needed = pid ? 2 : 1, room = *count;
    if (code) return code;
    *count = needed;
    if (room < needed) return TOO_SMALL;
    memset(found, 0, needed * sizeof *found);
    found[0].pid = 4000000000u;
    found[0].used = 5000000ull;
    found[needed - 1].pid = pid ? pid : found[0].pid;
    found[needed - 1].used = setting("untold", 0) ? -1ull : 250000000ull;
    return OK;
}

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error of the stub";
}
