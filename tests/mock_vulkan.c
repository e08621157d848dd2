/* mock_vulkan.c: a libvulkan.so.1 that hands all to the real one, counts what is made and destroyed, and on demand
 * fails a call, lies about the device, or lacks a function.
 *
 * A test loads it by its path, after which it is what "libvulkan.so.1" means in the process; and it sets mock_control
 * (mock_vulkan.h). One device at a time; functions that cannot fail and make nothing are passed through. */
#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#define VK_NO_PROTOTYPES
#include <vulkan/vulkan_core.h>

#include "mock_vulkan.h"

#define EXPORT __attribute__((visibility("default")))

EXPORT extern mock_vulkan mock_control;
mock_vulkan mock_control;

static PFN_vkGetInstanceProcAddr real_instance;
static PFN_vkGetDeviceProcAddr real_device;
static VkInstance instance_of; /* the last one, and its device */
static VkDevice device_of;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct { VkDeviceMemory memory; int64_t bytes; } blocks[4096];

/* True when this call is the one that fails. */
static int fails(const char *name) {
    pthread_mutex_lock(&lock);
    const int now = ++mock_control.calls == mock_control.fail_at;
    if (now) strncpy(mock_control.failed, name, sizeof mock_control.failed - 1);
    pthread_mutex_unlock(&lock);
    return now;
}
static void count(long n) { __atomic_add_fetch(&mock_control.handles, n, __ATOMIC_SEQ_CST); }

