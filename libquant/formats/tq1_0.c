/* tq1_0.c: 256 weights of three values, five to a byte: 48 bytes of five digits to the base 3, 4 bytes of four, half d;
 * w = d * (digit - 1). A byte holds its digits as a fraction of 256, rounded up: times 3^n, kept below 256, its digit n
 * is what it has of thirds. Bytes 0 .. 31 have weights l, l + 32, ... l + 128, bytes 32 .. 47 from 160 on l, l + 16,
 * ... l + 64, and the last four from 240 on l, l + 4, l + 8, l + 12. Layer L2. */
#include "../codec.h"

Q_FORMAT(tq1_0, 256, 54)

Q_TABLE(int, tq1_0_power, 5) = {1, 3, 9, 27, 81};

Q_FN void tq1_0_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                      Q_OUT(float, d, 2)) {
    int base = block * 54;
    d[0] = q_f16(row, base + 52);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = 0;
    }
    for (int i = 0; i < 32; i++) {
        int w = 32 * sub + i;
        int at = i;
        int n = sub;
        if (w >= 160) {
            at = 32 + (w & 15);
            n = (w - 160) / 16;
        }
        if (w >= 240) {
            at = 48 + (w & 3);
            n = (w - 240) / 4;
        }
        uint digits = (q_u8(row, base + at) * q_uint(tq1_0_power[n])) & 255u;
        q[i] = q_int((digits * 3u) >> 8) - 1;
    }
}
Q_DECODE_SPLIT(tq1_0)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = tq1_0_weights, .groups = 1, .lo = -1, .hi = 1, .sc_lo = 1, .sc_hi = 1,
                              .reference = 1, .from = 1, .to = 4, .steps = 15}; /* as tq2_0 */

static void fit(const q_fit_in *in, q_grid *grid) { q_fit_symmetric(&shape, in, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}

/* `count` weights from `first` on, `apart` from each other, to a byte of five digits, of which a missing one is 0. */
static uint8_t digits(const int32_t *codes, int first, int apart, int count) {
    int v = 0;
    for (int n = 0; n < 5; n++)
        v = 3 * v + (n < count ? Q_MIN(Q_MAX(codes[first + n * apart], -1), 1) + 1 : 0);
    return (uint8_t)((v * 256 + 242) / 243);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    for (int l = 0; l < 32; l++) block[l] = digits(codes, l, 32, 5);
    for (int l = 0; l < 16; l++) block[32 + l] = digits(codes, 160 + l, 16, 5);
    for (int l = 0; l < 4; l++) block[48 + l] = digits(codes, 240 + l, 4, 4);
    q_store16(block + 52, q_f32_to_half(grid->d));
}

const q_format q_format_tq1_0 = {.name = "tq1_0", .weights = tq1_0_weights, .bytes = tq1_0_bytes, .fallback = "q4_0",
                                 .decode = tq1_0_decode, .split = tq1_0_split, .fit = fit, .nearest = nearest,
                                 .emit = emit};
#endif
