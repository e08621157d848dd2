/* attn_avx2.c: attention's arithmetic in AVX2: up to three rows by 32 values in registers, eight exponentials at a
 * time; ../attn.c is the rest. Layer L2. */
#include "avx2.h"

#include "../attn.h"

#define FORM_ISA avx2
#define FORM_TARGET Q_AVX2
#define FORM_INLINE Q_AVX2_INLINE
#define FORM_AT_ONCE(rows) ((rows) <= 3)

Q_AVX2_INLINE __m256 load8(q_attn_cells f, const uint8_t *p) {
    if (f == Q_CELLS_F32) return _mm256_loadu_ps((const float *)(const void *)p);
    const __m128i h = _mm_loadu_si128((const __m128i *)(const void *)p);
    if (f == Q_CELLS_F16) return _mm256_cvtph_ps(h);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}

/* R rows and V registers of values from `at` on. */
Q_AVX2_INLINE void tile(int R, int V, q_attn_cells f, const q_attn_product *p, int64_t row, int64_t at) {
    const float *a = p->a + row * p->a_stride;
    float *c = p->c + row * p->c_stride + at;
    const int64_t a_stride = p->a_stride, b_stride = p->b_stride, size = q_attn_cell_bytes(f);
    const int64_t ahead_stride = p->ahead_stride, ahead_at = at * ahead_stride / p->width;
    __m256 acc[6][4];
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++)
            acc[i][v] = p->more ? _mm256_loadu_ps(c + i * p->c_stride + 8 * v) : _mm256_setzero_ps();
    }
    for (int64_t k = p->from; k < p->to;) {
        const int64_t page = k / p->per, first = page * p->per, end = Q_MIN(p->to, first + p->per);
        const uint8_t *b = p->b[page] + (k - first) * b_stride + at * size;
        const uint8_t *ahead = p->ahead[page] + (k - first) * ahead_stride + ahead_at;
        for (; k < end; k++, b += b_stride, ahead += ahead_stride) {
            __m256 x[6];
            _mm_prefetch((const char *)ahead, _MM_HINT_T0);
            Q_UNROLL for (int i = 0; i < R; i++) x[i] = _mm256_broadcast_ss(a + i * a_stride + k);
            Q_UNROLL for (int v = 0; v < V; v++) {
                const __m256 w = load8(f, b + 8 * v * size);
                Q_UNROLL for (int i = 0; i < R; i++) acc[i][v] = _mm256_fmadd_ps(x[i], w, acc[i][v]);
            }
        }
    }
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++) _mm256_storeu_ps(c + i * p->c_stride + 8 * v, acc[i][v]);
    }
}

/* All values of R rows. */
Q_AVX2_INLINE void some_rows(int R, q_attn_cells f, const q_attn_product *p, int64_t row) {
    int64_t at = 0;
    for (; at + 32 <= p->width; at += 32) tile(R, 4, f, p, row, at);
    if (at < p->width) tile(R, 2, f, p, row, at);
}

Q_AVX2_INLINE void rows(q_attn_cells f, const q_attn_product *p) {
    int64_t row = 0;
    for (; row + 3 <= p->rows; row += 3) some_rows(3, f, p, row);
    if (p->rows - row == 2) some_rows(2, f, p, row);
    if (p->rows - row == 1) some_rows(1, f, p, row);
}

Q_AVX2_INLINE void widen_cells(q_attn_cells f, const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 8) _mm256_storeu_ps(to + i, load8(f, from + q_attn_cell_bytes(f) * i));
}

#include "attn_blocks_avx2.h"

#include "../attn_forms.h"

Q_AVX2 static void turn(const float *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 8)
        for (int64_t j = 0; j < Q_KV_TOKENS; j += 8) {
            __m256 v[8], a[8], b[8];
            Q_UNROLL for (int l = 0; l < 8; l++) v[l] = _mm256_loadu_ps(from + (i + l) * Q_KV_TOKENS + j);
            Q_UNROLL for (int l = 0; l < 8; l += 2) { /* pairs, then fours, in each half */
                a[l] = _mm256_unpacklo_ps(v[l], v[l + 1]);
                a[l + 1] = _mm256_unpackhi_ps(v[l], v[l + 1]);
            }
            Q_UNROLL for (int l = 0; l < 8; l += 4) {
                Q_UNROLL for (int h = 0; h < 2; h++) {
                    b[l + 2 * h] = _mm256_shuffle_ps(a[l + h], a[l + h + 2], 0x44);
                    b[l + 2 * h + 1] = _mm256_shuffle_ps(a[l + h], a[l + h + 2], 0xEE);
                }
            }
            Q_UNROLL for (int l = 0; l < 4; l++) {
                _mm256_storeu_ps(to + (j + l) * n + i, _mm256_permute2f128_ps(b[l], b[l + 4], 0x20));
                _mm256_storeu_ps(to + (j + l + 4) * n + i, _mm256_permute2f128_ps(b[l], b[l + 4], 0x31));
            }
        }
}

