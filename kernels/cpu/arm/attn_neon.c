/* attn_neon.c: attention's arithmetic in NEON: up to eight rows by eight values in registers, weights of rows as lanes;
 * four exponentials at a time; ../attn.c is the rest. Layer L2. */
#include "neon.h"

#include "../attn.h"

#define FORM_ISA neon
#define FORM_TARGET
#define FORM_INLINE Q_NEON_INLINE
#define FORM_AT_ONCE(rows) (((rows) & ((rows) - 1)) == 0)
#include "attn_blocks_neon.h"

/* A row of b times one lane of each row of a. */
#define LANE(l)                                                                                          \
    do {                                                                                                 \
        Q_UNROLL for (int v = 0; v < 2; v++) {                                                           \
            const float32x4_t w = load4(f, b + (l) * b_stride + 4 * v * size);                        \
            Q_UNROLL for (int i = 0; i < R; i++) acc[i][v] = vfmaq_laneq_f32(acc[i][v], w, x[i], (l));   \
        }                                                                                                \
    } while (0)

Q_NEON_INLINE float32x4_t load4(q_attn_cells f, const uint8_t *p) {
    if (f == Q_CELLS_F32) return vreinterpretq_f32_u8(vld1q_u8(p));
    if (f == Q_CELLS_F16) return q_widen4(p);
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}

/* R rows and eight values from `at` on. */
Q_NEON_INLINE void tile(int R, q_attn_cells f, const q_attn_product *p, int64_t row, int64_t at) {
    const float *a = p->a + row * p->a_stride;
    float *c = p->c + row * p->c_stride + at;
    const int64_t a_stride = p->a_stride, b_stride = p->b_stride, size = q_attn_cell_bytes(f);
    const int64_t ahead_stride = p->ahead_stride, ahead_at = at * ahead_stride / p->width;
    float32x4_t acc[8][2];
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < 2; v++)
            acc[i][v] = p->more ? vld1q_f32(c + i * p->c_stride + 4 * v) : vdupq_n_f32(0);
    }
    for (int64_t k = p->from; k < p->to;) {
        const int64_t page = k / p->per, first = page * p->per, end = Q_MIN(p->to, first + p->per);
        const uint8_t *b = p->b[page] + (k - first) * b_stride + at * size;
        const uint8_t *ahead = p->ahead[page] + (k - first) * ahead_stride + ahead_at;
        for (; k + 4 <= end; k += 4, b += 4 * b_stride, ahead += 4 * ahead_stride) {
            float32x4_t x[8];
            Q_UNROLL for (int l = 0; l < 4; l++) __builtin_prefetch(ahead + l * ahead_stride);
            Q_UNROLL for (int i = 0; i < R; i++) x[i] = vld1q_f32(a + i * a_stride + k);
            LANE(0);
            LANE(1);
            LANE(2);
            LANE(3);
        }
        for (; k < end; k++, b += b_stride, ahead += ahead_stride) {
            Q_UNROLL for (int v = 0; v < 2; v++) {
                const float32x4_t w = load4(f, b + 4 * v * size);
                Q_UNROLL for (int i = 0; i < R; i++) acc[i][v] = vfmaq_n_f32(acc[i][v], w, a[i * a_stride + k]);
            }
        }
    }
    Q_UNROLL for (int i = 0; i < R; i++) {
        Q_UNROLL for (int v = 0; v < 2; v++) vst1q_f32(c + i * p->c_stride + 4 * v, acc[i][v]);
    }
}

/* All values of R rows. */
Q_NEON_INLINE void some_rows(int R, q_attn_cells f, const q_attn_product *p, int64_t row) {
    for (int64_t at = 0; at < p->width; at += 8) tile(R, f, p, row, at);
}

Q_NEON_INLINE void rows(q_attn_cells f, const q_attn_product *p) {
    int64_t row = 0;
    for (; row + 8 <= p->rows; row += 8) some_rows(8, f, p, row);
    for (; row + 4 <= p->rows; row += 4) some_rows(4, f, p, row);
    if (p->rows - row >= 2) {
        some_rows(2, f, p, row);
        row += 2;
    }
    if (p->rows - row >= 1) some_rows(1, f, p, row);
}

Q_NEON_INLINE void widen_cells(q_attn_cells f, const uint8_t *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 4) vst1q_f32(to + i, load4(f, from + q_attn_cell_bytes(f) * i));
}

#include "../attn_forms.h"

static void turn(const float *from, int64_t n, float *to) {
    for (int64_t i = 0; i < n; i += 4)
        for (int64_t j = 0; j < Q_KV_TOKENS; j += 4) {
            float32x4_t v[4];
            float32x4x2_t a, b;
            Q_UNROLL for (int l = 0; l < 4; l++) v[l] = vld1q_f32(from + (i + l) * Q_KV_TOKENS + j);
            a = vtrnq_f32(v[0], v[1]);
            b = vtrnq_f32(v[2], v[3]);
            Q_UNROLL for (int l = 0; l < 2; l++) {
                vst1q_f32(to + (j + l) * n + i, vcombine_f32(vget_low_f32(a.val[l]), vget_low_f32(b.val[l])));
                vst1q_f32(to + (j + l + 2) * n + i, vcombine_f32(vget_high_f32(a.val[l]), vget_high_f32(b.val[l])));
            }
        }
}

