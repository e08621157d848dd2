/* vk_device.c: chooses and opens a device: what it must offer (tier 0), its queue, and what it is called.
 *
 * Tier 0 is what every shader here is written for: Vulkan 1.2, a queue for computing, loads of 8 and 16 bits, buffer
 * device addresses, and the limits below; a device that lacks one is refused with its name. What a driver says of
 * itself is checked before it is used as a count or an index. A device that was lost fails every later call at once and
 * can only be closed. Layer L2. */
#include "vulkan.h"

#include <stdio.h>

enum {
    GROUP = 256,              /* invocations of a workgroup, at most, along x */
    GROUPS = 65535,           /* workgroups along a dimension */
    SHARED = 32 << 10,        /* bytes of shared memory of a workgroup */
    LEAST_BUFFER = 16 << 20,  /* a driver that allows less than this in one allocation is not believed */
    FAMILIES = 64,
    EXTENSIONS = 4096
};
/* Offsets in buffers are 32 bits in places: no buffer is larger. */
#define MOST_BUFFER (UINT64_C(1) << 32)

/* ------------------------------------------------------------------------------------------------------- results */

static void mark_lost(q_device *dev) { __atomic_store_n(&dev->lost, 1, __ATOMIC_RELAXED); }
static bool is_lost(const q_device *dev) { return __atomic_load_n(&dev->lost, __ATOMIC_RELAXED) != 0; }

lq_status q_vk_result(q_device *dev, VkResult r, const char *what) {
    if (r == VK_SUCCESS) return LQ_OK;
    if (r == VK_ERROR_DEVICE_LOST) mark_lost(dev);
    const bool memory = r == VK_ERROR_OUT_OF_HOST_MEMORY || r == VK_ERROR_OUT_OF_DEVICE_MEMORY;
    return q_fail(memory ? LQ_E_NOMEM : LQ_E_DEVICE, "vulkan:%u (%s): vk%s failed: %s (%d)", dev->index, dev->name,
                  what, q_vk_result_name(r), (int)r);
}

lq_status q_vk_alive(const q_device *dev) {
    if (!is_lost(dev)) return LQ_OK;
    return q_fail(LQ_E_DEVICE, "vulkan:%u (%s) was lost: its driver gave it up", dev->index, dev->name);
}

lq_status q_vk_submit(q_device *dev, const VkCommandBuffer *commands, uint32_t n, VkFence fence) {
    const VkSubmitInfo info = {.sType = VK_STRUCTURE_TYPE_SUBMIT_INFO, .commandBufferCount = n,
                               .pCommandBuffers = commands};
    Q_TRY(q_vk_result(dev, dev->vk.ResetFences(dev->handle, 1, &fence), "ResetFences"));
    q_mutex_lock(&dev->queue_lock);
    const VkResult r = dev->vk.QueueSubmit(dev->queue, 1, &info, fence);
    q_mutex_unlock(&dev->queue_lock);
    return q_vk_result(dev, r, "QueueSubmit");
}

lq_status q_vk_wait(q_device *dev, VkFence fence) {
    return q_vk_result(dev, dev->vk.WaitForFences(dev->handle, 1, &fence, VK_TRUE, UINT64_MAX), "WaitForFences");
}

void q_vk_idle(q_device *dev) {
    q_mutex_lock(&dev->queue_lock);
    /* Where it fails, what is freed next may still be in use: nothing more can be asked of this device. */
    if (dev->vk.DeviceWaitIdle(dev->handle) != VK_SUCCESS) mark_lost(dev);
    q_mutex_unlock(&dev->queue_lock);
}

void q_vk_settle(q_device *dev, VkFence fence) {
    if (is_lost(dev) || dev->vk.WaitForFences(dev->handle, 1, &fence, VK_TRUE, UINT64_MAX) != VK_SUCCESS)
        q_vk_idle(dev);
}

void q_vk_barrier(const q_device *dev, VkCommandBuffer commands, bool to_host) {
    const VkPipelineStageFlags work = VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT;
    const VkAccessFlags write = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    const VkAccessFlags any = write | VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_TRANSFER_READ_BIT;
    const VkMemoryBarrier b = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER, .srcAccessMask = write,
                               .dstAccessMask = to_host ? any | VK_ACCESS_HOST_READ_BIT : any};
    dev->vk.CmdPipelineBarrier(commands, work, to_host ? work | VK_PIPELINE_STAGE_HOST_BIT : work, 0, 1, &b, 0, NULL, 0,
                               NULL);
}

/* ---------------------------------------------------------------------------------------------------- what it is */

/* Text of a driver, which may lack its end or hold anything. */
static void plain_text(char *to, size_t n, const char *from, size_t most) {
    size_t i = 0;
    for (; i + 1 < n && i < most && from[i]; i++) to[i] = from[i] >= ' ' && from[i] <= '~' ? from[i] : '?';
    to[i] = 0;
}

