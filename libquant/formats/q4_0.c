/* q4_0.c: 32 weights: half d, 16 bytes of nibbles (low: the first 16); w = d * (q - 8). Layer L2. */
#include "../codec.h"

Q_FORMAT(q4_0, 32, 18)

Q_FN void q4_0_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 18 + sub * 0;
    d[0] = q_f16(row, base);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = 0;
    }
    for (int i = 0; i < 16; i++) {
        int b = q_int(q_u8(row, base + 2 + i));
        q[i] = (b & 15) - 8;
        q[i + 16] = (b >> 4) - 8;
    }
}
Q_DECODE_SPLIT(q4_0)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q4_0_weights, .groups = 1, .lo = -8, .hi = 7, .sc_lo = 1, .sc_hi = 1,
                              .reference = -8, .from = 6, .to = 10.5f, .steps = 12};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store16(block, q_f32_to_half(grid->d));
    for (int i = 0; i < 16; i++)
        block[2 + i] = (uint8_t)(((codes[i] + 8) & 15) | ((codes[i + 16] + 8) & 15) << 4);
}

const q_format q_format_q4_0 = {.name = "q4_0", .weights = q4_0_weights, .bytes = q4_0_bytes, .fallback = "f16",
                                .decode = q4_0_decode, .split = q4_0_split, .fit = fit, .nearest = nearest,
                                .shape = &shape,
                                .emit = emit};
#endif

#ifdef Q_ENCODE
#include "../encode_codec.h"

Q_FN void q4_0_store(Q_DST row, int block, Q_IN(float, x, 32)) {
    int q[32], base = block * 18;
    uint dm[2];
    q_levels(x, -8, 7, -8, q, dm);
    q_put16(row, base, dm[0]);
    for (int i = 0; i < 16; i++) q_put8(row, base + 2 + i, q_uint(q[i] + 8) | q_uint(q[i + 16] + 8) << 4);
}
#endif
