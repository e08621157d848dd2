/* i8_row.c: one float32 scale for the whole row, ahead of it, then a signed byte per weight; w = d * q. What files call
 * INT8 per channel: LLM.int8 and SmoothQuant, compressed-tensors' W8A8. Blocks of 32 only so that rows are read by
 * units. Layer L2. */
#include "../codec.h"

Q_FORMAT(i8_row, 32, 32)

Q_FN void i8_row_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),
                       Q_OUT(float, d, 2)) {
    int base = 4 + block * 32 + sub * 0;
    d[0] = q_f32(row, 0);
    d[1] = 0.0;
    for (int g = 0; g < 2; g++) {
        sc[g] = 1;
        mn[g] = 0;
    }
    for (int i = 0; i < 32; i++) q[i] = q_i8(row, base + i);
}
Q_DECODE_SPLIT(i8_row)

#ifdef Q_HOST
#include "../fit.h"

static const q_shape shape = {.weights = i8_row_weights, .groups = 1, .lo = -128, .hi = 127, .sc_lo = 1, .sc_hi = 1,
                              .full = true, .reference = 127, .from = 127, .to = 160, .steps = 16};

static void head(const q_fit_in *in, int64_t n, uint8_t *row) {
    q_store32(row, q_f32_bits(q_fit_row(&shape, in, n)));
}
static void fit(const q_fit_in *in, q_grid *grid) {
    memset(grid, 0, sizeof *grid);
    grid->sc[0] = 1;
    grid->d = grid->scale[0] = q_bits_f32(q_load32(in->head));
}
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    return q_fit_nearest(&shape, grid, j, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    Q_UNUSED(grid);
    for (int i = 0; i < 32; i++) block[i] = (uint8_t)codes[i];
}

const q_format q_format_i8_row = {.name = "i8_row", .weights = i8_row_weights, .bytes = i8_row_bytes, .row_head = 4,
                                  .fallback = "f16", .span = Q_SPAN_ROW, .decode = i8_row_decode, .split = i8_row_split,
                                  .head = head, .fit = fit, .nearest = nearest, .shape = &shape, .emit = emit};
#endif
