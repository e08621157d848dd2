/* column_neon.c: KV_PUT, bit-equal to kernels/ref. Layer L2. */
#include "neon.h"

bool q_kv_put_paged__neon_accepts(const q_inst *s) {
    Q_UNUSED(s);
    return true;
}

uint64_t q_kv_put_paged__neon_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(s);
    Q_UNUSED(columns);
    return 0;
}

/* Value i of x goes to value i * step of `to`; step is 1 or Q_KV_TOKENS. */
Q_NEON_INLINE void put_values(const float *x, int32_t n, int64_t step, int32_t value_bytes, uint8_t *to) {
    int32_t i = 0;
    if (value_bytes == 4 && step == 1) {
        memcpy(to, x, sizeof(float) * (size_t)n);
        return;
    }
    for (; value_bytes == 2 && i + 4 <= n; i += 4) {
        uint8_t half[8];
        if (step == 1) {
            q_narrow4(to + 2 * i, vld1q_f32(x + i));
            continue;
        }
        q_narrow4(half, vld1q_f32(x + i));
        for (int j = 0; j < 4; j++) memcpy(to + 2 * (i + j) * step, half + 2 * j, 2);
    }
    for (; i < n; i++) {
        if (value_bytes == 4) q_store32(to + 4 * i * step, q_f32_bits(x[i]));
        else q_store16(to + 2 * i * step, q_f32_to_half(x[i]));
    }
}

void q_kv_put_paged__neon(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    uint8_t *base = e->kv[s->kv_group];
    const int32_t bytes = pool->value_bytes;
    for (int64_t u = begin; u < end; u++) {
        const int64_t c = u / pool->heads;
        const int32_t h = (int32_t)(u % pool->heads), pos = e->batch->pos[c], row = pos % Q_KV_TOKENS;
        const uint32_t page = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group][pos / Q_KV_TOKENS];
        put_values(q_ref_at(e, &s->x, c, h), pool->k_width, Q_KV_TOKENS, bytes,
                   q_kv_k(pool, base, page, s->kv_layer, h) + row * bytes);
        if (pool->v_width)
            put_values(q_ref_at(e, &s->z, c, h), pool->v_width, 1, bytes,
                       q_kv_v(pool, base, page, s->kv_layer, h) + (int64_t)row * pool->v_width * bytes);
    }
}
