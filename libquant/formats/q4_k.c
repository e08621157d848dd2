/* q4_k.c: 256 weights in 8 groups of 32: half d, half dmin, 12 bytes of eight 6-bit scales and minima, 128 bytes of
 * nibbles (each 64 weights: 32 bytes, low nibbles first); w = d * scale * q - dmin * min. Layer L2. */
#include "../codec.h"

Q_FORMAT(q4_k, 256, 144)

Q_FN void q4_k_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 144;
    int codes = base + 16 + 32 * (sub / 2);
    int shift = 4 * (sub & 1);
    int scale = 0;
    int least = 0;
    if (sub < 4) {
        scale = q_int(q_u8(row, base + 4 + sub) & 63u);
        least = q_int(q_u8(row, base + 8 + sub) & 63u);
    } else { /* the last four: nibbles in bytes 8..11, high pairs on top of the first four */
        uint b = q_u8(row, base + 8 + sub);
        scale = q_int((b & 15u) | (q_u8(row, base + sub) >> 6) << 4);
        least = q_int((b >> 4) | (q_u8(row, base + 4 + sub) >> 6) << 4);
    }
    d[0] = q_f16(row, base);
    d[1] = q_f16(row, base + 2);
    for (int g = 0; g < 2; g++) {
        sc[g] = scale;
        mn[g] = least;
    }
    Q_FIELDS(nibbles, row, codes, 32, shift)
    for (int i = 0; i < 32; i++) q[i] = q_int(q_field(nibbles, i, 15u));
}
Q_DECODE_SPLIT_MIN(q4_k)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q4_k_weights, .groups = 8, .lo = 0, .hi = 15, .sc_lo = 0, .sc_hi = 63,
                              .mn_hi = 63, .from = 12.5f, .to = 16.5f, .steps = 8};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_minimum(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store16(block, q_f32_to_half(grid->d));
    q_store16(block + 2, q_f32_to_half(grid->dmin));
    for (int g = 0; g < 4; g++) {
        const int sc = grid->sc[g + 4] & 63, mn = grid->mn[g + 4] & 63;
        block[4 + g] = (uint8_t)((grid->sc[g] & 63) | (sc >> 4) << 6);
        block[8 + g] = (uint8_t)((grid->mn[g] & 63) | (mn >> 4) << 6);
        block[12 + g] = (uint8_t)((sc & 15) | (mn & 15) << 4);
    }
    for (int i = 0; i < 128; i++) {
        const int at = 64 * (i / 32) + i % 32;
        block[16 + i] = (uint8_t)((codes[at] & 15) | (codes[at + 32] & 15) << 4);
    }
}

const q_format q_format_q4_k = {.name = "q4_k", .weights = q4_k_weights, .bytes = q4_k_bytes, .fallback = "q5_0",
                                .has_min = true, .decode = q4_k_decode, .split = q4_k_split, .fit = fit,
                                .nearest = nearest, .shape = &shape, .emit = emit};
#endif