static PFN_vkVoidFunction real(const char *name) {
    PFN_vkVoidFunction f = device_of && real_device ? real_device(device_of, name) : NULL;
    return f ? f : real_instance(instance_of, name);
}
#define REAL(name) ((PFN_vk##name)real("vk" #name))
#define FAIL(name) \
    if (fails("vk" #name)) return (VkResult)mock_control.result

/* ---- what makes and destroys handles */

/* vkCreateX(device, info, allocator, &x) and vkDestroyX(device, x, allocator) */
#define MAKES(type)                                                                                              \
    static VkResult mock_Create##type(VkDevice d, const Vk##type##CreateInfo *i, const VkAllocationCallbacks *a, \
                                      Vk##type *out) {                                                           \
        FAIL(Create##type);                                                                                      \
        const VkResult r = REAL(Create##type)(d, i, a, out);                                                     \
        if (r == VK_SUCCESS) count(1);                                                                           \
        return r;                                                                                                \
    }                                                                                                            \
    static void mock_Destroy##type(VkDevice d, Vk##type x, const VkAllocationCallbacks *a) {                     \
        if (x) count(-1);                                                                                        \
        REAL(Destroy##type)(d, x, a);                                                                            \
    }
MAKES(Buffer)
MAKES(Fence)
MAKES(CommandPool)
MAKES(ShaderModule)
MAKES(PipelineLayout)
MAKES(PipelineCache)

static VkResult mock_CreateComputePipelines(VkDevice d, VkPipelineCache c, uint32_t n,
                                            const VkComputePipelineCreateInfo *i, const VkAllocationCallbacks *a,
                                            VkPipeline *out) {
    FAIL(CreateComputePipelines);
    const VkResult r = REAL(CreateComputePipelines)(d, c, n, i, a, out);
    if (r == VK_SUCCESS) count(n);
    return r;
}
static void mock_DestroyPipeline(VkDevice d, VkPipeline x, const VkAllocationCallbacks *a) {
    if (x) count(-1);
    REAL(DestroyPipeline)(d, x, a);
}

static VkResult mock_AllocateMemory(VkDevice d, const VkMemoryAllocateInfo *i, const VkAllocationCallbacks *a,
                                    VkDeviceMemory *out) {
    FAIL(AllocateMemory);
    const VkResult r = REAL(AllocateMemory)(d, i, a, out);
    if (r != VK_SUCCESS) return r;
    count(1);
    pthread_mutex_lock(&lock);
    for (size_t k = 0; k < sizeof blocks / sizeof blocks[0]; k++)
        if (!blocks[k].memory) {
            blocks[k].memory = *out;
            blocks[k].bytes = (int64_t)i->allocationSize;
            break;
        }
    mock_control.device_bytes += (int64_t)i->allocationSize;
    if (mock_control.device_bytes > mock_control.device_most) mock_control.device_most = mock_control.device_bytes;
    pthread_mutex_unlock(&lock);
    return r;
}
static void mock_FreeMemory(VkDevice d, VkDeviceMemory m, const VkAllocationCallbacks *a) {
    if (m) count(-1);
    pthread_mutex_lock(&lock);
    for (size_t k = 0; m && k < sizeof blocks / sizeof blocks[0]; k++)
        if (blocks[k].memory == m) {
            mock_control.device_bytes -= blocks[k].bytes;
            blocks[k].memory = VK_NULL_HANDLE;
            break;
        }
    pthread_mutex_unlock(&lock);
    REAL(FreeMemory)(d, m, a);
}

static VkResult mock_CreateInstance(const VkInstanceCreateInfo *i, const VkAllocationCallbacks *a, VkInstance *out) {
    FAIL(CreateInstance);
    const VkResult r = ((PFN_vkCreateInstance)real_instance(NULL, "vkCreateInstance"))(i, a, out);
    if (r != VK_SUCCESS) return r;
    count(1);
    instance_of = *out;
    return r;
}
static void mock_DestroyInstance(VkInstance i, const VkAllocationCallbacks *a) {
    PFN_vkDestroyInstance f = (PFN_vkDestroyInstance)real_instance(i, "vkDestroyInstance");
    if (i) count(-1);
    if (i == instance_of) instance_of = NULL;
    f(i, a);
}
static VkResult mock_CreateDevice(VkPhysicalDevice p, const VkDeviceCreateInfo *i, const VkAllocationCallbacks *a,
                                  VkDevice *out) {
    FAIL(CreateDevice);
    const VkResult r = REAL(CreateDevice)(p, i, a, out);
    if (r != VK_SUCCESS) return r;
    count(1);
    real_device = (PFN_vkGetDeviceProcAddr)real_instance(instance_of, "vkGetDeviceProcAddr");
    device_of = *out;
    return r;
}
static void mock_DestroyDevice(VkDevice d, const VkAllocationCallbacks *a) {
    PFN_vkDestroyDevice f = REAL(DestroyDevice);
    if (d) count(-1);
    if (d == device_of) device_of = NULL;
    f(d, a);
}

/* ---- what only may fail */

#define PASSES(name, parameters, arguments)       \
    static VkResult mock_##name parameters {      \
        FAIL(name);                               \
        return REAL(name) arguments;              \
    }
PASSES(DeviceWaitIdle, (VkDevice d), (d))
PASSES(QueueSubmit, (VkQueue q, uint32_t n, const VkSubmitInfo *i, VkFence f), (q, n, i, f))
PASSES(MapMemory, (VkDevice d, VkDeviceMemory m, VkDeviceSize o, VkDeviceSize n, VkMemoryMapFlags f, void **p),
       (d, m, o, n, f, p))
PASSES(BindBufferMemory, (VkDevice d, VkBuffer b, VkDeviceMemory m, VkDeviceSize o), (d, b, m, o))
PASSES(ResetFences, (VkDevice d, uint32_t n, const VkFence *f), (d, n, f))
PASSES(WaitForFences, (VkDevice d, uint32_t n, const VkFence *f, VkBool32 all, uint64_t t), (d, n, f, all, t))
PASSES(AllocateCommandBuffers, (VkDevice d, const VkCommandBufferAllocateInfo *i, VkCommandBuffer *c), (d, i, c))
PASSES(BeginCommandBuffer, (VkCommandBuffer c, const VkCommandBufferBeginInfo *i), (c, i))
PASSES(EndCommandBuffer, (VkCommandBuffer c), (c))

/* ---- what may lie */

static VkResult mock_EnumerateInstanceVersion(uint32_t *v) {
    FAIL(EnumerateInstanceVersion);
    const VkResult r = ((PFN_vkEnumerateInstanceVersion)real_instance(NULL, "vkEnumerateInstanceVersion"))(v);
    if (mock_control.lie == MOCK_INSTANCE_OLD) *v = VK_API_VERSION_1_1;
    return r;
}
static VkResult mock_EnumeratePhysicalDevices(VkInstance i, uint32_t *n, VkPhysicalDevice *out) {
    FAIL(EnumeratePhysicalDevices);
    const VkResult r = REAL(EnumeratePhysicalDevices)(i, n, out);
    if (mock_control.lie == MOCK_NO_DEVICES) *n = 0;
    if (mock_control.lie == MOCK_DEVICES_HUGE) *n = 0x7FFFFFFF;
    return r;
}
static VkResult mock_EnumerateDeviceExtensionProperties(VkPhysicalDevice p, const char *layer, uint32_t *n,
                                                        VkExtensionProperties *out) {
    FAIL(EnumerateDeviceExtensionProperties);
    const VkResult r = REAL(EnumerateDeviceExtensionProperties)(p, layer, n, out);
    if (mock_control.lie == MOCK_EXTENSIONS_HUGE) *n = 0x7FFFFFFF;
    if (out && mock_control.lie == MOCK_BUDGET && *n > 0)
        strcpy(out[0].extensionName, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    return r;
}
static void lie_of_limits(VkPhysicalDeviceProperties *p) {
    if (mock_control.lie == MOCK_DEVICE_OLD) p->apiVersion = VK_API_VERSION_1_0;
    if (mock_control.lie == MOCK_LIMITS_ZERO) memset(&p->limits, 0, sizeof p->limits);
    if (mock_control.lie == MOCK_PUSH_NONE) p->limits.maxPushConstantsSize = 0;
    if (mock_control.lie == MOCK_NAME_WILD) memset(p->deviceName, 7, sizeof p->deviceName);
}
static void mock_GetPhysicalDeviceProperties(VkPhysicalDevice p, VkPhysicalDeviceProperties *out) {
    REAL(GetPhysicalDeviceProperties)(p, out);
    lie_of_limits(out);
}
static void mock_GetPhysicalDeviceProperties2(VkPhysicalDevice p, VkPhysicalDeviceProperties2 *out) {
    REAL(GetPhysicalDeviceProperties2)(p, out);
    lie_of_limits(&out->properties);
    for (VkBaseOutStructure *s = out->pNext; s; s = s->pNext)
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES &&
            mock_control.lie == MOCK_ALLOCATION_TINY)
            ((VkPhysicalDeviceMaintenance3Properties *)(void *)s)->maxMemoryAllocationSize = 4096;
}
static void mock_GetPhysicalDeviceFeatures2(VkPhysicalDevice p, VkPhysicalDeviceFeatures2 *out) {
    REAL(GetPhysicalDeviceFeatures2)(p, out);
    for (VkBaseOutStructure *s = out->pNext; s && mock_control.lie == MOCK_FEATURES_NONE; s = s->pNext)
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES)
            ((VkPhysicalDeviceVulkan12Features *)(void *)s)->bufferDeviceAddress = VK_FALSE;
}
static void mock_GetPhysicalDeviceMemoryProperties2(VkPhysicalDevice p, VkPhysicalDeviceMemoryProperties2 *out) {
    REAL(GetPhysicalDeviceMemoryProperties2)(p, out);
    VkPhysicalDeviceMemoryProperties *m = &out->memoryProperties;
    const mock_lie lie = mock_control.lie;
    for (uint32_t h = 0; h < VK_MAX_MEMORY_HEAPS; h++) {
        if (lie == MOCK_HEAPS_EMPTY) m->memoryHeaps[h].size = 0;
        if (lie == MOCK_HEAPS_TINY) m->memoryHeaps[h].size = mock_control.heap_bytes;
    }
    for (uint32_t t = 0; t < VK_MAX_MEMORY_TYPES; t++) {
        if (lie == MOCK_HEAPS_ASTRAY) m->memoryTypes[t].heapIndex = 77777;
        if (lie == MOCK_TYPES_UNMAPPED)
            m->memoryTypes[t].propertyFlags &= ~(uint32_t)VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT;
    }
    if (lie == MOCK_HEAPS_NONE) m->memoryHeapCount = m->memoryTypeCount = 0;
    if (lie == MOCK_HEAPS_HUGE) m->memoryHeapCount = m->memoryTypeCount = 0x7FFFFFFF;
    for (VkBaseOutStructure *s = out->pNext; s && lie == MOCK_BUDGET; s = s->pNext)
        if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT) {
            VkPhysicalDeviceMemoryBudgetPropertiesEXT *b = (VkPhysicalDeviceMemoryBudgetPropertiesEXT *)(void *)s;
            for (uint32_t h = 0; h < VK_MAX_MEMORY_HEAPS; h++) {
                b->heapBudget[h] = (VkDeviceSize)mock_control.device_bytes + mock_control.heap_bytes;
                b->heapUsage[h] = (VkDeviceSize)mock_control.device_bytes;
            }
        }
}
static void mock_GetPhysicalDeviceQueueFamilyProperties(VkPhysicalDevice p, uint32_t *n, VkQueueFamilyProperties *out) {
    REAL(GetPhysicalDeviceQueueFamilyProperties)(p, n, out);
    for (uint32_t i = 0; out && mock_control.lie == MOCK_QUEUES_GRAPHICS && i < *n; i++)
        out[i].queueFlags = VK_QUEUE_GRAPHICS_BIT;
    if (mock_control.lie == MOCK_QUEUES_NONE) *n = 0;
    if (mock_control.lie == MOCK_QUEUES_HUGE) *n = 0x7FFFFFFF;
}

