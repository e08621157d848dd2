/* q6_k.c: 256 weights in 16 groups of 16: 128 bytes of nibbles, 64 bytes of high pairs, 16 signed bytes of scales, half
 * d; w = d * scale * (q - 32). Each 128 weights take 64 bytes of nibbles (byte l, l < 64: weights l and l + 64) and 32
 * bytes of pairs (byte l: weights l, l + 32, l + 64, l + 96 from its low bits up). Layer L2. */
#include "../codec.h"

Q_FORMAT(q6_k, 256, 210)

Q_FN void q6_k_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 210;
    int low = base + 64 * (sub / 4) + 32 * (sub & 1);
    int low_shift = 2 * (sub & 2);
    int high = base + 128 + 32 * (sub / 4);
    int high_shift = 2 * (sub & 3);
    d[0] = q_f16(row, base + 208);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = q_i8(row, base + 192 + 2 * sub + g);
        mn[g] = 0;
    }
    Q_FIELDS(nibbles, row, low, 32, low_shift)
    Q_FIELDS(pairs, row, high, 32, high_shift)
    for (int i = 0; i < 32; i++) q[i] = q_int(q_field(nibbles, i, 15u) | q_field(pairs, i, 3u) << 4) - 32;
}
Q_DECODE_SPLIT(q6_k)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q6_k_weights, .groups = 16, .lo = -32, .hi = 31, .sc_lo = -128, .sc_hi = 127,
                              .reference = -32, .from = 28, .to = 34, .steps = 12};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    memset(block, 0, 192);
    for (int i = 0; i < 256; i++) {
        const int q = (codes[i] + 32) & 63, half = i / 128, sub = i / 32 % 4, l = i % 32;
        block[64 * half + 32 * (sub & 1) + l] |= (uint8_t)((q & 15) << 2 * (sub & 2));
        block[128 + 32 * half + l] |= (uint8_t)((q >> 4) << 2 * sub);
    }
    for (int g = 0; g < 16; g++) block[192 + g] = (uint8_t)grid->sc[g];
    q_store16(block + 208, q_f32_to_half(grid->d));
}

const q_format q_format_q6_k = {.name = "q6_k", .weights = q6_k_weights, .bytes = q6_k_bytes, .fallback = "q8_0",
                                .decode = q6_k_decode, .split = q6_k_split, .fit = fit, .nearest = nearest,
                                .shape = &shape,
                                .emit = emit};
#endif
