/* vk_memory.c: buffers of a device, and bytes in and out of them.
 *
 * A buffer has one allocation to itself: whoever needs many small things lays them out in one. Bytes travel by way of
 * two blocks of staging memory that take turns: while the device copies one, the caller fills the other, so that a file
 * is read and uploaded at the same time. All transfers go through the one queue and stand between barriers there, which
 * is why whatever is asked later finds them done. One lock guards staging; copies to a block happen under it. Layer
 * L2. */
#include "vulkan.h"

/* ------------------------------------------------------------------------------------------------ types and sizes */

enum {
    LOCAL = VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT,
    MAPPED = VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | VK_MEMORY_PROPERTY_HOST_COHERENT_BIT,
    CACHED = VK_MEMORY_PROPERTY_HOST_CACHED_BIT
};

/* The first type that has all of `has` and none of `lacks`; never one of a special kind, which needs features of its
 * own (protected, lazily allocated, uncached by the device). Among those of the device, one in the largest heap. */
static int32_t find_type(const VkPhysicalDeviceMemoryProperties *m, uint32_t mask, uint32_t has, uint32_t lacks) {
    int32_t best = -1;
    uint64_t most = 0;
    for (uint32_t i = 0; i < m->memoryTypeCount; i++) {
        const uint32_t flags = m->memoryTypes[i].propertyFlags;
        const uint64_t size = m->memoryHeaps[m->memoryTypes[i].heapIndex].size;
        if (!(mask >> i & 1) || (flags & has) != has || (flags & lacks) || flags & ~(uint32_t)(LOCAL | MAPPED | CACHED))
            continue;
        if (size <= most) continue; /* an empty heap is none */
        best = (int32_t)i;
        most = size;
    }
    return best;
}

int32_t q_vk_memory_type(const q_device *dev, q_vk_where where, uint32_t mask) {
    /* Staging best lies in the processor's memory, in its caches; the device's own, mapped, is a small window. */
    static const uint32_t local[][2] = {{LOCAL, VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT}, {LOCAL, 0}};
    static const uint32_t host[][2] = {{MAPPED | CACHED, LOCAL}, {MAPPED, LOCAL}, {MAPPED | CACHED, 0}, {MAPPED, 0}};
    const uint32_t(*wanted)[2] = where == Q_VK_LOCAL ? local : host;
    const size_t n = where == Q_VK_LOCAL ? Q_COUNT(local) : Q_COUNT(host);
    for (size_t i = 0; i < n; i++) {
        const int32_t type = find_type(&dev->memory, mask, wanted[i][0], wanted[i][1]);
        if (type >= 0) return type;
    }
    return -1;
}

uint32_t q_vk_local_heap(const q_device *dev) {
    const int32_t type = q_vk_memory_type(dev, Q_VK_LOCAL, UINT32_MAX);
    return type < 0 ? 0 : dev->memory.memoryTypes[type].heapIndex;
}

static VkResult make_buffer(const q_device *dev, uint64_t bytes, VkBuffer *out, VkMemoryRequirements *needs) {
    const VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                                     .size = q_round_up(Q_MAX(bytes, (uint64_t)1), Q_VK_ROUND),
                                     .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                                              VK_BUFFER_USAGE_TRANSFER_DST_BIT |
                                              VK_BUFFER_USAGE_SHADER_DEVICE_ADDRESS_BIT};
    *out = VK_NULL_HANDLE;
    const VkResult r = dev->vk.CreateBuffer(dev->handle, &info, NULL, out);
    if (r != VK_SUCCESS) return r;
    *needs = (VkMemoryRequirements){0};
    dev->vk.GetBufferMemoryRequirements(dev->handle, *out, needs);
    return VK_SUCCESS;
}

static lq_status too_large(const q_device *dev, uint64_t bytes) {
    return q_fail(LQ_E_NOMEM, "vulkan:%u (%s): a buffer of %llu bytes; it allows %llu", dev->index, dev->name,
                  (unsigned long long)bytes, (unsigned long long)dev->most);
}

