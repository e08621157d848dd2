/* iq4_xs.c: 256 weights: half d, 16 bits of high scale bits, 4 bytes of low ones, then 8 times 16 bytes of nibbles into
 * the codebook of iq4_nl; w = d * (scale - 32) * table[q]. Layer L2. */
#include "../codec.h"

Q_FORMAT(iq4_xs, 256, 136)

Q_TABLE(int, iq4_xs_table, 16) = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

Q_FN void iq4_xs_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                       Q_OUT(float, d, 2)) {
    int base = block * 136;
    uint low = (q_u8(row, base + 4 + sub / 2) >> (4 * (sub & 1))) & 15u;
    uint high = (q_u16(row, base + 2) >> (2 * sub)) & 3u;
    d[0] = q_f16(row, base);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = q_int(low | high << 4) - 32;
        mn[g] = 0;
    }
    Q_FIELDS(codes, row, base + 8 + 16 * sub, 16, 0)
    for (int i = 0; i < 16; i++) {
        int b = q_int(q_field(codes, i, 255u));
        q[i] = iq4_xs_table[b & 15];
        q[i + 16] = iq4_xs_table[b >> 4];
    }
}
Q_DECODE_SPLIT(iq4_xs)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = iq4_xs_weights, .groups = 8, .lo = 0, .hi = 15, .table = iq4_xs_table,
                              .sc_lo = -32, .sc_hi = 31, .reference = -127, .from = 96, .to = 144, .steps = 8};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    uint32_t high = 0;
    memset(block, 0, 8);
    for (int g = 0; g < 8; g++) {
        const uint32_t sc = (uint32_t)(grid->sc[g] + 32);
        block[4 + g / 2] |= (uint8_t)((sc & 15u) << (4 * (g & 1)));
        high |= (sc >> 4 & 3u) << (2 * g);
        for (int i = 0; i < 16; i++)
            block[8 + 16 * g + i] = (uint8_t)((codes[32 * g + i] & 15) | (codes[32 * g + i + 16] & 15) << 4);
    }
    q_store16(block, q_f32_to_half(grid->d));
    q_store16(block + 2, (uint16_t)high);
}

const q_format q_format_iq4_xs = {.name = "iq4_xs", .weights = iq4_xs_weights, .bytes = iq4_xs_bytes,
                                  .fallback = "iq4_nl", .decode = iq4_xs_decode, .split = iq4_xs_split, .fit = fit,
                                  .nearest = nearest, .emit = emit};
#endif
