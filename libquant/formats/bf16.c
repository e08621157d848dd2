/* bf16.c: bfloat16, the upper half of a binary32. Values that would round to infinity become the largest finite one.
 * Layer L2. */
#include "../codec.h"

Q_FORMAT(bf16, 1, 2)

Q_FN void bf16_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {
    int base = block * 64 + sub * 0;
    for (int i = 0; i < 32; i++) y[i] = q_bf16(row, base + 2 * i);
}

#ifdef Q_HOST
#include "../fit.h"

static void fit(const q_fit_in *in, q_grid *grid) {
    Q_UNUSED(in);
    memset(grid, 0, sizeof *grid);
}
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    Q_UNUSED(grid);
    Q_UNUSED(j);
    uint16_t b = q_f32_to_bf16(x);
    if ((b & 0x7FFFu) == 0x7F80u) b = (uint16_t)(b - 1u);
    *value = q_bf16_to_f32(b);
    return b;
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    Q_UNUSED(grid);
    q_store16(block, (uint16_t)codes[0]);
}

const q_format q_format_bf16 = {.name = "bf16", .weights = bf16_weights, .bytes = bf16_bytes, .decode = bf16_decode,
                                .fit = fit, .nearest = nearest, .emit = emit};
#endif

#ifdef Q_ENCODE
#include "../encode_codec.h"

Q_FN void bf16_store(Q_DST row, int block, Q_IN(float, x, 32)) {
    for (int i = 0; i < 32; i++) {
        uint u = q_word(x[i]);
        q_put16(row, 64 * block + 2 * i, (u + 0x7FFFu + (u >> 16 & 1u)) >> 16);
    }
}
#endif