lq_status q_vk_memory_takes(q_device *dev, uint64_t bytes, uint64_t *takes) {
    VkBuffer buffer;
    VkMemoryRequirements needs;
    if (bytes > dev->most) return too_large(dev, bytes);
    Q_TRY(q_vk_result(dev, make_buffer(dev, bytes, &buffer, &needs), "CreateBuffer"));
    dev->vk.DestroyBuffer(dev->handle, buffer, NULL);
    *takes = needs.size;
    return LQ_OK;
}

/* -------------------------------------------------------------------------------------------------------- memory */

static lq_status no_room(const q_device *dev, uint64_t bytes, uint32_t heap) {
    return q_fail(LQ_E_NOMEM, "vulkan:%u (%s) has no room for %llu bytes: %llu of its %llu are available", dev->index,
                  dev->name, (unsigned long long)bytes, (unsigned long long)q_vk_available(dev, heap),
                  (unsigned long long)dev->memory.memoryHeaps[heap].size);
}

static lq_status take_memory(q_device *dev, q_vk_where where, const VkMemoryRequirements *needs, q_vk_memory *m) {
    const int32_t type = q_vk_memory_type(dev, where, needs->memoryTypeBits);
    if (type < 0)
        return q_fail(LQ_E_UNSUPPORTED, "vulkan:%u (%s) has no memory that a buffer may lie in", dev->index, dev->name);
    const uint32_t heap = dev->memory.memoryTypes[type].heapIndex;
    const uint64_t size = dev->memory.memoryHeaps[heap].size;
    /* A driver with a budget knows better what is left; one without may promise what the system does not have. */
    if (needs->size > (dev->has_budget ? size : q_vk_available(dev, heap))) return no_room(dev, needs->size, heap);
    const VkMemoryAllocateFlagsInfo flags = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_FLAGS_INFO,
                                             .flags = VK_MEMORY_ALLOCATE_DEVICE_ADDRESS_BIT};
    const VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO, .pNext = &flags,
                                       .allocationSize = needs->size, .memoryTypeIndex = (uint32_t)type};
    const VkResult r = dev->vk.AllocateMemory(dev->handle, &info, NULL, &m->memory);
    if (r != VK_SUCCESS) m->memory = VK_NULL_HANDLE;
    if (r == VK_ERROR_OUT_OF_DEVICE_MEMORY || r == VK_ERROR_OUT_OF_HOST_MEMORY) return no_room(dev, needs->size, heap);
    Q_TRY(q_vk_result(dev, r, "AllocateMemory"));
    m->takes = needs->size;
    m->heap = heap;
    __atomic_add_fetch(&dev->used[heap], m->takes, __ATOMIC_RELAXED);
    return LQ_OK;
}

static lq_status open_memory(q_device *dev, q_vk_where where, uint64_t bytes, q_vk_memory *m) {
    VkMemoryRequirements needs;
    Q_TRY(q_vk_result(dev, make_buffer(dev, bytes, &m->buffer, &needs), "CreateBuffer"));
    if (needs.size < bytes)
        return q_fail(LQ_E_DEVICE, "vulkan:%u (%s) gives a buffer of %llu bytes only %llu", dev->index, dev->name,
                      (unsigned long long)bytes, (unsigned long long)needs.size);
    Q_TRY(take_memory(dev, where, &needs, m));
    Q_TRY(q_vk_result(dev, dev->vk.BindBufferMemory(dev->handle, m->buffer, m->memory, 0), "BindBufferMemory"));
    const VkBufferDeviceAddressInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_DEVICE_ADDRESS_INFO, .buffer = m->buffer};
    m->address = dev->vk.GetBufferDeviceAddress(dev->handle, &info);
    if (where == Q_VK_HOST) {
        void *p = NULL;
        Q_TRY(q_vk_result(dev, dev->vk.MapMemory(dev->handle, m->memory, 0, VK_WHOLE_SIZE, 0, &p), "MapMemory"));
        m->host = p;
    }
    if (m->address == 0 || m->address % 16 != 0 || (where == Q_VK_HOST && !m->host))
        return q_fail(LQ_E_DEVICE, "vulkan:%u (%s) gives a buffer the address 0x%llx", dev->index, dev->name,
                      (unsigned long long)m->address);
    return LQ_OK;
}

