/* i4_codec.h: the formats of 4-bit codes with a scale and a zero point per group, what GPTQ and AWQ files hold: w = d *
 * (q - z). i4_g32, i4_g64, i4_g128 and i4_row are this text with another length of group. Layer L1.
 *
 * A group: half d, byte z (0 .. 16; symmetric files have 8), an unused byte, then 16 bytes of nibbles per 32 weights
 * (low: the first 16). i4_row has one group, whose d and z are the head of the row. q - z is an integer of magnitude at
 * most 16, so products with 8-bit activations are exact including the zero point. */
#ifndef Q_I4_CODEC_H
#define Q_I4_CODEC_H

#include "codec.h"

/* Bytes of d and of the codes of unit `sub` in the row, for groups in blocks and for a group per row. */
#define Q_I4_IN_BLOCK(weights, block, sub, head, codes) \
    int head = block * (4 + weights / 2);               \
    int codes = head + 4 + 16 * sub;
#define Q_I4_IN_ROW(weights, block, sub, head, codes) \
    int head = 0;                                     \
    int codes = 4 + 16 * (block + sub * 0);

#define Q_I4_CODEC(name, weights, bytes, WHERE)                                                                     \
    Q_FORMAT(name, weights, bytes)                                                                                  \
    Q_FN void name##_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),  \
                           Q_OUT(float, d, 2)) {                                                                    \
        WHERE(weights, block, sub, head, codes)                                                                     \
        int zero = q_int(q_u8(row, head + 2));                                                                      \
        d[0] = q_f16(row, head);                                                                                    \
        d[1] = 0.0;                                                                                                 \
        for (int g = 0; g < 2; g++) {                                                                               \
            sc[g] = 1;                                                                                              \
            mn[g] = 0;                                                                                              \
        }                                                                                                           \
        zero = zero & 31;                                                                                           \
        for (int i = 0; i < 16; i++) {                                                                              \
            int b = q_int(q_u8(row, codes + i));                                                                    \
            q[i] = (b & 15) - zero;                                                                                 \
            q[i + 16] = (b >> 4) - zero;                                                                            \
        }                                                                                                           \
    }                                                                                                               \
    Q_DECODE_SPLIT(name)

#ifdef Q_HOST
#include "fit.h"

/* In a grid: d, and the zero point as the multiple of d that is taken away. */
static inline void i4_grid(const uint8_t *head, q_grid *grid) {
    memset(grid, 0, sizeof *grid);
    grid->d = grid->scale[0] = q_half_to_f32(q_load16(head));
    grid->sc[0] = 1;
    grid->mn[0] = (int16_t)head[2];
}
static inline void i4_codes(const int32_t *codes, int32_t weights, uint8_t *to) {
    for (int32_t u = 0; u < weights; u += 32, to += 16)
        for (int32_t i = 0; i < 16; i++) to[i] = (uint8_t)((codes[u + i] & 15) | (codes[u + i + 16] & 15) << 4);
}

#define Q_I4_GROUPS(format)                                                                                \
    static void format##_fit(const q_fit_in *in, q_grid *grid) {                                           \
        uint8_t head[4];                                                                                   \
        q_fit_zero(in, format##_weights, 15, head);                                                        \
        i4_grid(head, grid);                                                                               \
    }                                                                                                      \
    static int32_t format##_nearest(const q_grid *grid, int32_t j, float x, float *value) {                \
        Q_UNUSED(j);                                                                                       \
        return q_fit_nearest_zero(grid, 15, x, value);                                                     \
    }                                                                                                      \
    static void format##_emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {                  \
        q_store16(block, q_f32_to_half(grid->d));                                                          \
        block[2] = (uint8_t)grid->mn[0];                                                                   \
        block[3] = 0;                                                                                      \
        i4_codes(codes, format##_weights, block + 4);                                                      \
    }                                                                                                      \
    const q_format q_format_##format = {                                                                   \
        .name = #format, .weights = format##_weights, .bytes = format##_bytes,                             \
        .fallback = format##_weights > 32 ? "i4_g32" : "f16", .decode = format##_decode,                   \
        .split = format##_split, .fit = format##_fit, .nearest = format##_nearest, .emit = format##_emit};
#endif
#endif
