/* column_avx2.c: KV_PUT of halves, bit-equal to kernels/ref, which does the other forms. Layer L2. */
#include "avx2.h"

extern const q_format q_format_f16;

bool q_kv_put_paged__avx2_accepts(const q_inst *s) {
    Q_UNUSED(s);
    return true;
}

uint64_t q_kv_put_paged__avx2_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(s);
    Q_UNUSED(columns);
    return 0;
}

/* Halves of x, value i to value i * step of `to`; step is 1 or Q_KV_TOKENS. What a half cannot hold: kv_form.h. */
Q_AVX2_INLINE void put_halves(const float *x, int32_t n, int64_t step, uint8_t *to) {
    int32_t i = 0;
    for (; i + 8 <= n; i += 8) {
        uint16_t half[8];
        const __m256 v = _mm256_loadu_ps(x + i), size = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), v);
        const __m256i far = _mm256_castps_si256(_mm256_cmp_ps(size, _mm256_set1_ps(65504.0f), _CMP_NLE_UQ));
        const __m128i far16 = _mm_packs_epi32(_mm256_castsi256_si128(far), _mm256_extracti128_si256(far, 1));
        const __m128i h = _mm_or_si128(_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT), far16);
        if (step == 1) {
            _mm_storeu_si128((__m128i *)(void *)(to + 2 * i), h);
            continue;
        }
        _mm_storeu_si128((__m128i *)(void *)half, h);
        for (int j = 0; j < 8; j++) q_store16(to + 2 * (i + j) * step, half[j]);
    }
    for (; i < n; i++) q_store16(to + 2 * i * step, fabsf(x[i]) <= 65504.0f ? q_f32_to_half(x[i]) : 0xFFFF);
}

Q_AVX2 void q_kv_put_paged__avx2(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
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