lq_status q_vk_memory_open(q_device *dev, q_vk_where where, uint64_t bytes, q_vk_memory *out) {
    q_vk_memory m = {0};
    if (bytes > dev->most) return too_large(dev, bytes);
    const lq_status s = open_memory(dev, where, bytes, &m);
    if (s == LQ_OK) *out = m;
    else q_vk_memory_close(dev, &m);
    return s;
}

void q_vk_memory_close(q_device *dev, q_vk_memory *m) {
    if (m->buffer) dev->vk.DestroyBuffer(dev->handle, m->buffer, NULL);
    if (m->memory) {
        dev->vk.FreeMemory(dev->handle, m->memory, NULL); /* a mapping goes with it */
        __atomic_sub_fetch(&dev->used[m->heap], m->takes, __ATOMIC_RELAXED);
    }
    *m = (q_vk_memory){0};
}

/* ------------------------------------------------------------------------------------------------------- staging */

lq_status q_vk_staging_open(q_device *dev) {
    const VkCommandPoolCreateInfo pool = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                          .flags = VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT,
                                          .queueFamilyIndex = dev->family};
    const VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    Q_TRY(q_vk_memory_open(dev, Q_VK_HOST, 2 * (uint64_t)Q_VK_STAGING, &dev->staging));
    Q_TRY(q_vk_result(dev, dev->vk.CreateCommandPool(dev->handle, &pool, NULL, &dev->pool), "CreateCommandPool"));
    for (uint32_t i = 0; i < 2; i++) {
        q_vk_block *b = &dev->block[i];
        const VkCommandBufferAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
                                                  .commandPool = dev->pool,
                                                  .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY, .commandBufferCount = 1};
        b->at = i * (uint64_t)Q_VK_STAGING;
        Q_TRY(q_vk_result(dev, dev->vk.CreateFence(dev->handle, &fence, NULL, &b->fence), "CreateFence"));
        Q_TRY(q_vk_result(dev, dev->vk.AllocateCommandBuffers(dev->handle, &info, &b->commands),
                          "AllocateCommandBuffers"));
    }
    return LQ_OK;
}

void q_vk_staging_close(q_device *dev) {
    for (uint32_t i = 0; i < 2; i++)
        if (dev->block[i].fence) dev->vk.DestroyFence(dev->handle, dev->block[i].fence, NULL);
    if (dev->pool) dev->vk.DestroyCommandPool(dev->handle, dev->pool, NULL);
    q_vk_memory_close(dev, &dev->staging);
}

/* Under the lock from here on: the block is the caller's when its last copy is done. */
static lq_status finish(q_device *dev, q_vk_block *b) {
    if (!b->busy) return LQ_OK;
    Q_TRY(q_vk_wait(dev, b->fence));
    b->busy = false;
    return LQ_OK;
}

static lq_status begin(q_device *dev, q_vk_block **out) {
    q_vk_block *b = &dev->block[dev->turn];
    const VkCommandBufferBeginInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
                                           .flags = VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT};
    dev->turn ^= 1;
    Q_TRY(finish(dev, b));
    Q_TRY(q_vk_result(dev, dev->vk.BeginCommandBuffer(b->commands, &info), "BeginCommandBuffer"));
    q_vk_barrier(dev, b->commands, false);
    *out = b;
    return LQ_OK;
}

static lq_status submit(q_device *dev, q_vk_block *b) {
    q_vk_barrier(dev, b->commands, true);
    Q_TRY(q_vk_result(dev, dev->vk.EndCommandBuffer(b->commands), "EndCommandBuffer"));
    Q_TRY(q_vk_submit(dev, &b->commands, 1, b->fence));
    b->busy = true;
    return LQ_OK;
}

static void copy_bytes(const q_device *dev, VkCommandBuffer commands, VkBuffer src, uint64_t from, VkBuffer dst,
                       uint64_t to, uint64_t n) {
    const VkBufferCopy region = {.srcOffset = from, .dstOffset = to, .size = n};
    dev->vk.CmdCopyBuffer(commands, src, dst, 1, &region);
}

