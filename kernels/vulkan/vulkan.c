/* vulkan.c: the Vulkan backend: its record, and which steps it can run.
 *
 * A device runs any step whose shaders exist, with weights of any format; what is refused is refused by name, so that
 * whoever places layers can say why. Layer L2. */
#include "vulkan.h"

extern const q_backend q_backend_vulkan;

static uint32_t vulkan_probe(void) {
    q_vk_api vk;
    VkPhysicalDevice devices[Q_VK_DEVICES];
    if (q_vk_api_open(&vk) != LQ_OK) return 0;
    uint32_t n = 0;
    const lq_status s = q_vk_api_devices(&vk, devices, &n);
    q_vk_api_close(&vk);
    return s == LQ_OK ? n : 0;
}

static bool is_float32(const q_weight *w) { return !w || strcmp(w->format->name, "f32") == 0; }

/* A row's bytes are 32 bits in the step's record. */
static bool is_long(const q_weight *w) { return w && w->row_bytes > INT32_MAX; }

/* The operand that is read as a vector of float32: biases, and the weights that are no matrix. */
static const q_weight *vector_of(const q_inst *s) {
    switch (s->op) {
    case Q_OP_NORM:
    case Q_OP_HEADNORM:
    case Q_OP_ATTN:
    case Q_OP_SCAN: return s->w;
    default: return NULL;
    }
}

const char *q_vk_supports(const q_device *dev, const q_inst *s) {
    Q_UNUSED(dev);
    if (s->op >= Q_OP_COUNT) return "unknown operation";
    if (!is_float32(s->b) || !is_float32(s->b2)) return "a bias that is not float32";
    if (!is_float32(vector_of(s))) return "a vector of weights that is not float32";
    if (is_long(s->w) || is_long(s->w2) || is_long(s->w3) || is_long(s->lora_a) || is_long(s->lora_b))
        return "rows of weights of more than 2 GiB";
    if ((s->w && s->w->order) || (s->w2 && s->w2->order)) return "weights whose columns are permuted (act-order)";
    return q_vk_refuses(s);
}

/* Shaders read the file's bytes. */
static uint64_t vulkan_pack_bytes(q_device *dev, q_op op, const q_weight *w) {
    Q_UNUSED(dev);
    Q_UNUSED(op);
    Q_UNUSED(w);
    return 0;
}

static void vulkan_pack(q_device *dev, q_op op, const q_weight *w, int64_t begin, int64_t end, void *to) {
    Q_UNUSED(dev);
    Q_UNUSED(op);
    Q_UNUSED(w);
    Q_UNUSED(begin);
    Q_UNUSED(end);
    Q_UNUSED(to);
}

const q_backend q_backend_vulkan = {
    .name = "vulkan",
    .host_memory = false,
    .probe = vulkan_probe,
    .open = q_vk_open,
    .close = q_vk_close,
    .info = q_vk_info,
    .held = q_vk_held,
    .alloc_most = q_vk_alloc_most,
    .alloc_bytes = q_vk_alloc_bytes,
    .alloc = q_vk_alloc,
    .free = q_vk_free,
    .write = q_vk_write,
    .flush = q_vk_flush,
    .read = q_vk_read,
    .copy = q_vk_copy,
    .pack_bytes = vulkan_pack_bytes,
    .pack = vulkan_pack,
    .supports = q_vk_supports,
    .measure = q_vk_measure,
    .compile = q_vk_compile,
    .release = q_vk_release,
    .run = q_vk_run,
    .wait = q_vk_wait_program,
    .traffic = q_vk_traffic,
    .kernel_name = q_vk_kernel_name,
};
