/* q2_k.c: 256 weights in 16 groups of 16: 16 bytes (low nibble scale, high nibble minimum), 64 bytes of 2-bit codes,
 * half d, half dmin; w = d * scale * q - dmin * min. Each 128 weights take 32 bytes: byte l holds weights l, l + 32,
 * l + 64, l + 96 from its low bits up. Layer L2. */
#include "../codec.h"

Q_FORMAT(q2_k, 256, 84)

Q_FN void q2_k_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 84;
    int codes = base + 16 + 32 * (sub / 4);
    int shift = 2 * (sub & 3);
    d[0] = q_f16(row, base + 80);
    d[1] = q_f16(row, base + 82);
    for (int g = 0; g < 2; g++) {
        int b = q_int(q_u8(row, base + 2 * sub + g));
        sc[g] = b & 15;
        mn[g] = b >> 4;
    }
    for (int i = 0; i < 32; i++) q[i] = q_int((q_u8(row, codes + i) >> shift) & 3u);
}
Q_DECODE_SPLIT_MIN(q2_k)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q2_k_weights, .groups = 16, .lo = 0, .hi = 3, .sc_lo = 0, .sc_hi = 15,
                              .mn_hi = 15, .from = 2.25f, .to = 4.5f, .steps = 6};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_minimum(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    for (int g = 0; g < 16; g++) block[g] = (uint8_t)((grid->sc[g] & 15) | (grid->mn[g] & 15) << 4);
    memset(block + 16, 0, 64);
    for (int i = 0; i < 256; i++)
        block[16 + 32 * (i / 128) + i % 32] |= (uint8_t)((codes[i] & 3) << 2 * (i / 32 % 4));
    q_store16(block + 80, q_f32_to_half(grid->d));
    q_store16(block + 82, q_f32_to_half(grid->dmin));
}

const q_format q_format_q2_k = {.name = "q2_k", .weights = q2_k_weights, .bytes = q2_k_bytes, .fallback = "q4_0",
                                .has_min = true, .decode = q2_k_decode, .split = q2_k_split, .fit = fit,
                                .nearest = nearest, .shape = &shape, .emit = emit};
#endif