static lq_status upload(q_device *dev, VkBuffer dst, uint64_t offset, const uint8_t *src, uint64_t n) {
    for (uint64_t done = 0, part; done < n; done += part) {
        q_vk_block *b;
        part = Q_MIN(n - done, (uint64_t)Q_VK_STAGING);
        Q_TRY(begin(dev, &b));
        memcpy(dev->staging.host + b->at, src + done, (size_t)part);
        copy_bytes(dev, b->commands, dev->staging.buffer, b->at, dst, offset + done, part);
        Q_TRY(submit(dev, b));
    }
    return LQ_OK;
}

static lq_status download(q_device *dev, VkBuffer src, uint64_t offset, uint8_t *dst, uint64_t n) {
    for (uint64_t done = 0, part; done < n; done += part) {
        q_vk_block *b;
        part = Q_MIN(n - done, (uint64_t)Q_VK_STAGING);
        Q_TRY(begin(dev, &b));
        copy_bytes(dev, b->commands, src, offset + done, dev->staging.buffer, b->at, part);
        Q_TRY(submit(dev, b));
        Q_TRY(finish(dev, b));
        memcpy(dst + done, dev->staging.host + b->at, (size_t)part);
    }
    return LQ_OK;
}

static lq_status fill(q_device *dev, VkBuffer dst) {
    q_vk_block *b;
    Q_TRY(begin(dev, &b));
    dev->vk.CmdFillBuffer(b->commands, dst, 0, VK_WHOLE_SIZE, 0);
    return submit(dev, b);
}

/* Within one buffer, ranges that overlap: by way of staging, from the end that is not overwritten first. */
static lq_status move(q_device *dev, VkBuffer buffer, uint64_t to, uint64_t from, uint64_t n) {
    for (uint64_t done = 0, part; done < n; done += part) {
        q_vk_block *b;
        part = Q_MIN(n - done, (uint64_t)Q_VK_STAGING);
        const uint64_t at = to < from ? done : n - done - part;
        Q_TRY(begin(dev, &b));
        copy_bytes(dev, b->commands, buffer, from + at, dev->staging.buffer, b->at, part);
        q_vk_barrier(dev, b->commands, false);
        copy_bytes(dev, b->commands, dev->staging.buffer, b->at, buffer, to + at, part);
        Q_TRY(submit(dev, b));
    }
    return LQ_OK;
}

static lq_status copy(q_device *dev, VkBuffer dst, uint64_t to, VkBuffer src, uint64_t from, uint64_t n) {
    q_vk_block *b;
    if (dst == src && to < from + n && from < to + n) return move(dev, dst, to, from, n);
    Q_TRY(begin(dev, &b));
    copy_bytes(dev, b->commands, src, from, dst, to, n);
    return submit(dev, b);
}

void q_vk_settle_staging(q_device *dev) {
    q_mutex_lock(&dev->lock);
    for (int i = 0; i < 2; i++) {
        if (dev->block[i].busy) q_vk_settle(dev, dev->block[i].fence);
        dev->block[i].busy = false;
    }
    q_mutex_unlock(&dev->lock);
}

/* Both blocks, whatever the first one says. */
static lq_status finish_all(q_device *dev) {
    const lq_status one = finish(dev, &dev->block[0]), two = finish(dev, &dev->block[1]);
    return one != LQ_OK ? one : two;
}

/* ------------------------------------------------------------------------------------------------------- buffers */

uint64_t q_vk_alloc_most(const q_device *dev) { return dev->most; }

uint64_t q_vk_alloc_bytes(const q_device *dev, uint64_t bytes) {
    VkBuffer buffer;
    VkMemoryRequirements needs;
    const uint64_t otherwise = bytes > UINT64_MAX / 8 ? bytes : q_round_up(Q_MAX(bytes, (uint64_t)1), Q_VK_ROUND);
    /* alloc refuses */
    if (bytes > dev->most || make_buffer(dev, bytes, &buffer, &needs) != VK_SUCCESS) return otherwise;
    dev->vk.DestroyBuffer(dev->handle, buffer, NULL);
    return needs.size;
}

