/* i8_codec.h: the formats of 8-bit codes with a scale and a zero point per group, what GPTQ files of 8 bits hold:
 * w = d * (q - z), q and z 0 .. 255. i8_g32, i8_g64 and i8_g128 are this text with another length of group. Layer L1.
 *
 * A group: half d, byte z (symmetric files have 128), an unused byte, then a signed byte q - 128 per weight. q - z does
 * not fit a byte: in split d * (128 - z) is added, as q4_1 adds its m. That product, those of the codes and the sums of
 * both fit the 24 bits of a float32, so that the decoded value is d * (q - z) to the bit. */
#ifndef Q_I8_CODEC_H
#define Q_I8_CODEC_H

#include "codec.h"

#define Q_I8_CODEC(name, weights, bytes)                                                                            \
    Q_FORMAT(name, weights, bytes)                                                                                  \
    Q_FN void name##_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),  \
                           Q_OUT(float, d, 2)) {                                                                    \
        int head = block * (4 + weights);                                                                           \
        int zero = q_int(q_u8(row, head + 2));                                                                      \
        d[0] = q_f16(row, head);                                                                                    \
        d[1] = d[0] * q_float(128 - zero);                                                                          \
        for (int g = 0; g < 2; g++) {                                                                               \
            sc[g] = 1;                                                                                              \
            mn[g] = -1;                                                                                             \
        }                                                                                                           \
        for (int i = 0; i < 32; i++) q[i] = q_i8(row, head + 4 + 32 * sub + i);                                     \
    }                                                                                                               \
    Q_DECODE_SPLIT_MIN(name)

#ifdef Q_HOST
#include "fit.h"

/* In a grid: d, and the zero point as the multiple of d that is taken away. Codes are 0 .. 255. */
static inline void i8_grid(const uint8_t head[4], q_grid *grid) {
    memset(grid, 0, sizeof *grid);
    grid->d = grid->scale[0] = q_half_to_f32(q_load16(head));
    grid->sc[0] = 1;
    grid->mn[0] = (int16_t)head[2];
}

static inline void i8_emit(const q_grid *grid, const int32_t *codes, int32_t weights, uint8_t *block) {
    q_store16(block, q_f32_to_half(grid->d));
    block[2] = (uint8_t)grid->mn[0];
    block[3] = 0;
    for (int32_t i = 0; i < weights; i++) block[4 + i] = (uint8_t)(codes[i] ^ 128);
}

#define Q_I8_GROUPS(format)                                                                                \
    static void format##_fit(const q_fit_in *in, q_grid *grid) {                                           \
        uint8_t head[4];                                                                                   \
        q_fit_zero(in, format##_weights, 255, head);                                                       \
        i8_grid(head, grid);                                                                               \
    }                                                                                                      \
    static int32_t format##_nearest(const q_grid *grid, int32_t j, float x, float *value) {                \
        Q_UNUSED(j);                                                                                       \
        return q_fit_nearest_zero(grid, 255, x, value);                                                    \
    }                                                                                                      \
    static void format##_emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {                  \
        i8_emit(grid, codes, format##_weights, block);                                                     \
    }                                                                                                      \
    const q_format q_format_##format = {                                                                   \
        .name = #format, .weights = format##_weights, .bytes = format##_bytes, .has_min = true,            \
        .fallback = format##_weights > 32 ? "i8_g32" : "f16", .decode = format##_decode,                   \
        .split = format##_split, .fit = format##_fit, .nearest = format##_nearest, .emit = format##_emit};
#endif
#endif
