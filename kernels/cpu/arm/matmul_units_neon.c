/* matmul_units_neon.c: products with 8-bit activations by the multiplications of base NEON, which yield 16 bits: two
 * products of a code of magnitude at most 128 with one of at most 127 are 32512 at most and fit. Layer L2. */
#define Q_UNITS_TARGET
#include "units_neon.h"

Q_UNITS_INLINE int32x4_t q_dot16(int32x4_t sums, int8x16_t w, int8x16_t a) {
    return vpadalq_s16(sums, vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a));
}

/* Two registers of a panel have 16 codes of two rows, of the first in their lower halves. */
Q_UNITS_INLINE void q_eight_rows(int C, int pairs, const int8_t *w, const int8_t *const *a, int32x4_t sum[][2]) {
    Q_UNROLL for (int h = 0; h < 2; h++) {
        int32x4_t t[Q_UNITS_C][4];
        Q_UNROLL for (int j = 0; j < 4 * C; j++) t[j / 4][j % 4] = vdupq_n_s32(0);
        Q_UNROLL for (int i = 0; i < pairs; i++)
            Q_UNROLL for (int p = 0; p < 2; p++) {
                const int8_t *at = w + 128 * i + 16 * (2 * h + p);
                const int8x16_t v0 = vld1q_s8(at), v1 = vld1q_s8(at + 64);
                Q_UNROLL for (int c = 0; c < C; c++) {
                    const int8x16_t b = vld1q_s8(a[c] + 16 * i);
                    const int8x8_t b0 = vget_low_s8(b), b1 = vget_high_s8(b);
                    int32x4_t *to = &t[c][2 * p];
                    to[0] = vpadalq_s16(to[0], vmlal_s8(vmull_s8(vget_low_s8(v0), b0), vget_low_s8(v1), b1));
                    to[1] = vpadalq_s16(to[1], vmlal_s8(vmull_s8(vget_high_s8(v0), b0), vget_high_s8(v1), b1));
                }
            }
        Q_UNROLL for (int c = 0; c < C; c++) sum[c][h] = q_units_across(t[c]);
    }
}

Q_UNITS_ROWS(neon)
