/* nf4.c: 64 weights: float32 absmax, 32 bytes of nibbles into the 16 "normal float" levels, the first weight of each
 * pair in the high nibble; w = absmax * level. The levels and the nibble order are those of bitsandbytes files; the row
 * layout is our own (there absmax lies in a tensor of its own). Layer L2. */
#include "../codec.h"

Q_FORMAT(nf4, 64, 36)

Q_TABLE(float, nf4_table, 16) = {
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0};

Q_FN void nf4_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {
    int base = block * 36;
    Q_LOCAL_float(absmax, 1);
    absmax[0] = q_f32(row, base);
    for (int i = 0; i < 16; i++) {
        uint b = q_u8(row, base + 4 + 16 * sub + i);
        y[2 * i] = absmax[0] * nf4_table[b >> 4];
        y[2 * i + 1] = absmax[0] * nf4_table[b & 15u];
    }
}

#ifdef Q_HOST
#include "../fit.h"

/* A tie between two levels takes the lower one, as q_fit_nearest does. */
static const q_shape shape = {.weights = nf4_weights, .groups = 1, .lo = 0, .hi = 15, .levels = nf4_table, .sc_lo = 1,
                              .sc_hi = 1, .full = true, .reference = 1, .from = 0.7f, .to = 1.2f, .steps = 10};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    q_store32(block, q_f32_bits(grid->d));
    for (int i = 0; i < 32; i++) block[4 + i] = (uint8_t)((codes[2 * i] & 15) << 4 | (codes[2 * i + 1] & 15));
}

const q_format q_format_nf4 = {.name = "nf4", .weights = nf4_weights, .bytes = nf4_bytes, .fallback = "f16",
                               .decode = nf4_decode, .fit = fit, .nearest = nearest, .emit = emit};
#endif