static lq_status refuse(const q_device *dev, const char *what, uint64_t has, uint64_t needs) {
    return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) allows %llu %s; %llu are needed", dev->index, dev->name,
                  (unsigned long long)has, what, (unsigned long long)needs);
}

static lq_status check_limits(q_device *dev, const VkPhysicalDeviceLimits *l) {
    const struct {
        const char *what;
        uint64_t has, needs;
    } limits[] = {
        {"bytes of push constants", l->maxPushConstantsSize, sizeof(q_vk_push)},
        {"bytes of shared memory", l->maxComputeSharedMemorySize, SHARED},
        {"invocations in a workgroup", l->maxComputeWorkGroupInvocations, GROUP},
        {"invocations along x in a workgroup", l->maxComputeWorkGroupSize[0], GROUP},
        {"workgroups along x", l->maxComputeWorkGroupCount[0], GROUPS},
        {"workgroups along y", l->maxComputeWorkGroupCount[1], GROUPS},
        {"workgroups along z", l->maxComputeWorkGroupCount[2], GROUPS},
    };
    for (size_t i = 0; i < Q_COUNT(limits); i++)
        if (limits[i].has < limits[i].needs) return refuse(dev, limits[i].what, limits[i].has, limits[i].needs);
    for (int i = 0; i < 3; i++) dev->most_groups[i] = l->maxComputeWorkGroupCount[i];
    return LQ_OK;
}

static bool has_extension(const VkExtensionProperties *list, uint32_t n, const char *name) {
    for (uint32_t i = 0; i < n; i++)
        if (strncmp(list[i].extensionName, name, sizeof list[i].extensionName) == 0) return true;
    return false;
}

/* The two extensions whose answers are worth having. */
static lq_status look_for_extensions(q_device *dev, bool *has_budget, bool *has_most) {
    uint32_t n = 0;
    VkResult r = dev->vk.EnumerateDeviceExtensionProperties(dev->physical, NULL, &n, NULL);
    if (r != VK_SUCCESS) return q_vk_result(dev, r, "EnumerateDeviceExtensionProperties");
    if (n > EXTENSIONS)
        return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) lists %u extensions: not believed", dev->index, dev->name, n);
    VkExtensionProperties *list = Q_NEW(dev->alloc, VkExtensionProperties, n);
    if (!list) return LQ_E_NOMEM;
    const uint32_t room = n;
    r = dev->vk.EnumerateDeviceExtensionProperties(dev->physical, NULL, &n, list);
    n = Q_MIN(n, room);
    *has_budget = r == VK_SUCCESS && has_extension(list, n, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME);
    *has_most = r == VK_SUCCESS && has_extension(list, n, VK_KHR_MAINTENANCE_4_EXTENSION_NAME);
    q_delete(dev->alloc, list);
    return r == VK_INCOMPLETE ? LQ_OK : q_vk_result(dev, r, "EnumerateDeviceExtensionProperties");
}

/* Name, version, limits. */
static lq_status look_at_properties(q_device *dev) {
    VkPhysicalDeviceProperties head = {0};
    bool has_most;
    dev->vk.GetPhysicalDeviceProperties(dev->physical, &head);
    plain_text(dev->name, sizeof dev->name, head.deviceName, sizeof head.deviceName);
    if (head.apiVersion < VK_API_VERSION_1_2)
        return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) offers Vulkan %u.%u; 1.2 is needed", dev->index, dev->name,
                      VK_API_VERSION_MAJOR(head.apiVersion), VK_API_VERSION_MINOR(head.apiVersion));
    Q_TRY(look_for_extensions(dev, &dev->has_budget, &has_most));
    VkPhysicalDeviceMaintenance4PropertiesKHR four = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES_KHR};
    VkPhysicalDeviceMaintenance3Properties three = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES, .pNext = has_most ? &four : NULL};
    VkPhysicalDeviceDriverProperties driver = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES,
                                               .pNext = &three};
    VkPhysicalDeviceProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2, .pNext = &driver};
    dev->vk.GetPhysicalDeviceProperties2(dev->physical, &all);
    char text[64];
    plain_text(text, sizeof text, driver.driverInfo, sizeof driver.driverInfo);
    const size_t n = strlen(dev->name);
    if (text[0]) snprintf(dev->name + n, sizeof dev->name - n, ", %s", text);
    Q_TRY(check_limits(dev, &all.properties.limits));
    dev->most = Q_MIN((uint64_t)three.maxMemoryAllocationSize, MOST_BUFFER - Q_VK_ROUND);
    if (has_most) dev->most = Q_MIN(dev->most, (uint64_t)four.maxBufferSize);
    dev->most &= ~(uint64_t)(Q_VK_ROUND - 1);
    if (dev->most < LEAST_BUFFER) return refuse(dev, "bytes in one allocation", dev->most, LEAST_BUFFER);
    return LQ_OK;
}