/* tanh within 3 units of the last place: an odd polynomial up to 0.625, 1 - 2 / (e^2x + 1) beyond it. */
Q_NEON_INLINE float32x4_t tanh4(float32x4_t x) {
    const float32x4_t one = vdupq_n_f32(1.0f), a = vabsq_f32(x), z = vmulq_f32(x, x);
    float32x4_t p = vdupq_n_f32(-0.006096714176f);
    p = vfmaq_f32(vdupq_n_f32(0.02099717967f), p, z);
    p = vfmaq_f32(vdupq_n_f32(-0.05385090783f), p, z);
    p = vfmaq_f32(vdupq_n_f32(0.1333276927f), p, z);
    p = vfmaq_f32(vdupq_n_f32(-0.3333332837f), p, z);
    p = vfmaq_f32(a, vmulq_f32(p, z), a);
    const float32x4_t e = vaddq_f32(q_exp4(vaddq_f32(a, a)), one);
    const float32x4_t far = vsubq_f32(one, vdivq_f32(vdupq_n_f32(2.0f), e));
    p = vbslq_f32(vcgtq_f32(a, vdupq_n_f32(0.625f)), far, p);
    return vbslq_f32(vdupq_n_u32(0x80000000u), x, p);
}

/* The scores of keys j .. j + 3 of the row, minus infinity for those outside [from, to). */
Q_NEON_INLINE float32x4_t scores(const q_attn_row *r, int32_t j) {
    static const int32_t count[4] = {0, 1, 2, 3};
    const int32x4_t i = vaddq_s32(vdupq_n_s32(j), vld1q_s32(count));
    float32x4_t v = vmulq_n_f32(vld1q_f32(r->score + j), r->scale);
    if (r->softcap != 0) {
        const float32x4_t cap = vdupq_n_f32(r->softcap);
        v = vmulq_f32(cap, tanh4(vdivq_f32(v, cap)));
    }
    if (r->slope != 0) {
        const float32x4_t far = vcvtq_f32_s32(vabsq_s32(vaddq_s32(i, vdupq_n_s32(r->key))));
        v = vsubq_f32(v, vmulq_n_f32(far, r->slope));
    }
    const uint32x4_t in = vandq_u32(vcgeq_s32(i, vdupq_n_s32(r->from)), vcltq_s32(i, vdupq_n_s32(r->to)));
    return vbslq_f32(in, v, vdupq_n_f32(-INFINITY));
}

static void largest(q_attn_row *r) {
    const int32_t from = r->from / 16 * 16, to = (r->to + 15) / 16 * 16;
    float32x4_t top = vdupq_n_f32(-INFINITY);
    for (int32_t j = from; j < to; j += 4) {
        const float32x4_t v = scores(r, j);
        top = vmaxnmq_f32(top, v); /* a NaN is passed over here, and shows in the sums */
        vst1q_f32(r->score + j, v);
    }
    r->m = vmaxnmvq_f32(top);
}

static void weigh(q_attn_row *r) {
    const int32_t from = r->from / 16 * 16, to = r->to;
    float32x4_t sum[4];
    Q_UNROLL for (int i = 0; i < 4; i++) sum[i] = vdupq_n_f32(0);
    for (int32_t j = from; j < to; j += 16) {
        Q_UNROLL for (int i = 0; i < 4; i++) {
            const float32x4_t v = q_exp4(vsubq_f32(vld1q_f32(r->score + j + 4 * i), vdupq_n_f32(r->m)));
            sum[i] = vaddq_f32(sum[i], v);
            vst1q_f32(r->score + j + 4 * i, v);
        }
    }
    r->l = q_fold1(q_fold16(sum));
}

static void exps(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i += 4) vst1q_f32(x + i, q_exp4(vld1q_f32(x + i)));
}

static void merge(float *acc, const float *part, int64_t n, float a, float b) {
    for (int64_t i = 0; i < n; i += 4)
        vst1q_f32(acc + i, vfmaq_n_f32(vmulq_n_f32(vld1q_f32(acc + i), a), vld1q_f32(part + i), b));
}

static void finish(float *y, const float *acc, int64_t n, float a, float b) {
    for (int64_t i = 0; i < n; i += 4) vst1q_f32(y + i, vmulq_n_f32(vmulq_n_f32(vld1q_f32(acc + i), a), b));
}

Q_ATTENTION(attn_paged__neon, 4, 8, forms, Q_COUNT(forms), turn, q_ref_turn, largest, weigh, exps, merge, finish)
