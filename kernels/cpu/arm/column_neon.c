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

Q_NEON_INLINE void narrow(const float *x, int32_t n, int32_t value_bytes, uint8_t *to) {
    if (value_bytes == 4) {
        memcpy(to, x, sizeof(float) * (size_t)n);
        return;
    }
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) q_narrow4(to + 2 * i, vld1q_f32(x + i));
    for (; i < n; i++) q_store16(to + 2 * i, q_f32_to_half(x[i]));
}

void q_kv_put_paged__neon(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    uint8_t *base = e->kv[s->kv_group];
    const int32_t bytes = pool->value_bytes;
    for (int64_t u = begin; u < end; u++) {
        const int64_t c = u / pool->heads;
        const int32_t h = (int32_t)(u % pool->heads), pos = e->batch->pos[c], row = pos % Q_KV_TOKENS;
        const uint32_t page = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group][pos / Q_KV_TOKENS];
        narrow(q_ref_at(e, &s->x, c, h), pool->k_width, bytes,
               q_kv_k(pool, base, page, s->kv_layer, h) + (int64_t)row * pool->k_width * bytes);
        if (pool->v_width)
            narrow(q_ref_at(e, &s->z, c, h), pool->v_width, bytes,
                   q_kv_v(pool, base, page, s->kv_layer, h) + (int64_t)row * pool->v_width * bytes);
    }
}
