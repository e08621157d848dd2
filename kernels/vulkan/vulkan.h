/* vulkan.h: private to kernels/vulkan: the functions of the Vulkan library, an open device, its memory, its pipelines,
 * and what shaders are told of a step and of a batch.
 *
 * vk_loader.c opens the library, vk_device.c chooses and opens a device, vk_memory.c moves bytes, vk_pipeline.c makes
 * pipelines, vk_program.c compiles a segment, vk_run.c runs it, vulkan.c is the record of the backend; vk_shapes.c says
 * which shaders run a step. Everything that shaders touch is addressed by buffer device address: no descriptors.
 * Layer L2. */
#ifndef Q_VULKAN_H
#define Q_VULKAN_H

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES /* functions are found at run time */
#endif
#include <vulkan/vulkan_core.h>

#include "../../libquant/backend.h"
#include "vk_shapes.h"

/* -------------------------------------------------------------------------------------------------- the library */

#define Q_VK_GLOBALS(X) X(EnumerateInstanceVersion) X(CreateInstance)

#define Q_VK_INSTANCE(X)                                                                                        \
    X(DestroyInstance) X(EnumeratePhysicalDevices) X(EnumerateDeviceExtensionProperties) X(GetDeviceProcAddr)   \
    X(GetPhysicalDeviceProperties) X(GetPhysicalDeviceProperties2) X(GetPhysicalDeviceFeatures2)                \
    X(GetPhysicalDeviceMemoryProperties2) X(GetPhysicalDeviceQueueFamilyProperties) X(CreateDevice)

#define Q_VK_DEVICE(X)                                                                                          \
    X(DestroyDevice) X(DeviceWaitIdle) X(GetDeviceQueue) X(QueueSubmit)                                         \
    X(AllocateMemory) X(FreeMemory) X(MapMemory) X(CreateBuffer) X(DestroyBuffer) X(BindBufferMemory)           \
    X(GetBufferMemoryRequirements) X(GetBufferDeviceAddress)                                                    \
    X(CreateFence) X(DestroyFence) X(ResetFences) X(WaitForFences)                                              \
    X(CreateCommandPool) X(DestroyCommandPool) X(AllocateCommandBuffers)                                        \
    X(BeginCommandBuffer) X(EndCommandBuffer)                                                                   \
    X(CmdCopyBuffer) X(CmdFillBuffer) X(CmdPipelineBarrier) X(CmdBindPipeline) X(CmdPushConstants) X(CmdDispatch) \
    X(CreateShaderModule) X(DestroyShaderModule) X(CreatePipelineLayout) X(DestroyPipelineLayout)               \
    X(CreatePipelineCache) X(DestroyPipelineCache) X(CreateComputePipelines) X(DestroyPipeline)

/* The library, an instance, and the functions of both and of the one device opened with it. */
typedef struct q_vk_api {
    void *library;
    PFN_vkGetInstanceProcAddr GetInstanceProcAddr;
    VkInstance instance;
#define X(name) PFN_vk##name name;
    Q_VK_GLOBALS(X) Q_VK_INSTANCE(X) Q_VK_DEVICE(X)
#undef X
} q_vk_api;

/* Open the library and make an instance. LQ_E_UNSUPPORTED where there is none; nothing is left open on failure. */
lq_status q_vk_api_open(q_vk_api *vk);
lq_status q_vk_api_device(q_vk_api *vk, VkDevice device); /* resolve the functions of a device */
void q_vk_api_close(q_vk_api *vk);
enum { Q_VK_DEVICES = 64 }; /* more are not looked at */
/* The physical devices in the library's order. */
lq_status q_vk_api_devices(const q_vk_api *vk, VkPhysicalDevice out[Q_VK_DEVICES], uint32_t *n);
const char *q_vk_result_name(VkResult r);

/* --------------------------------------------------------------------------------------------------- the device */

/* A buffer with memory of its own. */
typedef struct q_vk_memory {
    VkBuffer buffer;
    VkDeviceMemory memory;
    uint64_t takes;   /* of the device's memory; 0 = nothing is here */
    uint32_t heap;
    uint64_t address; /* for shaders */
    uint8_t *host;    /* mapped, NULL = not for the processor */
} q_vk_memory;

typedef enum { Q_VK_LOCAL, Q_VK_HOST } q_vk_where;

