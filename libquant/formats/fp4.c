/* fp4.c: 64 weights: float32 absmax, 32 bytes of nibbles (the first weight of each pair in the high one) of sign and
 * one of eight levels; w = absmax * level. The levels and the nibble order are those of bitsandbytes files, whose
 * levels do not ascend with the code; the row layout is our own, as nf4's.
 *
 * For 8-bit activations the levels are integers, times 120: all are exact but the least, 0.625, which counts as 1. On
 * normally distributed weights that moves 1.2e-5 of their mean square, where FP4 itself misses 1.5e-2. Layer L2. */
#include "../book_codec.h"

Q_FORMAT(fp4, 64, 36)

Q_TABLE(float, fp4_table, 16) = {0.0, 0.0052083334885537624, 0.6666666865348816, 1.0,
                                 0.3333333432674408, 0.5, 0.1666666716337204, 0.25,
                                 0.0, -0.0052083334885537624, -0.6666666865348816, -1.0,
                                 -0.3333333432674408, -0.5, -0.1666666716337204, -0.25};

Q_TABLE(int, fp4_integers, 16) = {0, 1, 80, 120, 40, 60, 20, 30, 0, -1, -80, -120, -40, -60, -20, -30};

/* 0.0083...: 1 / 120, in float32 */
Q_BOOK_CODEC(fp4, fp4_table, fp4_integers, 0.008333333333333333, q_f32(row, block * 36), block * 36 + 4 + 16 * sub)

#ifdef Q_HOST
#include "../fit.h"

/* A grid's codes are levels in ascending order; `codes` says which code each has. Of the two zeros the plain one. */
static const float levels[16] = {-1.0f, -0.6666666865348816f, -0.5f, -0.3333333432674408f, -0.25f,
                                 -0.1666666716337204f, -0.0052083334885537624f, 0.0f, 0.0f, 0.0052083334885537624f,
                                 0.1666666716337204f, 0.25f, 0.3333333432674408f, 0.5f, 0.6666666865348816f, 1.0f};
static const uint8_t code_of[16] = {11, 10, 13, 12, 15, 14, 9, 0, 0, 1, 6, 7, 4, 5, 2, 3};

static const q_shape shape = {.weights = fp4_weights, .groups = 1, .lo = 0, .hi = 15, .levels = levels, .sc_lo = 1,
                              .sc_hi = 1, .full = true, .reference = 1, .from = 0.7f, .to = 1.2f, .steps = 10};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store32(block, q_f32_bits(grid->d));
    for (int i = 0; i < 32; i++)
        block[4 + i] = (uint8_t)(code_of[codes[2 * i] & 15] << 4 | code_of[codes[2 * i + 1] & 15]);
}

const q_format q_format_fp4 = {.name = "fp4", .weights = fp4_weights, .bytes = fp4_bytes, .fallback = "f16",
                               .decode = fp4_decode, .split = fp4_split, .split_nmse = 1.5e-5f,
                               .fit = fit, .nearest = nearest, .emit = emit};
#endif
