/* f16.c: IEEE 754 binary16. Values beyond its range become its largest finite one. Layer L2. */
#include "../codec.h"

Q_FORMAT(f16, 1, 2)

Q_FN void f16_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {
    int base = block * 64 + sub * 0;
    for (int i = 0; i < 32; i++) y[i] = q_f16(row, base + 2 * i);
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
    const uint16_t h = q_fit_half(x);
    *value = q_half_to_f32(h);
    return h;
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    Q_UNUSED(grid);
    q_store16(block, (uint16_t)codes[0]);
}

const q_format q_format_f16 = {.name = "f16", .weights = f16_weights, .bytes = f16_bytes, .decode = f16_decode,
                               .fit = fit, .nearest = nearest, .emit = emit};
#endif

#ifdef Q_ENCODE
#include "../encode_codec.h"

Q_FN void f16_store(Q_DST row, int block, Q_IN(float, x, 32)) {
    for (int i = 0; i < 32; i++) q_put16(row, 64 * block + 2 * i, q_to_half(x[i]));
}
#endif
