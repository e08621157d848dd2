/* attn_avx512.c: attention's arithmetic in AVX-512: up to eight rows by 32 values in registers, sixteen exponentials at
 * a time; ../attn.c is the rest. Layer L2. */
#include "avx512.h"

#include "../attn.h"

#define FORM_ISA avx512
#define FORM_TARGET Q_AVX512
#define FORM_INLINE Q_AVX512_INLINE
#define FORM_AT_ONCE(rows) (((rows) & ((rows) - 1)) == 0)
#include "attn_blocks_avx512.h"

Q_AVX512_INLINE __m512 load16(q_attn_cells f, const uint8_t *p) {
    if (f == Q_CELLS_F32) return _mm512_loadu_ps(p);
    const __m256i h = _mm256_loadu_si256((const __m256i *)(const void *)p);
    if (f == Q_CELLS_F16) return _mm512_cvtph_ps(h);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}

/* R rows and V registers of values from `at` on. */
Q_AVX512_INLINE void tile(int R, int V, q_attn_cells f, const q_attn_product *p, int64_t row, int64_t at) {
    const float *a = p->a + row * p->a_stride;
    float *c = p->c + row * p->c_stride + at;
    const int64_t a_stride = p->a_stride, b_stride = p->b_stride, size = q_attn_cell_bytes(f);
    const int64_t ahead_stride = p->ahead_stride, ahead_at = at * ahead_stride / p->width;
    const int64_t ahead_step = 16 * ahead_stride / p->width;
    __m512 acc[8][4];
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++)
            acc[i][v] = p->more ? _mm512_loadu_ps(c + i * p->c_stride + 16 * v) : _mm512_setzero_ps();
    }
    for (int64_t k = p->from; k < p->to;) {
        const int64_t page = k / p->per, first = page * p->per, end = Q_MIN(p->to, first + p->per);
        const uint8_t *b = p->b[page] + (k - first) * b_stride + at * size;
        const uint8_t *ahead = p->ahead[page] + (k - first) * ahead_stride + ahead_at;
        for (; k < end; k++, b += b_stride, ahead += ahead_stride) {
            __m512 w[4];
            Q_UNROLL for (int v = 0; v < V; v += 2) /* the first cache has too few places for what is on its way */
                _mm_prefetch((const char *)ahead + v * ahead_step, _MM_HINT_T1);
            Q_UNROLL for (int v = 0; v < V; v++) w[v] = load16(f, b + 16 * v * size);
            Q_UNROLL for (int i = 0; i < R; i++) {
                const __m512 x = _mm512_set1_ps(a[i * a_stride + k]);
                Q_UNROLL for (int v = 0; v < V; v++) acc[i][v] = _mm512_fmadd_ps(x, w[v], acc[i][v]);
            }
        }
    }
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < V; v++) _mm512_storeu_ps(c + i * p->c_stride + 16 * v, acc[i][v]);
    }
}

/* All values of R rows. */
Q_AVX512_INLINE void some_rows(int R, q_attn_cells f, const q_attn_product *p, int64_t row) {
    int64_t at = 0;
    if (R <= 4)
        for (; at + 64 <= p->width; at += 64) tile(R, 4, f, p, row, at);
    for (; at + 32 <= p->width; at += 32) tile(R, 2, f, p, row, at);
    if (at < p->width) tile(R, 1, f, p, row, at);
}

/* A function for each form and R: of all together gcc 12 keeps addresses in vectors' registers, and fetches them from
 * there in each turn of a loop (bench/SPEED.md). */
typedef void (*some_rows_fn)(const q_attn_product *p, int64_t row);
#define SOME_ROWS(name, f, R)                                                                                    \
    Q_AVX512 __attribute__((noinline)) static void avx512_##name##_##R(const q_attn_product *p, int64_t row) {   \
        some_rows(R, f, p, row);                                                                                 \
    }
#define ALL_ROWS(name, f)                                                                                        \
    SOME_ROWS(name, f, 1) SOME_ROWS(name, f, 2) SOME_ROWS(name, f, 3) SOME_ROWS(name, f, 4)                      \
    SOME_ROWS(name, f, 5) SOME_ROWS(name, f, 6) SOME_ROWS(name, f, 7) SOME_ROWS(name, f, 8)                      \
    static const some_rows_fn avx512_##name##_rows[] = {                                                         \
        avx512_##name##_1, avx512_##name##_2, avx512_##name##_3, avx512_##name##_4,                              \
        avx512_##name##_5, avx512_##name##_6, avx512_##name##_7, avx512_##name##_8};
ALL_ROWS(f32, Q_CELLS_F32)
ALL_ROWS(f16, Q_CELLS_F16)
ALL_ROWS(bf16, Q_CELLS_BF16)

Q_AVX512_INLINE void rows(q_attn_cells f, const q_attn_product *p) {
    const some_rows_fn *some = f == Q_CELLS_F32   ? avx512_f32_rows
                               : f == Q_CELLS_F16 ? avx512_f16_rows
                                                  : avx512_bf16_rows;
    int64_t row = 0;
    for (; row + 8 <= p->rows; row += 8) some[7](p, row);
    if (row < p->rows) some[p->rows - row - 1](p, row);
}

Q_AVX512_INLINE void widen_cells(q_attn_cells f, const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 16) _mm512_storeu_ps(to + i, load16(f, from + q_attn_cell_bytes(f) * i));
}

