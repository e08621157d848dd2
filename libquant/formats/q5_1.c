/* q5_1.c: 32 weights: half d, half m, 4 bytes of fifth bits (bit i: weight i), 16 bytes of nibbles (low: the first 16);
 * w = d * q + m. Layer L2. */
#include "../codec.h"

Q_FORMAT(q5_1, 32, 24)

/* m is added: as a minimum it counts -1 times. */
Q_FN void q5_1_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                     Q_OUT(float, d, 2)) {
    int base = block * 24 + sub * 0;
    uint high = q_u32(row, base + 4);
    d[0] = q_f16(row, base);
    d[1] = q_f16(row, base + 2);
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = -1;
    }
    for (int i = 0; i < 16; i++) {
        uint b = q_u8(row, base + 8 + i);
        q[i] = q_int((b & 15u) | ((high >> i) & 1u) << 4);
        q[i + 16] = q_int((b >> 4) | ((high >> (i + 16)) & 1u) << 4);
    }
}
Q_DECODE_SPLIT_MIN(q5_1)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = q5_1_weights, .groups = 1, .lo = 0, .hi = 31, .sc_lo = 1, .sc_hi = 1,
                              .mn_hi = -1, .from = 28, .to = 32, .steps = 8};

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_minimum(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    uint32_t high = 0;
    for (int i = 0; i < 32; i++) high |= ((uint32_t)codes[i] >> 4 & 1u) << i;
    q_store16(block, q_f32_to_half(grid->d));
    q_store16(block + 2, q_f32_to_half(grid->dmin));
    q_store32(block + 4, high);
    for (int i = 0; i < 16; i++) block[8 + i] = (uint8_t)((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

const q_format q_format_q5_1 = {.name = "q5_1", .weights = q5_1_weights, .bytes = q5_1_bytes, .fallback = "f16",
                                .has_min = true, .decode = q5_1_decode, .split = q5_1_split, .fit = fit,
                                .nearest = nearest, .shape = &shape, .emit = emit};
#endif

#ifdef Q_ENCODE
#include "../encode_codec.h"

Q_FN void q5_1_store(Q_DST row, int block, Q_IN(float, x, 32)) {
    int q[32], base = block * 24;
    uint dm[2], high = 0u;
    q_levels(x, 0, 31, 0, q, dm);
    for (int i = 0; i < 32; i++) high = high | (q_uint(q[i]) >> 4) << i;
    q_put16(row, base, dm[0]);
    q_put16(row, base + 2, dm[1]);
    for (int i = 0; i < 4; i++) q_put8(row, base + 4 + i, high >> 8 * i);
    for (int i = 0; i < 16; i++) q_put8(row, base + 8 + i, (q_uint(q[i]) & 15u) | (q_uint(q[i + 16]) & 15u) << 4);
}
#endif
