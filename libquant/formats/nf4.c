/* nf4.c: 64 weights: float32 absmax, 32 bytes of nibbles into the 16 "normal float" levels, the first weight of each
 * pair in the high nibble; w = absmax * level. The levels and the nibble order are those of bitsandbytes files; the row
 * layout is our own (there absmax lies in a tensor of its own). For 8-bit activations the levels are rounded to
 * integers (nf4_levels.h says what that costs). Layer L2. */
#include "../book_codec.h"
#include "../nf4_levels.h"

Q_FORMAT(nf4, 64, 36)

Q_BOOK_CODEC(nf4, nf4_table, nf4_integers, NF4_SCALE, q_f32(row, block * 36), block * 36 + 4 + 16 * sub)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = nf4_weights, .groups = 1, .lo = 0, .hi = 15, .levels = nf4_table, .sc_lo = 1,
                              .sc_hi = 1, .full = true, .reference = 1, .from = 0.7f, .to = 1.2f, .steps = 10};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
/* The published rule, to the bit: x times one over absmax against the middles of the levels, all in float32; a tie
 * takes the lower level. */
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    Q_UNUSED(j);
    const float absmax = grid->scale[0], inverse = 1.0f / fmaxf(fabsf(absmax), 1e-38f);
    const float v = x * (absmax < 0.0f ? -inverse : inverse);
    int32_t code = 0;
    for (int32_t half = 8; half > 0; half /= 2)
        if (v > (nf4_table[code + half - 1] + nf4_table[code + half]) * 0.5f) code += half;
    *value = absmax * nf4_table[code];
    return code;
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store32(block, q_f32_bits(grid->d));
    for (int i = 0; i < 32; i++) block[4 + i] = (uint8_t)((codes[2 * i] & 15) << 4 | (codes[2 * i + 1] & 15));
}

const q_format q_format_nf4 = {.name = "nf4", .weights = nf4_weights, .bytes = nf4_bytes, .fallback = "f16",
                               .decode = nf4_decode, .split = nf4_split, .split_nmse = NF4_SPLIT_NMSE,
                               .fit = fit, .nearest = nearest, .emit = emit};
#endif
