/* column_avx2.c: the operations that treat each column by itself: NORM (root mean square), GLU with SiLU, KV_PUT. Sums
 * are in the lanes of op.h, so NORM and KV_PUT are bit-equal to kernels/ref; GLU has an exponential of its own
 * (q_exp8). What a kernel here does not cover its accepts() refuses: the reference then runs. Layer L2. */
#include "avx2.h"

/* ---- NORM */

bool q_norm_f32__avx2_accepts(const q_inst *s) { return s->kind == Q_NORM_RMS && !s->b; }

uint64_t q_norm_f32__avx2_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(columns);
    return (uint64_t)s->x.width * sizeof(float);
}

Q_AVX2_INLINE float sum_of_squares(const float *x, int64_t n) {
    __m256 lo = _mm256_setzero_ps(), hi = lo;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 8);
        lo = _mm256_fmadd_ps(a, a, lo);
        hi = _mm256_fmadd_ps(b, b, hi);
    }
    if (i < n) {
        const __m256 a = _mm256_maskload_ps(x + i, q_mask8(n - i)),
                     b = _mm256_maskload_ps(x + i + 8, q_mask8(n - i - 8));
        lo = _mm256_fmadd_ps(a, a, lo);
        hi = _mm256_fmadd_ps(b, b, hi);
    }
    return q_fold1(_mm256_add_ps(lo, hi));
}

Q_AVX2 void q_norm_f32__avx2(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = s->x.width;
    float *w = NULL;
    if (s->w) {
        w = (float *)e->scratch;
        q_decode_row(s->w->format, s->w->data, n, w);
    }
    for (int64_t c = begin; c < end; c++) {
        const float *x = q_ref_at(e, &s->x, q_ref_gather(s, e, c), 0);
        float *y = q_ref_at(e, &s->y, c, 0);
        const float r = 1.0f / sqrtf(sum_of_squares(x, n) / (float)n + s->eps);
        const __m256 scale = _mm256_set1_ps(r);
        for (int64_t i = 0; i < n; i += 8) {
            const __m256i mask = q_mask8(n - i);
            __m256 v = _mm256_mul_ps(_mm256_maskload_ps(x + i, mask), scale);
            if (w) v = _mm256_mul_ps(v, _mm256_maskload_ps(w + i, mask));
            if (s->add) v = _mm256_add_ps(_mm256_maskload_ps(y + i, mask), v);
            _mm256_maskstore_ps(y + i, mask, v);
        }
    }
}

/* ---- GLU: x / (1 + e^-x) * z */

bool q_glu_f32__avx2_accepts(const q_inst *s) {
    return s->kind == Q_ACT_SILU && s->x.heads == 1 && s->y.heads == 1 && s->z.slot && s->z.heads == 1;
}

uint64_t q_glu_f32__avx2_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(s);
    Q_UNUSED(columns);
    return 0;
}

Q_AVX2_INLINE __m256 silu(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f);
    return _mm256_div_ps(x, _mm256_add_ps(one, q_exp8(_mm256_xor_ps(x, _mm256_set1_ps(-0.0f)))));
}

Q_AVX2 void q_glu_f32__avx2(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
    const int64_t n = s->y.width;
    for (int64_t c = begin; c < end; c++) {
        const float *x = q_ref_at(e, &s->x, c, 0), *z = q_ref_at(e, &s->z, c, 0);
        float *y = q_ref_at(e, &s->y, c, 0);
        int64_t i = 0;
        for (; i + 8 <= n; i += 8)
            _mm256_storeu_ps(y + i, _mm256_mul_ps(silu(_mm256_loadu_ps(x + i)), _mm256_loadu_ps(z + i)));
        if (i < n) {
            const __m256i m = q_mask8(n - i);
            const __m256 v = _mm256_mul_ps(silu(_mm256_maskload_ps(x + i, m)), _mm256_maskload_ps(z + i, m));
            _mm256_maskstore_ps(y + i, m, v);
        }
    }
}

/* ---- KV_PUT */

bool q_kv_put_paged__avx2_accepts(const q_inst *s) {
    Q_UNUSED(s);
    return true;
}

uint64_t q_kv_put_paged__avx2_scratch(const q_inst *s, int32_t columns) {
    Q_UNUSED(s);
    Q_UNUSED(columns);
    return 0;
}

Q_AVX2_INLINE void narrow(const float *x, int32_t n, int32_t value_bytes, uint8_t *to) {
    if (value_bytes == 4) {
        memcpy(to, x, sizeof(float) * (size_t)n);
        return;
    }
    int32_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(void *)(to + 2 * i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT));
    for (; i < n; i++) q_store16(to + 2 * i, q_f32_to_half(x[i]));
}

Q_AVX2 void q_kv_put_paged__avx2(const q_inst *s, const q_exec *e, int64_t begin, int64_t end) {
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
