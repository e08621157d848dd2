/* q4_1.c: 32 weights: half d, half m, 16 bytes of nibbles (low: the first 16); w = d * q + m. Layer L2. */
#include "../codec.h"

Q_FORMAT(q4_1, 32, 20)

/* m is added: as a minimum it counts -1 times. */
Q_FN void q4_1_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 20 + sub * 0;
    d[0] = q_f16(row, base);
    d[1] = q_f16(row, base + 2);
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = -1;
    }
    for (int i = 0; i < 16; i++) {
        int b = q_int(q_u8(row, base + 4 + i));
        q[i] = b & 15;
        q[i + 16] = b >> 4;
    }
}
Q_DECODE_SPLIT_MIN(q4_1)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q4_1_weights, .groups = 1, .lo = 0, .hi = 15, .sc_lo = 1, .sc_hi = 1,
                              .mn_hi = -1, .from = 12.5f, .to = 16.5f, .steps = 8};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_minimum(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store16(block, q_f32_to_half(grid->d));
    q_store16(block + 2, q_f32_to_half(grid->dmin));
    for (int i = 0; i < 16; i++) block[4 + i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

const q_format q_format_q4_1 = {.name = "q4_1", .weights = q4_1_weights, .bytes = q4_1_bytes, .fallback = "f16",
                                .has_min = true, .decode = q4_1_decode, .split = q4_1_split, .fit = fit,
                                .nearest = nearest, .shape = &shape, .emit = emit};
#endif
