/* wide.h: the loops over values in which quantizing and choosing tokens spend their time, as a record that exists once
 * per instruction set.
 *
 * What is searched and in which order (fit.c), what is rounded, written and measured is the library's and compiled for
 * any processor; what is done to many values alike is here. q_wide_any is portable C (wide.c). A backend may bring
 * records for wider registers (backend.h); one is chosen when a context opens and then passed from call to call
 * (q_quant_job.wide, q_fit_in.wide; NULL = q_wide_any), so that nothing is resolved before main and nothing is written
 * to share a choice.
 *
 * Bytes do not depend on the record: each function states its sums' order, products and sums are rounded one by one (no
 * fused multiply-add), and tests/test_wide.c compares every record with q_wide_any to the bit. Layer L1. */
#ifndef Q_WIDE_H
#define Q_WIDE_H

#include "fit.h"

enum { Q_WIDE_LANES = 16, Q_WIDE_COLUMNS = 32, Q_WIDE_SPAN = 256 };

/* A block that a search tries parameters on. */
typedef struct q_wide_block {
    int32_t n;           /* values per group: a multiple of Q_WIDE_LANES */
    bool with_min;
    bool with_book;
    float lo, hi;        /* levels are the integers lo .. hi, or with_book: */
    float book[16];      /* levels, ascending, and */
    float mid[16];       /* the 15 borders between them; the last is infinite */
    _Alignas(64) float x[Q_MAX_BLOCK], w[Q_MAX_BLOCK];
} q_wide_block;

/* Of a group with weights w, levels l under scale s and minimum m, and residuals r = x - (s * l - m): the sums of
 * (w r) r, (w l) l, (w r) l; with minima also of w r and w l. */
typedef struct q_wide_sums {
    float wrr, wll, wrl, wr, wl;
    float unused[3];
} q_wide_sums;

typedef struct q_wide_try {
    int32_t group;
    float s, m;          /* 0 where the shape has no minima */
} q_wide_try;

struct q_wide {
    /* out[i] for tries[i]. Levels: v = (x + m) * (1 / s), or 0 for s = 0; limited to lo .. hi and rounded to even
     * (q_fit_round); of a book, whose m is 0, the level with as many borders below v. Lane i of 16 takes values i, i +
     * 16, ... in ascending order from 0; then lanes are added pairwise: i and i + 8, i and i + 4, i and i + 2, i and i
     * + 1. */
    void (*sums)(const q_wide_block *b, const q_wide_try *tries, int32_t n, q_wide_sums *out);
    /* Lowest and highest of each of `groups` times n values, n a multiple of 16: in the lanes and the order of sums,
     * but for the last four, which go 0 and 1, 2 and 3 first; always as a < b ? a : b and a > b ? a : b, which decides
     * the sign of zeros. */
    void (*extremes)(const float *x, int32_t groups, int32_t n, float *lo, float *hi);
    /* y[i] = x[i] * by, n a multiple of 16. */
    void (*multiply)(const float *x, int32_t n, float by, float *y);
    /* codes[i] = (x + min) / scale, limited and rounded as above. False where some x is not within 0.499 |scale| of
     * what its code decodes to, scale * code - min: q_fit_nearest then decides. n is a multiple of 16, scale is not
     * 0. */
    bool (*codes)(const float *x, int32_t n, float scale, float min, float lo, float hi, int32_t *codes);
    /* q_encode_blocks of finite values without a search; false where the record has no quicker way for the format, and
     * nothing was written. */
    bool (*encode)(const q_format *f, const q_fit_in *in, int64_t n, uint8_t *row);
    /* q_decode_row; a NaN may come with other bits. */
    void (*decode)(const q_format *f, const uint8_t *row, int64_t n, float *y);
    /* Are all n values finite? */
    bool (*finite)(const float *x, int64_t n);
    /* sums[0] += (x - y)^2, sums[1] += x^2 in double; lane i of 8 takes values i, i + 8, ...; n is a multiple of 8, and
     * lanes are added in ascending order. True where some y is not finite or some |x| beyond the halves. */
    bool (*errors)(const float *x, const float *y, int64_t n, double sums[2]);
    /* w[j] = w[j] - e[i] * u[i * stride + j] for Q_WIDE_COLUMNS values j, in ascending i < n. */
    void (*subtract)(float *w, const float *e, int64_t n, const float *u, int64_t stride);
    /* Of each Q_WIDE_SPAN of n values, the last of them perhaps fewer, the largest; which of two zeros is open. y: a
     * copy, or NULL. False where some value is NaN or plus infinity: most[] then means nothing. */
    bool (*peaks)(const float *x, int64_t n, float *y, float *most);
    /* Of each span the sum of e^((x / 2 - best / 2) * by), no x above best: halves, because a difference of floats may
     * overflow. By q_wide_exp; in the lanes and the order of `sums`. e: each of them, or NULL; may be x. */
    void (*exps)(const float *x, int64_t n, float best, float by, float *e, float *sums);
};
/* e^x for x <= 0, 0 below -87: within 2 units in the last place. x = n ln 2 + r, ln 2 in two parts of which the first
 * times n is exact; the Taylor series to r^6. The order of operations is part of it. */
static inline float q_wide_exp(float x) {
    const float v = x > -87.0f ? x : -87.0f, shift = 12582912.0f;
    const float n = (v * 1.44269504f + shift) - shift;
    const float r = (v - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = r * (1.0f / 720) + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    const float e = q_bits_f32(q_f32_bits(p) + ((uint32_t)(int32_t)n << 23));
    return x > -87.0f ? e : 0.0f;
}
static inline int64_t q_wide_spans(int64_t n) { return (n + Q_WIDE_SPAN - 1) / Q_WIDE_SPAN; }
extern const q_wide q_wide_any;
static inline const q_wide *q_wide_of(const q_wide *w) { return w ? w : &q_wide_any; }

#endif