enum {
    Q_VK_BUFFERS = 1024,    /* every driver allows 4096 allocations; programs take two each */
    Q_VK_PIPELINES = 1024,
    Q_VK_STAGING = 4 << 20, /* bytes of one of the two blocks */
    Q_VK_ROUND = 256        /* sizes of buffers are multiples of it */
};

/* One of the two halves of staging: the processor fills one while the device copies the other. */
typedef struct q_vk_block {
    VkCommandBuffer commands;
    VkFence fence;
    uint64_t at; /* in staging */
    bool busy;   /* submitted and not yet waited for */
} q_vk_block;

/* A pipeline is kept when no program uses it, until its place is needed. */
typedef struct q_vk_pipeline {
    VkPipeline handle;
    int32_t shader;
    uint32_t uses;
    int32_t spec[Q_VK_SPECS];
} q_vk_pipeline;

struct q_device {
    const q_alloc *alloc;
    const q_log *log;
    q_vk_api vk;
    VkPhysicalDevice physical;
    VkDevice handle;
    VkQueue queue;
    uint32_t index, family;
    uint32_t lost;          /* atomic: the device was lost; nothing works from then on */
    q_mutex queue_lock;     /* around the queue */
    q_mutex lock;           /* around staging, buffers, pipelines, used */
    char name[96];          /* "llvmpipe, Mesa 22.3.6" */
    VkPhysicalDeviceMemoryProperties memory;
    bool has_budget;
    uint64_t most;          /* bytes of the largest buffer */
    uint32_t most_groups[3];
    uint64_t used[VK_MAX_MEMORY_HEAPS];
    VkPipelineLayout layout;
    VkPipelineCache cache;
    VkCommandPool pool;
    q_vk_memory staging;
    q_vk_block block[2];
    uint32_t turn;
    bool locks[2];          /* opened */
    q_vk_memory buffers[Q_VK_BUFFERS]; /* behind q_buffer.handle */
    q_vk_pipeline pipelines[Q_VK_PIPELINES];
};

lq_status q_vk_open(uint32_t index, const q_device_options *options, q_device **out);
void q_vk_close(q_device *dev);
void q_vk_info(const q_device *dev, lq_device_info *info);
q_need q_vk_held(const q_device *dev);
/* The heap that buffers and programs are taken of. */
uint32_t q_vk_local_heap(const q_device *dev);
/* What is left of a heap: by the driver's budget, or else by what this device took. */
uint64_t q_vk_available(const q_device *dev, uint32_t heap);

/* A call's result as a status; `what` is the call's name. A lost device is remembered. */
lq_status q_vk_result(q_device *dev, VkResult r, const char *what);
/* LQ_E_DEVICE when it was lost before. */
lq_status q_vk_alive(const q_device *dev);
/* Hand command buffers to the queue. */
lq_status q_vk_submit(q_device *dev, const VkCommandBuffer *commands, uint32_t n, VkFence fence);
lq_status q_vk_wait(q_device *dev, VkFence fence);
/* Before freeing what the device may still work on: wait for a fence, or for all that was written, or for everything.
 * These keep the sentence of the failure that made it necessary. */
void q_vk_settle(q_device *dev, VkFence fence);
void q_vk_settle_staging(q_device *dev);
void q_vk_idle(q_device *dev);
/* Everything before is done and seen by everything after, transfers and shaders; at the end also by the processor. */
void q_vk_barrier(const q_device *dev, VkCommandBuffer commands, bool to_host);

/* ----------------------------------------------------------------------------------------------------- memory */

/* The type of memory for a use among those of a mask; -1 = none. */
int32_t q_vk_memory_type(const q_device *dev, q_vk_where where, uint32_t mask);
/* What a buffer of `bytes` takes. */
lq_status q_vk_memory_takes(q_device *dev, uint64_t bytes, uint64_t *takes);
lq_status q_vk_memory_open(q_device *dev, q_vk_where where, uint64_t bytes, q_vk_memory *out);
void q_vk_memory_close(q_device *dev, q_vk_memory *m); /* a zeroed one is fine */