static lq_status look_at_features(q_device *dev) {
    VkPhysicalDeviceVulkan12Features two = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceVulkan11Features one = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                            .pNext = &two};
    VkPhysicalDeviceFeatures2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, .pNext = &one};
    dev->vk.GetPhysicalDeviceFeatures2(dev->physical, &all);
    const char *lacks = !two.bufferDeviceAddress         ? "buffer device addresses (bufferDeviceAddress)"
                        : !two.storageBuffer8BitAccess   ? "loads of 8 bits (storageBuffer8BitAccess)"
                        : !one.storageBuffer16BitAccess  ? "loads of 16 bits (storageBuffer16BitAccess)"
                                                         : NULL;
    if (!lacks) return LQ_OK;
    return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) lacks %s", dev->index, dev->name, lacks);
}

static lq_status look_at_queues(q_device *dev) {
    VkQueueFamilyProperties families[FAMILIES] = {0};
    uint32_t n = FAMILIES;
    dev->vk.GetPhysicalDeviceQueueFamilyProperties(dev->physical, &n, families);
    n = Q_MIN(n, (uint32_t)FAMILIES); /* a count beyond the room it was given is no count */
    for (uint32_t i = 0; i < n; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) || families[i].queueCount == 0) continue;
        dev->family = i;
        return LQ_OK;
    }
    return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) has no queue for computing", dev->index, dev->name);
}

static lq_status look_at_memory(q_device *dev) {
    VkPhysicalDeviceMemoryProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2};
    dev->vk.GetPhysicalDeviceMemoryProperties2(dev->physical, &all);
    const VkPhysicalDeviceMemoryProperties *m = &all.memoryProperties;
    if (m->memoryTypeCount == 0 || m->memoryTypeCount > VK_MAX_MEMORY_TYPES || m->memoryHeapCount == 0 ||
        m->memoryHeapCount > VK_MAX_MEMORY_HEAPS)
        return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) lists %u types of memory in %u heaps: not believed", dev->index,
                      dev->name, m->memoryTypeCount, m->memoryHeapCount);
    for (uint32_t i = 0; i < m->memoryTypeCount; i++)
        if (m->memoryTypes[i].heapIndex >= m->memoryHeapCount)
            return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) puts memory type %u into heap %u of %u", dev->index,
                          dev->name, i, m->memoryTypes[i].heapIndex, m->memoryHeapCount);
    dev->memory = *m;
    if (q_vk_memory_type(dev, Q_VK_LOCAL, UINT32_MAX) < 0 || q_vk_memory_type(dev, Q_VK_HOST, UINT32_MAX) < 0)
        return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) has no memory of its own, or none that the processor can map",
                      dev->index, dev->name);
    return LQ_OK;
}

uint64_t q_vk_available(const q_device *dev, uint32_t heap) {
    const uint64_t size = dev->memory.memoryHeaps[heap].size;
    const uint64_t used = __atomic_load_n(&dev->used[heap], __ATOMIC_RELAXED);
    const uint64_t left = size > used ? size - used : 0;
    if (!dev->has_budget) return left;
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 all = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2,
                                             .pNext = &budget};
    dev->vk.GetPhysicalDeviceMemoryProperties2(dev->physical, &all);
    const uint64_t may = budget.heapBudget[heap], has = budget.heapUsage[heap];
    if (may == 0) return left; /* an empty answer */
    return Q_MIN(left, may > has ? may - has : 0);
}

/* ---------------------------------------------------------------------------------------------------- open, close */

static lq_status make_device(q_device *dev) {
    const float priority = 1.0f;
    VkPhysicalDeviceVulkan12Features two = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
                                            .storageBuffer8BitAccess = VK_TRUE, .bufferDeviceAddress = VK_TRUE};
    VkPhysicalDeviceVulkan11Features one = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_FEATURES,
                                            .pNext = &two, .storageBuffer16BitAccess = VK_TRUE};
    const VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                           .queueFamilyIndex = dev->family, .queueCount = 1,
                                           .pQueuePriorities = &priority};
    const VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO, .pNext = &one,
                                     .queueCreateInfoCount = 1, .pQueueCreateInfos = &queue};
    VkDevice handle = NULL;
    Q_TRY(q_vk_result(dev, dev->vk.CreateDevice(dev->physical, &info, NULL, &handle), "CreateDevice"));
    dev->handle = handle;
    const lq_status s = q_vk_api_device(&dev->vk, handle);
    if (s != LQ_OK) return q_fail_in(s, "vulkan:%u (%s)", dev->index, dev->name);
    dev->vk.GetDeviceQueue(handle, dev->family, 0, &dev->queue);
    if (!dev->queue) return q_fail(LQ_E_DEVICE, "vulkan:%u (%s) gives no queue", dev->index, dev->name);
    return LQ_OK;
}