/* A place in the table: marked, so that another thread does not take it too. */
static q_vk_memory *take_place(q_device *dev) {
    q_vk_memory *place = NULL;
    q_mutex_lock(&dev->lock);
    for (uint32_t i = 0; i < Q_VK_BUFFERS && !place; i++)
        if (dev->buffers[i].takes == 0) place = &dev->buffers[i];
    if (place) place->takes = UINT64_MAX;
    q_mutex_unlock(&dev->lock);
    return place;
}
static void give_place(q_device *dev, q_vk_memory *place) {
    q_mutex_lock(&dev->lock);
    *place = (q_vk_memory){0};
    q_mutex_unlock(&dev->lock);
}

lq_status q_vk_alloc(q_device *dev, uint64_t bytes, q_buffer *out) {
    q_vk_memory m = {0};
    Q_TRY(q_vk_alive(dev));
    q_vk_memory *place = take_place(dev);
    if (!place)
        return q_fail(LQ_E_LIMIT, "vulkan:%u (%s): more than %d buffers", dev->index, dev->name, (int)Q_VK_BUFFERS);
    lq_status s = q_vk_memory_open(dev, Q_VK_LOCAL, bytes, &m);
    if (s != LQ_OK) {
        give_place(dev, place);
        return s;
    }
    q_mutex_lock(&dev->lock);
    *place = m;
    s = fill(dev, m.buffer);
    q_mutex_unlock(&dev->lock);
    *out = (q_buffer){.device = m.address, .bytes = bytes, .handle = place};
    if (s != LQ_OK) q_vk_free(dev, out);
    return s;
}

void q_vk_free(q_device *dev, q_buffer *buffer) {
    q_vk_memory *place = buffer->handle;
    *buffer = (q_buffer){0};
    if (!place) return;
    q_vk_settle_staging(dev);
    q_vk_memory m = *place;
    q_vk_memory_close(dev, &m);
    give_place(dev, place);
}

static lq_status check_range(const q_buffer *b, uint64_t offset, uint64_t n) {
    if (b->handle && n <= b->bytes && offset <= b->bytes - n) return LQ_OK;
    return q_fail(LQ_E_INTERNAL, "%llu bytes at %llu lie outside a buffer of %llu bytes", (unsigned long long)n,
                  (unsigned long long)offset, (unsigned long long)b->bytes);
}
static VkBuffer handle_of(const q_buffer *b) { return ((const q_vk_memory *)b->handle)->buffer; }

lq_status q_vk_upload(q_device *dev, VkBuffer dst, uint64_t offset, const void *src, uint64_t n) {
    Q_TRY(q_vk_alive(dev));
    q_mutex_lock(&dev->lock);
    const lq_status s = upload(dev, dst, offset, src, n);
    q_mutex_unlock(&dev->lock);
    return s;
}

lq_status q_vk_write(q_device *dev, q_buffer *dst, uint64_t offset, const void *src, uint64_t n) {
    if (n == 0) return q_vk_alive(dev);
    Q_TRY(check_range(dst, offset, n));
    return q_vk_upload(dev, handle_of(dst), offset, src, n);
}

lq_status q_vk_flush(q_device *dev) {
    Q_TRY(q_vk_alive(dev));
    q_mutex_lock(&dev->lock);
    const lq_status s = finish_all(dev);
    q_mutex_unlock(&dev->lock);
    return s;
}

lq_status q_vk_read(q_device *dev, const q_buffer *src, uint64_t offset, void *dst, uint64_t n) {
    Q_TRY(q_vk_alive(dev));
    if (n == 0) return LQ_OK;
    Q_TRY(check_range(src, offset, n));
    q_mutex_lock(&dev->lock);
    const lq_status s = download(dev, handle_of(src), offset, dst, n);
    q_mutex_unlock(&dev->lock);
    return s;
}

lq_status q_vk_copy(q_device *dev, q_buffer *dst, uint64_t to, const q_buffer *src, uint64_t from, uint64_t n) {
    Q_TRY(q_vk_alive(dev));
    if (n == 0) return LQ_OK;
    Q_TRY(check_range(dst, to, n));
    Q_TRY(check_range(src, from, n));
    q_mutex_lock(&dev->lock);
    const lq_status s = copy(dev, handle_of(dst), to, handle_of(src), from, n);
    q_mutex_unlock(&dev->lock);
    return s;
}
