/* matmul_f32_neon.c: products with float32 activations: of any format by its own decoder, and of the float formats,
 * whose rows are widened by vector instructions; for one column binary16 is not stored but multiplied as it is read.
 * Layer L2. */
#include "tile_f32_neon.h"

/* ---- any format: its own decoder */

Q_TILE_PRODUCT(matmul_any_f32_2x3__neon, q_decode_row)

/* ---- binary16 */

static void widen_f16(const q_format *f, const uint8_t *row, int64_t k, float *to) {
    Q_UNUSED(f);
    int64_t i = 0;
    for (; i + 4 <= k; i += 4) vst1q_f32(to + i, q_widen4(row + 2 * i));
    for (; i < k; i++) to[i] = q_half_to_f32(q_load16(row + 2 * i));
}

/* Four rows, which exist, times one column, without a tile. */
static void four_rows_f16(const q_mm *m, int64_t r0) {
    enum { R = 4 };
    const uint8_t *w = m->w + (uint64_t)r0 * m->row_bytes;
    const float *x = q_tile_column(m, 0);
    float32x4_t acc[R][4], left[R];
    Q_UNROLL for (int j = 0; j < 4 * R; j++) acc[j / 4][j % 4] = vdupq_n_f32(0);
    for (int64_t i = 0; i < m->k; i += 16) {
        Q_UNROLL for (int q = 0; q < 4; q++) {
            const float32x4_t u = vld1q_f32(x + i + 4 * q);
            Q_UNROLL for (int r = 0; r < R; r++)
                acc[r][q] = vfmaq_f32(acc[r][q], q_widen4(w + (uint64_t)r * m->row_bytes + 2 * (i + 4 * q)), u);
        }
    }
    Q_UNROLL for (int r = 0; r < R; r++) left[r] = q_fold16(acc[r]);
    q_put4(m, r0, 0, q_fold4(left));
}

uint64_t q_matmul_f16_f32_2x3__neon_scratch(int64_t k, int64_t n) {
    Q_UNUSED(n);
    return q_tile_bytes(k);
}
void q_matmul_f16_f32_2x3__neon(const q_mm *m) {
    q_mm rest = *m;
    if (m->n == 1 && m->k % 16 == 0) {
        int64_t r = 0;
        for (; r + 4 <= m->rows; r += 4) four_rows_f16(m, r);
        rest.w += (uint64_t)r * m->row_bytes;
        rest.y += r;
        rest.bias = m->bias ? m->bias + r : NULL;
        rest.rows -= r;
    }
    q_tile_product(&rest, widen_f16);
}

/* ---- bfloat16 */

static void widen_bf16(const q_format *f, const uint8_t *row, int64_t k, float *to) {
    Q_UNUSED(f);
    int64_t i = 0;
    for (; i + 4 <= k; i += 4)
        vst1q_f32(to + i, vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(row + 2 * i)), 16)));
    for (; i < k; i++) to[i] = q_bf16_to_f32(q_load16(row + 2 * i));
}

Q_TILE_PRODUCT(matmul_bf16_f32_2x3__neon, widen_bf16)

/* ---- float32 */

static void widen_f32(const q_format *f, const uint8_t *row, int64_t k, float *to) {
    Q_UNUSED(f);
    memcpy(to, row, (size_t)k * sizeof(float));
}

Q_TILE_PRODUCT(matmul_f32_f32_2x3__neon, widen_f32)
