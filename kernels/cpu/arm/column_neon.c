/* column_neon.c: KV_PUT of halves, bit-equal to kernels/ref, which does the other forms. Layer L2. */
#include "neon.h"

extern const q_format q_format_f16;

bool q_kv_put_paged__neon_accepts(const q_inst *s) {
    Q_UNUSED(s);
    return true;
}

uint64_t q_kv_put_paged__neon_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(s);
    Q_UNUSED(columns);
    return 0;
}

/* Halves of x, value i to value i * step of `to`; step is 1 or Q_KV_TOKENS. What a half cannot hold: kv_form.h. */
Q_NEON_INLINE void put_halves(const float *x, int32_t n, int64_t step, uint8_t *to) {
    int32_t i = 0;
    for (; i + 4 <= n; i += 4) {
        uint16_t half[8];
        const float32x4_t v = vld1q_f32(x + i);
        const uint16x4_t near = vmovn_u32(vcaleq_f32(v, vdupq_n_f32(65504.0f)));
        const uint16x4_t h = vorn_u16(vreinterpret_u16_f16(vcvt_f16_f32(v)), near);
        if (step == 1) {
            vst1_u8(to + 2 * i, vreinterpret_u8_u16(h));
            continue;
        }
        vst1_u16(half, h);
        for (int j = 0; j < 4; j++) q_store16(to + 2 * (i + j) * step, half[j]);
    }
    for (; i < n; i++) q_store16(to + 2 * i * step, fabsf(x[i]) <= 65504.0f ? q_f32_to_half(x[i]) : 0xFFFF);
}

void q_kv_put_paged__neon(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const q_kv_pool *pool = &e->plan->kv[s->kv_group];
    uint8_t *base = e->kv[s->kv_group];
    if (pool->k.format != &q_format_f16 || q_kv_v_form(pool)->format != &q_format_f16) {
        q_ref_kv_put(s, e, begin, end);
        return;
    }
    for (int64_t u = begin; u < end; u++) {
        const int64_t c = u / pool->heads;
        const int32_t h = (int32_t)(u % pool->heads), pos = e->batch->pos[c], row = pos % Q_KV_TOKENS;
        const uint32_t page = e->batch->seqs[e->batch->seq[c]].pages[s->kv_group][pos / Q_KV_TOKENS];
        put_halves(q_ref_at(e, &s->x, c, h), pool->k.width, Q_KV_TOKENS,
                   q_kv_k(pool, base, page, s->kv_layer, h) + row * 2);
        if (pool->v.width)
            put_halves(q_ref_at(e, &s->z, c, h), pool->v.width, 1,
                       q_kv_v(pool, base, page, s->kv_layer, h) + (int64_t)row * pool->v.bytes);
    }
}