/* tanh within 3 units of the last place: an odd polynomial up to 0.625, 1 - 2 / (e^2x + 1) beyond it. */
Q_AVX2_INLINE __m256 tanh8(__m256 x) {
    const __m256 one = _mm256_set1_ps(1.0f), sign = _mm256_set1_ps(-0.0f), a = _mm256_andnot_ps(sign, x);
    const __m256 z = _mm256_mul_ps(x, x);
    __m256 p = _mm256_set1_ps(-0.006096714176f);
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(0.02099717967f));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(-0.05385090783f));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(0.1333276927f));
    p = _mm256_fmadd_ps(p, z, _mm256_set1_ps(-0.3333332837f));
    p = _mm256_fmadd_ps(_mm256_mul_ps(p, z), a, a);
    const __m256 e = _mm256_add_ps(q_exp8(_mm256_add_ps(a, a)), one);
    const __m256 far = _mm256_sub_ps(one, _mm256_div_ps(_mm256_set1_ps(2.0f), e));
    p = _mm256_blendv_ps(p, far, _mm256_cmp_ps(a, _mm256_set1_ps(0.625f), _CMP_GT_OQ));
    return _mm256_or_ps(p, _mm256_and_ps(x, sign));
}

/* The scores of keys j .. j + 7 of the row; plain: neither softcap nor slope. */
Q_AVX2_INLINE __m256 scores(bool plain, const q_attn_row *r, int32_t j) {
    __m256 v = _mm256_mul_ps(_mm256_set1_ps(r->scale), _mm256_load_ps(r->score + j));
    if (plain) return v;
    if (r->softcap != 0) {
        const __m256 cap = _mm256_set1_ps(r->softcap);
        v = _mm256_mul_ps(cap, tanh8(_mm256_div_ps(v, cap)));
    }
    if (r->slope != 0) {
        const __m256i i = _mm256_add_epi32(_mm256_set1_epi32(r->key + j), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        const __m256 far = _mm256_cvtepi32_ps(_mm256_abs_epi32(i));
        v = _mm256_sub_ps(v, _mm256_mul_ps(_mm256_set1_ps(r->slope), far));
    }
    return v;
}

/* Scores outside [from, to) become minus infinity. */
Q_AVX2_INLINE void find_largest(bool plain, q_attn_row *r) {
    const int32_t from = r->from, to = r->to;
    __m256 top = _mm256_set1_ps(-INFINITY);
    for (int32_t j = from / 16 * 16; j < (to + 15) / 16 * 16; j += 8) {
        __m256 v = scores(plain, r, j);
        if (j < from || j + 8 > to) {
            const __m256i in = _mm256_andnot_si256(q_mask8(from - j), q_mask8(to - j));
            v = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), v, _mm256_castsi256_ps(in));
        }
        top = _mm256_max_ps(v, top); /* a NaN is passed over here, and shows in the sums */
        _mm256_store_ps(r->score + j, v);
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(top), _mm256_extractf128_ps(top, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    r->m = _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

Q_AVX2 static void largest(q_attn_row *r) {
    if (r->softcap == 0 && r->slope == 0) find_largest(true, r);
    else find_largest(false, r);
}

Q_AVX2 static void weigh(q_attn_row *r) {
    const __m256 m = _mm256_set1_ps(r->m);
    float *score = r->score;
    const int32_t to = r->to;
    __m256 sum[2] = {_mm256_setzero_ps(), _mm256_setzero_ps()};
    for (int32_t j = r->from / 16 * 16; j < to; j += 16) {
        Q_UNROLL for (int i = 0; i < 2; i++) {
            const __m256 v = q_exp8(_mm256_sub_ps(_mm256_load_ps(score + j + 8 * i), m));
            sum[i] = _mm256_add_ps(sum[i], v);
            _mm256_store_ps(score + j + 8 * i, v);
        }
    }
    r->l = q_fold1(_mm256_add_ps(sum[0], sum[1]));
}

Q_AVX2 static void exps(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 8) _mm256_storeu_ps(x + i, q_exp8(_mm256_loadu_ps(x + i)));
}

Q_AVX2 static void merge(float *acc, const float *part, int64_t n, float a, float b) {
    for (int64_t i = 0; i < n; i += 8) {
        const __m256 old = _mm256_mul_ps(_mm256_loadu_ps(acc + i), _mm256_set1_ps(a));
        _mm256_storeu_ps(acc + i, _mm256_fmadd_ps(_mm256_loadu_ps(part + i), _mm256_set1_ps(b), old));
    }
}

Q_AVX2 static void finish(float *y, const float *acc, int64_t n, float a, float b) {
    for (int64_t i = 0; i < n; i += 8)
        _mm256_storeu_ps(y + i,
                         _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(acc + i), _mm256_set1_ps(a)), _mm256_set1_ps(b)));
}