#include "../attn_forms.h"

Q_AVX512 static void turn(const float *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 16)
        for (int64_t j = 0; j < Q_KV_TOKENS; j += 16) {
            __m512i v[16];
            Q_UNROLL for (int l = 0; l < 16; l++) v[l] = _mm512_loadu_si512(from + (i + l) * Q_KV_TOKENS + j);
            q_transpose16(v);
            Q_UNROLL for (int l = 0; l < 16; l++) _mm512_storeu_si512(to + (j + l) * n + i, v[l]);
        }
}

/* tanh within 3 units of the last place: an odd polynomial up to 0.625, 1 - 2 / (e^2x + 1) beyond it. */
Q_AVX512_INLINE __m512 tanh16(__m512 x) {
    const __m512 one = _mm512_set1_ps(1.0f), a = _mm512_abs_ps(x), z = _mm512_mul_ps(x, x);
    __m512 p = _mm512_set1_ps(-0.006096714176f);
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0.02099717967f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(-0.05385090783f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(0.1333276927f));
    p = _mm512_fmadd_ps(p, z, _mm512_set1_ps(-0.3333332837f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, z), a, a);
    const __m512 e = _mm512_add_ps(q_exp16(_mm512_add_ps(a, a)), one);
    const __m512 far = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), e));
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(a, _mm512_set1_ps(0.625f), _CMP_GT_OQ), far);
    return _mm512_or_ps(p, _mm512_and_ps(x, _mm512_set1_ps(-0.0f)));
}

/* The scores of keys j .. j + 15 of the row; plain: neither softcap nor slope. */
Q_AVX512_INLINE __m512 scores(bool plain, const q_attn_row *r, int32_t j) {
    __m512 v = _mm512_mul_ps(_mm512_set1_ps(r->scale), _mm512_load_ps(r->score + j));
    if (plain) return v;
    if (r->softcap != 0) {
        const __m512 cap = _mm512_set1_ps(r->softcap);
        v = _mm512_mul_ps(cap, tanh16(_mm512_div_ps(v, cap)));
    }
    if (r->slope != 0) {
        const __m512i i = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        const __m512 far = _mm512_abs_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_set1_epi32(r->key + j), i)));
        v = _mm512_sub_ps(v, _mm512_mul_ps(_mm512_set1_ps(r->slope), far));
    }
    return v;
}

/* Scores outside [from, to) become minus infinity. */
Q_AVX512_INLINE void find_largest(bool plain, q_attn_row *r) {
    const int32_t from = r->from, to = r->to;
    __m512 top = _mm512_set1_ps(-INFINITY);
    for (int32_t j = from / 16 * 16; j < to; j += 16) {
        __m512 v = scores(plain, r, j);
        if (j < from || j + 16 > to)
            v = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), (__mmask16)(q_mask16(to - j) & ~q_mask16(from - j)), v);
        top = _mm512_max_ps(v, top); /* a NaN is passed over here, and shows in the sums */
        _mm512_store_ps(r->score + j, v);
    }
    r->m = _mm512_reduce_max_ps(top);
}

Q_AVX512 static void largest(q_attn_row *r) {
    if (r->softcap == 0 && r->slope == 0) find_largest(true, r);
    else find_largest(false, r);
}

/* Scores from `at` on, n vectors of them. */
Q_AVX512_INLINE __m512 weights(int n, float *at, __m512 m, __m512 sum) {
    __m512 v[4];
    Q_UNROLL for (int i = 0; i < n; i++) v[i] = _mm512_sub_ps(_mm512_load_ps(at + 16 * i), m);
    q_exps16(n, v);
    Q_UNROLL for (int i = 0; i < n; i++) {
        sum = _mm512_add_ps(sum, v[i]);
        _mm512_store_ps(at + 16 * i, v[i]);
    }
    return sum;
}

Q_AVX512 static void weigh(q_attn_row *r) {
    const __m512 m = _mm512_set1_ps(r->m);
    __m512 sum = _mm512_setzero_ps();
    int32_t j = r->from / 16 * 16;
    for (; j + 48 < r->to; j += 64) sum = weights(4, r->score + j, m, sum);
    for (; j < r->to; j += 16) sum = weights(1, r->score + j, m, sum);
    r->l = q_fold1_512(sum);
}

Q_AVX512 static void exps(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) _mm512_storeu_ps(x + i, q_exp16(_mm512_loadu_ps(x + i)));
}

Q_AVX512 static void merge(float *acc, const float *part, int64_t n, float a, float b) {
    for (int64_t i = 0; i < n; i += 16) {
        const __m512 old = _mm512_mul_ps(_mm512_loadu_ps(acc + i), _mm512_set1_ps(a));
        _mm512_storeu_ps(acc + i, _mm512_fmadd_ps(_mm512_loadu_ps(part + i), _mm512_set1_ps(b), old));
    }
}

Q_AVX512 static void finish(float *y, const float *acc, int64_t n, float a, float b) {
    for (int64_t i = 0; i < n; i += 16)
        _mm512_storeu_ps(y + i,
                         _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(acc + i), _mm512_set1_ps(a)), _mm512_set1_ps(b)));
}

Q_ATTENTION(attn_paged__avx512, 16, 8, forms, Q_COUNT(forms), turn, q_hadamard__avx2, largest, weigh, exps, merge,
            finish)
