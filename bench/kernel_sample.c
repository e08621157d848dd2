/* kernel_sample.c: timing the choice of a token from a long row of logits, with the loops of an instruction set. See
 * kernels.h. Refuses nothing: the fields are those that people set. */
#include "kernels.h"

#include "../include/libquant_plugin.h"

enum { LOGITS = 262144, BEFORE = 4096, WINDOW = 64 };

static const struct {
    const char *name;
    lq_sampler s;
} samplers[] = {
    {"usual fields", {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.1f,
                      .penalty_last_n = WINDOW}},
    {"without top-k", {.temperature = 0.8f, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1.1f,
                       .penalty_last_n = WINDOW}},
    {"temperature alone", {.temperature = 0.8f}},
    {"greedy", {.temperature = 0}},
};

typedef struct choices {
    q_sample_in in;
    int64_t calls;
} choices;

static void choose_pass(void *arg) {
    choices *c = (choices *)arg;
    int32_t id;
    for (int64_t i = 0; i < c->calls; i++, c->in.position++) (void)q_ref_sample_row(&c->in, &id);
}
static bool choose_grow(void *arg) {
    choices *c = (choices *)arg;
    c->calls *= 2;
    return true;
}

const char *bench_kernel_sampler(uint32_t i) { return i < CLI_COUNT(samplers) ? samplers[i].name : NULL; }

/* Logits as models have them: most of them near to one another, a few far above. */
static void fill_logits(float *x) {
    bench_kernel_fill(x, LOGITS);
    for (int32_t i = 0; i < LOGITS; i++) x[i] *= 2.5f;
    for (int32_t i = 0; i < 20; i++) x[i * 12007] = 14 + 0.4f * (float)i;
}

lq_status bench_kernel_sample(const q_cpu_kernel *k, uint32_t i, const bench_kernel_how *how, bench_kernel_time *out) {
    float *x = Q_NEW(&q_alloc_libc, float, LOGITS);
    int32_t *ids = Q_NEW(&q_alloc_libc, int32_t, BEFORE);
    void *scratch = q_new(&q_alloc_libc, q_sample_bytes(LOGITS, BEFORE), 1);
    lq_status s = x && ids && scratch ? LQ_OK : LQ_E_NOMEM;
    choices c = {.in = {.logits = x, .n = LOGITS, .sampler = &samplers[i].s, .ids = ids, .count = BEFORE,
                        .wide = k->wide, .scratch = scratch}, .calls = 1};
    if (s == LQ_OK) {
        fill_logits(x);
        for (int32_t j = 0; j < BEFORE; j++) ids[j] = j * 31 % LOGITS;
        s = bench_kernel_time_passes(choose_pass, choose_grow, &c, how->passes, &out->passes);
    }
    out->ops = 0;
    out->bytes = (double)c.calls * LOGITS * sizeof(float);
    snprintf(out->shape, sizeof out->shape, "%d logits, %s", LOGITS, samplers[i].name);
    q_delete(&q_alloc_libc, x);
    q_delete(&q_alloc_libc, ids);
    q_delete(&q_alloc_libc, scratch);
    return s;
}
