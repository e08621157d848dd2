/* iq4_nl.c: 32 weights: half d, 16 bytes of nibbles (low: the first 16) into a codebook that is denser around zero;
 * w = d * table[q]. Layer L2. */
#include "../codec.h"

Q_FORMAT(iq4_nl, 32, 18)

Q_TABLE(int, iq4_nl_table, 16) = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

Q_FN void iq4_nl_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
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
        q[i] = iq4_nl_table[b & 15];
        q[i + 16] = iq4_nl_table[b >> 4];
    }
}
Q_DECODE_SPLIT(iq4_nl)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = iq4_nl_weights, .groups = 1, .lo = 0, .hi = 15, .table = iq4_nl_table,
                              .sc_lo = 1, .sc_hi = 1, .reference = -127, .from = 96, .to = 144, .steps = 8};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store16(block, q_f32_to_half(grid->d));
    for (int i = 0; i < 16; i++) block[2 + i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

const q_format q_format_iq4_nl = {.name = "iq4_nl", .weights = iq4_nl_weights, .bytes = iq4_nl_bytes,
                                  .fallback = "f16", .decode = iq4_nl_decode, .split = iq4_nl_split, .fit = fit,
                                  .nearest = nearest, .emit = emit};
#endif
