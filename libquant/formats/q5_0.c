/* q5_0.c: 32 weights: half d, 4 bytes of fifth bits (bit i: weight i), 16 bytes of nibbles (low: the first 16);
 * w = d * (q - 16). Layer L2. */
#include "../codec.h"

Q_FORMAT(q5_0, 32, 22)

Q_FN void q5_0_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 22 + sub * 0;
    uint high = q_u32(row, base + 2);
    d[0] = q_f16(row, base);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = 0;
    }
    for (int i = 0; i < 16; i++) {
        uint b = q_u8(row, base + 6 + i);
        q[i] = q_int((b & 15u) | ((high >> i) & 1u) << 4) - 16;
        q[i + 16] = q_int((b >> 4) | ((high >> (i + 16)) & 1u) << 4) - 16;
    }
}
Q_DECODE_SPLIT(q5_0)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q5_0_weights, .groups = 1, .lo = -16, .hi = 15, .sc_lo = 1, .sc_hi = 1,
                              .reference = -16, .from = 14, .to = 18, .steps = 10};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    uint32_t high = 0;
    for (int i = 0; i < 32; i++) high |= ((uint32_t)(codes[i] + 16) >> 4 & 1u) << i;
    q_store16(block, q_f32_to_half(grid->d));
    q_store32(block + 2, high);
    for (int i = 0; i < 16; i++)
        block[6 + i] = (uint8_t)(((codes[i] + 16) & 15) | ((codes[i + 16] + 16) & 15) << 4);
}

const q_format q_format_q5_0 = {.name = "q5_0", .weights = q5_0_weights, .bytes = q5_0_bytes, .fallback = "f16",
                                .decode = q5_0_decode, .split = q5_0_split, .fit = fit, .nearest = nearest,
                                .shape = &shape,
                                .emit = emit};
#endif
