/* matmul_units_i8mm.c: products of many columns with 8-bit activations by the instruction that multiplies two rows of
 * eight bytes with two columns of eight and adds to four sums (FEAT_I8MM). It gains nothing for one or two columns,
 * which pass to the kernels of the rung below. Layer L2. */
#if defined(__clang__)
#define Q_UNITS_TARGET __attribute__((target("i8mm")))
#else
#define Q_UNITS_TARGET __attribute__((target("arch=armv8.2-a+i8mm")))
#endif
#define Q_UNITS_MANY_ALONE
#include "units_neon.h"

/* In assembly for the reason that matmul_units_dotprod.c has. Of rows r, r + 1 in w and columns c, c + 1 in a the sums
 * are (r, c), (r, c + 1), (r + 1, c), (r + 1, c + 1). */
Q_UNITS_INLINE int32x4_t two_by_two(int32x4_t sums, int8x16_t w, int8x16_t a) {
    __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(w), "w"(a));
    return sums;
}

Q_UNITS_INLINE void q_eight_rows(int C, int pairs, const int8_t *w, const int8_t *const *a, int32x4_t sum[][2]) {
    int32x4_t t[Q_UNITS_C / 2][4];
    Q_UNROLL for (int j = 0; j < 2 * C; j++) t[j / 4][j % 4] = vdupq_n_s32(0);
    Q_UNROLL for (int i = 0; i < pairs; i++) {
        int8x16_t b[2][Q_UNITS_C / 2];
        Q_UNROLL for (int c = 0; c < C / 2; c++) {
            const int8x16_t one = vld1q_s8(a[2 * c] + 16 * i), two = vld1q_s8(a[2 * c + 1] + 16 * i);
            b[0][c] = q_units_lows(one, two);
            b[1][c] = q_units_highs(one, two);
        }
        Q_UNROLL for (int e = 0; e < 2; e++)
            Q_UNROLL for (int p = 0; p < 4; p++) {
                const int8x16_t v = vld1q_s8(w + 128 * i + 64 * e + 16 * p);
                Q_UNROLL for (int c = 0; c < C / 2; c++) t[c][p] = two_by_two(t[c][p], v, b[e][c]);
            }
    }
    Q_UNROLL for (int j = 0; j < C; j++) {
        const int32x4_t *two = &t[j / 2][j % 2 * 2];
        sum[j / 2 * 2][j % 2] = vuzp1q_s32(two[0], two[1]);
        sum[j / 2 * 2 + 1][j % 2] = vuzp2q_s32(two[0], two[1]);
    }
}

/* PRODUCT's two functions of a format. */
#define MANY(isa, name, act, ...)                                                          \
    uint64_t q_matmul_##name##_##act##_8x4__##isa##_scratch(int64_t k, int64_t n) {        \
        return q_units_scratch(&name##_##isa##_units, k, n);                               \
    }                                                                                      \
    Q_UNITS_TARGET void q_matmul_##name##_##act##_8x4__##isa(const q_mm *m) {              \
        if (m->n <= Q_UNITS_FEW) q_matmul_##name##_##act##_8x4__neon_dotprod(m);           \
        else q_units_many(&name##_##isa##_units, m);                                       \
    }

Q_UNITS_FORMATS(Q_UNITS_RECORD, neon_i8mm)
Q_UNITS_FORMATS(MANY, neon_i8mm)
