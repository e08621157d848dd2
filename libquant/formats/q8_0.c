/* q8_0.c: 32 weights: half d, 32 signed bytes; w = d * q. Layer L2. */
#include "../codec.h"

Q_FORMAT(q8_0, 32, 34)

Q_FN void q8_0_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 34 + sub * 0;
    d[0] = q_f16(row, base);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = 0;
    }
    for (int i = 0; i < 32; i++) q[i] = q_i8(row, base + 2 + i);
}
Q_DECODE_SPLIT(q8_0)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q8_0_weights, .groups = 1, .lo = -128, .hi = 127, .sc_lo = 1, .sc_hi = 1,
                              .reference = 127, .from = 120, .to = 129, .steps = 12};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store16(block, q_f32_to_half(grid->d));
    for (int i = 0; i < 32; i++) block[2 + i] = (uint8_t)codes[i];
}

const q_format q_format_q8_0 = {.name = "q8_0", .weights = q8_0_weights, .bytes = q8_0_bytes, .fallback = "f16",
                                .decode = q8_0_decode, .split = q8_0_split, .fit = fit, .nearest = nearest,
                                .shape = &shape,
                                .emit = emit};
#endif

#ifdef Q_ENCODE
#include "../encode_codec.h"

Q_FN void q8_0_store(Q_DST row, int block, Q_IN(float, x, 32)) {
    int q[32], base = block * 34;
    uint dm[2];
    q_levels(x, -128, 127, 127, q, dm);
    q_put16(row, base, dm[0]);
    for (int i = 0; i < 32; i++) q_put8(row, base + 2 + i, q_uint(q[i]));
}
#endif
