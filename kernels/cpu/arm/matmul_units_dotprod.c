/* matmul_units_dotprod.c: products with 8-bit activations by the instruction that adds four products of bytes to each
 * lane of 32 bits (FEAT_DotProd). Layer L2. */
#if defined(__clang__)
#define Q_UNITS_TARGET __attribute__((target("dotprod")))
#else
#define Q_UNITS_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#include "units_neon.h"

/* In assembly, since clang 14 declares the intrinsic only where a whole file is compiled for the extension. */
Q_UNITS_INLINE int32x4_t q_dot16(int32x4_t sums, int8x16_t w, int8x16_t a) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(w), "w"(a));
    return sums;
}

/* A register of a panel has two rows; lanes 0 and 1 of its sum are of the first. */
Q_UNITS_INLINE void q_eight_rows(int C, int pairs, const int8_t *w, const int8_t *const *a, int32x4_t sum[][2]) {
    int32x4_t t[Q_UNITS_C][4];
    Q_UNROLL for (int j = 0; j < 4 * C; j++) t[j / 4][j % 4] = vdupq_n_s32(0);
    Q_UNROLL for (int i = 0; i < pairs; i++) {
        int8x16_t b[Q_UNITS_C];
        Q_UNROLL for (int c = 0; c < C; c++) b[c] = vld1q_s8(a[c] + 16 * i);
        Q_UNROLL for (int e = 0; e < 2; e++)
            Q_UNROLL for (int p = 0; p < 4; p++) {
                const int8x16_t v = vld1q_s8(w + 128 * i + 64 * e + 16 * p);
                Q_UNROLL for (int c = 0; c < C; c++)
                    t[c][p] = q_dot16(t[c][p], v, e ? q_units_high_twice(b[c]) : q_units_low_twice(b[c]));
            }
    }
    Q_UNROLL for (int j = 0; j < 2 * C; j++) sum[j / 2][j % 2] =
        vpaddq_s32(t[j / 2][j % 2 * 2], t[j / 2][j % 2 * 2 + 1]);
}

Q_UNITS_ROWS(neon_dotprod)