/* ---- finding them */

static PFN_vkVoidFunction mock_GetDeviceProcAddr(VkDevice d, const char *name);
static PFN_vkVoidFunction mocked(const char *name) {
    static const struct { const char *name; PFN_vkVoidFunction f; } all[] = {
#define X(name) {"vk" #name, (PFN_vkVoidFunction)mock_##name},
        X(CreateBuffer) X(DestroyBuffer) X(CreateFence) X(DestroyFence) X(CreateCommandPool) X(DestroyCommandPool)
        X(CreateShaderModule) X(DestroyShaderModule) X(CreatePipelineLayout) X(DestroyPipelineLayout)
        X(CreatePipelineCache) X(DestroyPipelineCache) X(CreateComputePipelines) X(DestroyPipeline) X(AllocateMemory)
        X(FreeMemory) X(CreateInstance) X(DestroyInstance) X(CreateDevice) X(DestroyDevice) X(DeviceWaitIdle)
        X(QueueSubmit) X(MapMemory) X(BindBufferMemory) X(ResetFences) X(WaitForFences) X(AllocateCommandBuffers)
        X(BeginCommandBuffer) X(EndCommandBuffer) X(EnumerateInstanceVersion) X(EnumeratePhysicalDevices)
        X(EnumerateDeviceExtensionProperties) X(GetPhysicalDeviceProperties) X(GetPhysicalDeviceProperties2)
        X(GetPhysicalDeviceFeatures2) X(GetPhysicalDeviceMemoryProperties2)
        X(GetPhysicalDeviceQueueFamilyProperties) X(GetDeviceProcAddr)
#undef X
    };
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++)
        if (strcmp(all[i].name, name) == 0) return all[i].f;
    return NULL;
}
static PFN_vkVoidFunction found(const char *name, PFN_vkVoidFunction f) {
    if (mock_control.missing && strcmp(mock_control.missing, name) == 0) {
        mock_control.missed++;
        return NULL;
    }
    PFN_vkVoidFunction m = f ? mocked(name) : NULL;
    return m ? m : f;
}
static PFN_vkVoidFunction mock_GetDeviceProcAddr(VkDevice d, const char *name) {
    return found(name, real_device(d, name));
}

EXPORT PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char *name);
PFN_vkVoidFunction vkGetInstanceProcAddr(VkInstance instance, const char *name) {
    if (!real_instance) {
        void *library = mock_control.real ? dlopen(mock_control.real, RTLD_NOW | RTLD_LOCAL) : NULL;
        void *f = library ? dlsym(library, "vkGetInstanceProcAddr") : NULL;
        if (!f) return NULL;
        memcpy(&real_instance, &f, sizeof f);
    }
    return found(name, real_instance(instance, name));
}
