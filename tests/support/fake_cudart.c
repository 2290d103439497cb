// The part of libcudart that tlc calls, on a machine without a GPU: memory is the CPU's, and work runs when it is queued,
// or, between begin and end of a capture, is kept for the graph's launches. TLC_FAKE_GPU is "name;major;minor;integrated".
// Compiled by tests/support/tensorrt_double.py.

#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef void (*host_fn)(void*);
struct work { host_fn run; void* data; };
struct graph { struct work works[64]; int count; };

static struct graph* capture = 0;
static int allocations = 0;

static const char* part(int index) {
    static char copy[256];
    const char* text = getenv("TLC_FAKE_GPU");
    strncpy(copy, text ? text : "Fake GPU;8;7;1", sizeof copy - 1);
    char* token = strtok(copy, ";");
    while (index-- && token) token = strtok(0, ";");
    return token ? token : "";
}

const char* cudaGetErrorString(int status) {
    return status == 2 ? "out of memory" : status == 100 ? "no CUDA-capable device is detected"
         : status == 906 ? "operation would make the legacy stream depend on a capturing blocking stream" : "unknown error";
}
int cudaGetDeviceCount(int* count) { *count = 1; return getenv("TLC_FAKE_NO_GPU") ? 100 : 0; }
int cudaRuntimeGetVersion(int* version) { *version = 12060; return 0; }
int cudaSetDevice(int device) { return device == 0 ? 0 : 100; }
int cudaGetDeviceProperties(void* properties, int device) { strcpy(properties, part(0)); return device; }
int cudaDeviceGetAttribute(int* value, int attribute, int device) {
    *value = atoi(part(attribute == 75 ? 1 : attribute == 76 ? 2 : 3));
    return device;
}
int cudaMemGetInfo(size_t* free_bytes, size_t* total) { *free_bytes = 4ul << 30; *total = 8ul << 30; return 0; }
int cudaMalloc(void** address, size_t size) { *address = malloc(size); allocations++; return *address ? 0 : 2; }
int cudaFree(void* address) { free(address); allocations--; return 0; }
int cudaMallocHost(void** address, size_t size) { return cudaMalloc(address, size); }
int cudaFreeHost(void* address) { return cudaFree(address); }
int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
    (void)stream;
    if (capture || (kind != 1 && kind != 2)) return 1;
    memcpy(to, from, size);
    return 0;
}
int cudaStreamCreateWithFlags(void** stream, unsigned flags) { *stream = malloc(8); allocations++; return flags == 1 ? 0 : 1; }
int cudaStreamSynchronize(void* stream) { return stream && !capture ? 0 : 1; }
int cudaStreamDestroy(void* stream) { return cudaFree(stream); }
int cudaEventCreate(void** event) { *event = malloc(sizeof(struct timespec)); allocations++; return 0; }
int cudaEventRecord(void* event, void* stream) { (void)stream; clock_gettime(CLOCK_MONOTONIC, event); return 0; }
int cudaEventElapsedTime(float* ms, void* start, void* end) {
    struct timespec *a = start, *b = end;
    *ms = (b->tv_sec - a->tv_sec) * 1e3f + (b->tv_nsec - a->tv_nsec) * 1e-6f;
    return 0;
}
int cudaEventDestroy(void* event) { return cudaFree(event); }
int cudaLaunchHostFunc(void* stream, host_fn run, void* data) {
    if (!stream) return 1;
    if (!capture) { run(data); return 0; }
    if (getenv("TLC_FAKE_NO_GRAPH")) return 906;
    capture->works[capture->count].run = run;
    capture->works[capture->count++].data = data;
    return 0;
}
int cudaStreamBeginCapture(void* stream, int mode) {
    if (!stream || mode != 1 || capture) return 1;
    capture = calloc(1, sizeof *capture);
    allocations++;
    return 0;
}
int cudaStreamEndCapture(void* stream, void** graph) {
    if (!stream || !capture) return 1;
    *graph = capture;
    capture = 0;
    if (!getenv("TLC_FAKE_NO_GRAPH")) return 0;
    cudaFree(*graph);
    *graph = 0;
    return 906;
}
int cudaGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long flags) {
    (void)flags;
    *executable = malloc(sizeof(struct graph));
    allocations++;
    memcpy(*executable, graph, sizeof(struct graph));
    return 0;
}
int cudaGraphLaunch(void* executable, void* stream) {
    struct graph* graph = executable;
    for (int i = 0; i < graph->count; i++) graph->works[i].run(graph->works[i].data);
    return stream ? 0 : 1;
}
int cudaGraphDestroy(void* graph) { return cudaFree(graph); }
int cudaGraphExecDestroy(void* executable) { return cudaFree(executable); }
int fakeAllocations(void) { return allocations; }
