/* vk_shapes.h: what a step is on the device: its passes (shader, constants, workgroups) and its scratch; and the table
 * of shaders. No call of Vulkan: this compiles and is tested without a device. Layer L2. */
#ifndef Q_VK_SHAPES_H
#define Q_VK_SHAPES_H

#include "../../libquant/memory.h"
#include "../../libquant/plan.h"

enum {
#define SHADER(name, tier, specialization) Q_VK_SHADER_##name,
#include "shaders.def"
#undef SHADER
    Q_VK_SHADERS
};

enum {
    Q_VK_SPECS = 5,  /* specialization constants, ids 0 .. 4, each 4 bytes: common.glsl */
    Q_VK_PASSES = 8, /* most passes of a step */
    Q_VK_GROUPS = 65535 /* most workgroups in a direction, on any device */
};

typedef struct q_vk_shader {
    const char *name;
    const uint32_t *words;
    uint64_t bytes;
    int32_t tier;
    uint32_t specialization; /* bit i: constant i matters; those that do not are 0 in every pass */
} q_vk_shader;
extern const q_vk_shader q_vk_shaders[Q_VK_SHADERS];

/* Its words with what these constants rule out left out (vk_words.c); the caller deletes them. */
lq_status q_vk_words(const q_alloc *a, const q_vk_shader *shader, const int32_t spec[Q_VK_SPECS], uint32_t **words,
                     uint64_t *bytes);

/* One dispatch. Passes of a step follow one another with a barrier between. */
typedef struct q_vk_pass {
    int32_t shader;
    int32_t spec[Q_VK_SPECS];
    uint32_t groups[3]; /* at least 1 each */
} q_vk_pass;

/* The passes of a step for batches of up to `columns` columns; their number. */
int32_t q_vk_passes(const q_plan *plan, const q_inst *s, int32_t columns, q_vk_pass out[Q_VK_PASSES]);
/* Bytes of scratch that they need. */
uint64_t q_vk_scratch(const q_plan *plan, const q_inst *s, int32_t columns);
/* NULL when the shaders can run the step, else the reason in words. */
const char *q_vk_refuses(const q_inst *s);

#endif