/* A stage within eight numbers, of which `low` and `high` have each where both meet: a - b is a + -b, `minus` where. */
#define WITHIN(low, high, minus) _mm256_add_ps(low, _mm256_xor_ps(high, minus))

/* The last stages of n registers, eight numbers each (1, 2, 4 or 8): within a turn of 8 n or of parts of one. */
Q_AVX2_INLINE void hadamard_part(float *x, int n, __m256 by) {
    const __m256 none = _mm256_setzero_ps(), m = _mm256_set1_ps(-0.0f), fours = _mm256_blend_ps(none, m, 0xF0);
    const __m256 twos = _mm256_blend_ps(none, m, 0xCC), ones = _mm256_blend_ps(none, m, 0xAA);
    __m256 v[8];
    Q_UNROLL for (int i = 0; i < n; i++) v[i] = _mm256_loadu_ps(x + 8 * i);
    Q_UNROLL for (int half = n / 2; half > 0; half /= 2)
        Q_UNROLL for (int i = 0; i < n; i++) {
            if (i & half) continue;
            const __m256 a = v[i], b = v[i + half];
            v[i] = _mm256_add_ps(a, b);
            v[i + half] = _mm256_sub_ps(a, b);
        }
    Q_UNROLL for (int i = 0; i < n; i++) {
        __m256 t = WITHIN(_mm256_permute2f128_ps(v[i], v[i], 0x00), _mm256_permute2f128_ps(v[i], v[i], 0x11), fours);
        t = WITHIN(_mm256_shuffle_ps(t, t, 0x44), _mm256_shuffle_ps(t, t, 0xEE), twos);
        t = WITHIN(_mm256_moveldup_ps(t), _mm256_movehdup_ps(t), ones);
        _mm256_storeu_ps(x + 8 * i, _mm256_mul_ps(t, by));
    }
}

/* The sums of q_ref_turn where the numbers stay: what lies half a turn apart there, stage after stage, lies a half, a
 * quarter and so on of a turn apart here. */
Q_AVX2 void q_hadamard__avx2(float *x, int64_t n, int32_t turn) {
    if (turn < 8) {
        q_ref_turn(x, n, turn);
        return;
    }
    const __m256 by = _mm256_set1_ps((float)(1.0 / sqrt((double)turn)));
    for (float *const end = x + n; x < end; x += turn) {
        for (int32_t i = 0; turn == 128 && i < 64; i += 8) {
            const __m256 a = _mm256_loadu_ps(x + i), b = _mm256_loadu_ps(x + i + 64);
            _mm256_storeu_ps(x + i, _mm256_add_ps(a, b));
            _mm256_storeu_ps(x + i + 64, _mm256_sub_ps(a, b));
        }
        if (turn == 8) hadamard_part(x, 1, by);
        else if (turn == 16) hadamard_part(x, 2, by);
        else if (turn == 32) hadamard_part(x, 4, by);
        else hadamard_part(x, 8, by);
        if (turn == 128) hadamard_part(x + 64, 8, by);
    }
}
_Static_assert(Q_KV_MOST_TURN == 128, "the longest turn");

Q_ATTENTION(attn_paged__avx2, 8, 8, forms, Q_COUNT(forms), turn, q_hadamard__avx2, largest, weigh, exps, merge, finish)
