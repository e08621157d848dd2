/* q3_k.c: 256 weights in 16 groups of 16: 32 bytes of third bits (byte l, bit g: weight 32 g + l), 64 bytes of 2-bit
 * codes as in q2_k, 12 bytes of sixteen 6-bit scales, half d; w = d * (scale - 32) * (q - 4). Layer L2. */
#include "../codec.h"

Q_FORMAT(q3_k, 256, 110)

Q_FN void q3_k_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 110;
    int codes = base + 32 + 32 * (sub / 4);
    int shift = 2 * (sub & 3);
    d[0] = q_f16(row, base + 108);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        int j = 2 * sub + g; /* low nibbles: 8 bytes, low halves first; high pairs: 4 bytes, from their low bits up */
        uint low = (q_u8(row, base + 96 + (j & 7)) >> (4 * (j >> 3))) & 15u;
        uint high = (q_u8(row, base + 104 + (j & 3)) >> (2 * (j >> 2))) & 3u;
        sc[g] = q_int(low | high << 4) - 32;
        mn[g] = 0;
    }
    for (int i = 0; i < 32; i++) {
        int third = q_int((q_u8(row, base + i) >> sub) & 1u);
        q[i] = q_int((q_u8(row, codes + i) >> shift) & 3u) + 4 * third - 4;
    }
}
Q_DECODE_SPLIT(q3_k)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q3_k_weights, .groups = 16, .lo = -4, .hi = 3, .sc_lo = -32, .sc_hi = 31,
                              .reference = -4, .from = 2.5f, .to = 5.5f, .steps = 10};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    memset(block, 0, 108);
    for (int i = 0; i < 256; i++) {
        const int q = (codes[i] + 4) & 7;
        block[i % 32] |= (uint8_t)((q >> 2) << (i / 32));
        block[32 + 32 * (i / 128) + i % 32] |= (uint8_t)((q & 3) << 2 * (i / 32 % 4));
    }
    for (int j = 0; j < 16; j++) {
        const int sc = (grid->sc[j] + 32) & 63;
        block[96 + j % 8] |= (uint8_t)((sc & 15) << 4 * (j / 8));
        block[104 + j % 4] |= (uint8_t)((sc >> 4) << 2 * (j / 4));
    }
    q_store16(block + 108, q_f32_to_half(grid->d));
}

const q_format q_format_q3_k = {.name = "q3_k", .weights = q3_k_weights, .bytes = q3_k_bytes, .fallback = "q4_0",
                                .decode = q3_k_decode, .split = q3_k_split, .fit = fit, .nearest = nearest,
                                .shape = &shape,
                                .emit = emit};
#endif
