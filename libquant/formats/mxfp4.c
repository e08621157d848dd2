/* mxfp4.c: 32 weights: a byte e, 16 bytes of nibbles (low: the first 16), 4-bit floats; w = 2^(e - 127) * float. What
 * gpt-oss is published in. e = 255 is a number like the others, as in other programs; the least scales are subnormal.
 * Layer L2. */
#include "../e2m1.h"

Q_FORMAT(mxfp4, 32, 17)

Q_FN void mxfp4_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                      Q_OUT(float, d, 2)) {
    int base = block * 17 + sub * 0;
    uint e = q_u8(row, base);
    d[0] = q_bits(e < 2u ? 2097152u << e : (e - 1u) << 23); /* 2^(e - 128) */
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = 0;
    }
    for (int i = 0; i < 16; i++) {
        int b = q_int(q_u8(row, base + 1 + i));
        q[i] = e2m1_table[b & 15];
        q[i + 16] = e2m1_table[b >> 4];
    }
}
Q_DECODE_SPLIT(mxfp4)

#ifdef Q_HOST
#include "../fit.h"

enum { TRIED = 4 /* exponents by search: the reference's, two less, one more */ };

static const q_shape shape = {.weights = mxfp4_weights, .groups = 1, .lo = 0, .hi = 15, .table = e2m1_levels};

static float scale_of(int32_t e) { return q_bits_f32(e < 2 ? 2097152u << e : (uint32_t)(e - 1) << 23); }

/* The reference: the largest magnitude's power of two is that of the levels' top, 4, so that up to a quarter is cut
 * off. */
static void fit(const q_fit_in *in, q_grid *grid) {
    float top = 0.0f, tried[TRIED];
    int exponent = 0, first;
    memset(grid, 0, sizeof *grid);
    for (int i = 0; i < mxfp4_weights; i++) top = fmaxf(top, fabsf(in->x[i]));
    if (!(top > 0.0f)) return;
    (void)frexpf(top, &exponent); /* top < 2^exponent */
    first = Q_MAX(exponent - 3 + 127, 0);
    if (in->search) {
        first = Q_MAX(first - 2, 0);
        for (int i = 0; i < TRIED; i++) tried[i] = scale_of(Q_MIN(first + i, 253)); /* of 253 the top is finite */
        first = Q_MIN(first + q_fit_choose(&shape, in->x, in->weight, mxfp4_weights, tried, TRIED), 253);
    }
    grid->sc[0] = (int16_t)first;
    grid->d = grid->scale[0] = scale_of(first);
}
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    block[0] = (uint8_t)grid->sc[0];
    for (int i = 0; i < 16; i++) block[1 + i] = (uint8_t)(e2m1_code(codes[i]) | e2m1_code(codes[i + 16]) << 4);
}

const q_format q_format_mxfp4 = {.name = "mxfp4", .weights = mxfp4_weights, .bytes = mxfp4_bytes, .fallback = "f16",
                                 .decode = mxfp4_decode, .split = mxfp4_split, .fit = fit, .nearest = nearest,
                                 .emit = emit};
#endif
