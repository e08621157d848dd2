/* tq2_0.c: 256 weights of three values: 64 bytes of 2-bit codes, half d; w = d * (q - 1). Each 128 weights take 32
 * bytes: byte l holds weights l, l + 32, l + 64, l + 96 from its low bits up. A fourth code is read as 2, and never
 * written. Layer L2. */
#include "../codec.h"

Q_FORMAT(tq2_0, 256, 66)

Q_FN void tq2_0_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                      Q_OUT(float, d, 2)) {
    int base = block * 66;
    int codes = base + 32 * (sub / 4);
    int shift = 2 * (sub & 3);
    d[0] = q_f16(row, base + 64);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = 0;
    }
    for (int i = 0; i < 32; i++) q[i] = q_int((q_u8(row, codes + i) >> shift) & 3u) - 1;
}
Q_DECODE_SPLIT(tq2_0)

#ifdef Q_HOST
#include "../fit.h"

/* The reference gives the largest magnitude the top level: exact for weights that are ternary already. */
static const q_shape shape = {.weights = tq2_0_weights, .groups = 1, .lo = -1, .hi = 1, .sc_lo = 1, .sc_hi = 1,
                              .reference = 1, .from = 1, .to = 4, .steps = 15};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    memset(block, 0, 64);
    for (int i = 0; i < 256; i++)
        block[32 * (i / 128) + i % 32] |= (uint8_t)((Q_MIN(Q_MAX(codes[i], -1), 1) + 1) << 2 * (i / 32 % 4));
    q_store16(block + 64, q_f32_to_half(grid->d));
}

const q_format q_format_tq2_0 = {.name = "tq2_0", .weights = tq2_0_weights, .bytes = tq2_0_bytes, .fallback = "q4_0",
                                 .decode = tq2_0_decode, .split = tq2_0_split, .fit = fit, .nearest = nearest,
                                 .emit = emit};
#endif