uint64_t q_vk_alloc_most(const q_device *dev);
uint64_t q_vk_alloc_bytes(const q_device *dev, uint64_t bytes);
lq_status q_vk_alloc(q_device *dev, uint64_t bytes, q_buffer *out);
void q_vk_free(q_device *dev, q_buffer *buffer);
lq_status q_vk_write(q_device *dev, q_buffer *dst, uint64_t offset, const void *src, uint64_t n);
lq_status q_vk_flush(q_device *dev);
lq_status q_vk_read(q_device *dev, const q_buffer *src, uint64_t offset, void *dst, uint64_t n);
lq_status q_vk_copy(q_device *dev, q_buffer *dst, uint64_t to, const q_buffer *src, uint64_t from, uint64_t n);
lq_status q_vk_staging_open(q_device *dev);
void q_vk_staging_close(q_device *dev);
/* Bytes to a buffer by way of staging, as q_vk_write. */
lq_status q_vk_upload(q_device *dev, VkBuffer dst, uint64_t offset, const void *src, uint64_t n);

/* --------------------------------------------------------------------------------------------------- pipelines */

/* The pipeline of a pass, made if need be; its number stays until given back. */
lq_status q_vk_pipeline_take(q_device *dev, const q_vk_pass *pass, uint32_t *number, VkPipeline *out);
void q_vk_pipeline_give(q_device *dev, uint32_t number);
void q_vk_pipelines_close(q_device *dev);

/* ---------------------------------------------------------------------------------------------------- programs */

/* What a shader is told of its step: step.def, as it lies in the device's memory. */
typedef struct q_vk_step {
#define A(name) uint32_t name[2];
#define I(name) int32_t name;
#define F(name) float name;
#include "step.def"
#undef A
#undef I
#undef F
} q_vk_step;

/* And of a batch: the head of the parameter block. */
typedef struct q_vk_params {
#define P(name) int32_t name;
#define R(name) float name;
#include "params.def"
#undef P
#undef R
} q_vk_params;

/* Where both lie: the push constants. */
typedef struct q_vk_push {
    uint32_t step[2], params[2];
} q_vk_push;

/* Where the arrays of a parameter block lie, in words; `words` = the whole. */
typedef struct q_vk_block_map {
    int32_t ids, pos, seq, out, u, state, freqs, pages;
    int32_t words;
} q_vk_block_map;

/* A number of columns that commands are recorded for, and where its commands lie. In order: one that brings hidden
 * rows, one that brings the parameter block, the steps in one or more, one that takes hidden rows out. */
typedef struct q_vk_bucket {
    int32_t columns, outs;
    uint32_t first, n; /* in q_program.commands */
    q_vk_block_map map;
} q_vk_bucket;
enum { Q_VK_BUCKETS = 4, Q_VK_ONE_COLUMNS = 8 /* up to so many columns the steps are one command buffer */ };

typedef struct q_vk_name {
    char text[48];
} q_vk_name;

/* Where things lie in the device's block and in that for both, in bytes. */
typedef struct q_vk_map {
    uint64_t params, records, device_bytes;
    uint64_t host_params, host_rows, host_logits, host_sampled, host_bytes;
} q_vk_map;

struct q_program {
    q_device *dev;
    const q_plan *plan;
    int32_t segment, first, last;
    q_vk_map map;
    q_vk_memory device, host;
    uint64_t *slots;          /* [n_slots] offset in the device's block; UINT64_MAX = not used by the segment */
    uint64_t *freqs;          /* [steps] of ROPE: likewise */
    uint64_t *scratch;        /* [steps] likewise */
    q_vk_name *names;         /* [steps] kernels */
    uint32_t *pipelines;      /* taken of the device */
    uint32_t n_pipelines;
    VkCommandPool pool;
    VkCommandBuffer *commands;
    q_vk_bucket buckets[Q_VK_BUCKETS];
    uint32_t n_buckets;
    VkFence fence[2];
    bool busy[2];
    bool has_head, has_sample;
    /* The run in progress. */
    const q_batch *batch;
    bool refused;             /* its sampler is out of range */
    double began;
    uint32_t layers;          /* that it is handed over in */
    bool brisk;               /* of the latest with several, each took less than 50 ms */
    q_traffic traffic;
};

lq_status q_vk_measure(q_device *dev, const q_plan *plan, int32_t segment, uint32_t threads, q_need *need);
lq_status q_vk_compile(q_device *dev, const q_plan *plan, int32_t segment, const q_buffer *kv, const q_buffer *state,
                       uint32_t threads, q_program **out);
void q_vk_release(q_program *p);
const char *q_vk_kernel_name(const q_program *p, int32_t i);
lq_status q_vk_run(q_program *p, const q_batch *batch);
lq_status q_vk_wait_program(q_program *p);
q_traffic q_vk_traffic(const q_program *p);
const char *q_vk_supports(const q_device *dev, const q_inst *s);

#endif
