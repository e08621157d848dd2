/* f32.c: IEEE 754 binary32 as it is: norms, biases and reference tensors. Layer L2. */
#include "../codec.h"

Q_FORMAT(f32, 1, 4)

Q_FN void f32_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {
    int base = block * 128 + sub * 0;
    for (int i = 0; i < 32; i++) y[i] = q_f32(row, base + 4 * i);
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
    *value = x;
    return (int32_t)q_f32_bits(x);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    Q_UNUSED(grid);
    q_store32(block, (uint32_t)codes[0]);
}

const q_format q_format_f32 = {.name = "f32", .weights = f32_weights, .bytes = f32_bytes, .decode = f32_decode,
                               .fit = fit, .nearest = nearest, .emit = emit};
#endif

#ifdef Q_ENCODE
#include "../encode_codec.h"

Q_FN void f32_store(Q_DST row, int block, Q_IN(float, x, 32)) {
    for (int i = 0; i < 32; i++) q_put32(row, 128 * block + 4 * i, q_word(x[i]));
}
#endif