static lq_status make_layout(q_device *dev) {
    const VkPushConstantRange range = {.stageFlags = VK_SHADER_STAGE_COMPUTE_BIT, .size = sizeof(q_vk_push)};
    const VkPipelineLayoutCreateInfo layout = {.sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
                                               .pushConstantRangeCount = 1, .pPushConstantRanges = &range};
    const VkPipelineCacheCreateInfo cache = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    Q_TRY(q_vk_result(dev, dev->vk.CreatePipelineLayout(dev->handle, &layout, NULL, &dev->layout),
                      "CreatePipelineLayout"));
    return q_vk_result(dev, dev->vk.CreatePipelineCache(dev->handle, &cache, NULL, &dev->cache), "CreatePipelineCache");
}

static lq_status open_parts(q_device *dev) {
    VkPhysicalDevice devices[Q_VK_DEVICES];
    Q_TRY(q_mutex_open(&dev->queue_lock));
    dev->locks[0] = true;
    Q_TRY(q_mutex_open(&dev->lock));
    dev->locks[1] = true;
    uint32_t n = 0;
    lq_status s = q_vk_api_open(&dev->vk);
    if (s == LQ_OK) s = q_vk_api_devices(&dev->vk, devices, &n);
    if (s != LQ_OK) return q_fail_in(s, "vulkan:%u", dev->index);
    if (n == 0) return q_fail(LQ_E_ARG, "vulkan:%u: Vulkan finds no device on this system", dev->index);
    if (dev->index >= n)
        return q_fail(LQ_E_ARG, "vulkan:%u: there %s %u Vulkan device%s, counted from 0", dev->index,
                      n == 1 ? "is" : "are", n, n == 1 ? "" : "s");
    dev->physical = devices[dev->index];
    if (!dev->physical) return q_fail(LQ_E_DEVICE, "vulkan:%u is counted but not there", dev->index);
    Q_TRY(look_at_properties(dev));
    Q_TRY(look_at_features(dev));
    Q_TRY(look_at_queues(dev));
    Q_TRY(look_at_memory(dev));
    Q_TRY(make_device(dev));
    Q_TRY(make_layout(dev));
    return q_vk_staging_open(dev);
}

lq_status q_vk_open(uint32_t index, const q_device_options *options, q_device **out) {
    const q_alloc *alloc = options && options->alloc ? options->alloc : &q_alloc_libc;
    q_device *dev = Q_NEW(alloc, q_device, 1);
    if (!dev) return LQ_E_NOMEM;
    dev->alloc = alloc;
    dev->log = options ? options->log : NULL;
    dev->index = index;
    const lq_status s = open_parts(dev);
    if (s != LQ_OK) {
        q_vk_close(dev);
        return s;
    }
    q_log_write(dev->log, LQ_LOG_DEBUG, "vulkan:%u is %s, with %llu bytes of memory left", index, dev->name,
                (unsigned long long)q_vk_available(dev, q_vk_local_heap(dev)));
    *out = dev;
    return LQ_OK;
}

void q_vk_close(q_device *dev) {
    if (!dev) return;
    /* Without the function the device cannot be destroyed: the instance was incomplete then, and open failed. */
    if (dev->handle && dev->vk.DestroyDevice) {
        if (dev->vk.DeviceWaitIdle && dev->queue) q_vk_idle(dev);
        q_vk_staging_close(dev);
        q_vk_pipelines_close(dev);
        if (dev->cache) dev->vk.DestroyPipelineCache(dev->handle, dev->cache, NULL);
        if (dev->layout) dev->vk.DestroyPipelineLayout(dev->handle, dev->layout, NULL);
        dev->vk.DestroyDevice(dev->handle, NULL);
    }
    q_vk_api_close(&dev->vk);
    if (dev->locks[1]) q_mutex_close(&dev->lock);
    if (dev->locks[0]) q_mutex_close(&dev->queue_lock);
    q_delete(dev->alloc, dev);
}

void q_vk_info(const q_device *dev, lq_device_info *info) {
    info->threads = 0;
    snprintf(info->name, sizeof info->name, "vulkan:%u", dev->index);
    snprintf(info->description, sizeof info->description, "%s", dev->name);
    snprintf(info->isa, sizeof info->isa, "tier 0");
    info->memory = q_vk_available(dev, q_vk_local_heap(dev));
}

q_need q_vk_held(const q_device *dev) {
    return (q_need){.host = sizeof *dev + Q_ALIGN, .device = dev->staging.takes};
}
