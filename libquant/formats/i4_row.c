/* i4_row.c: 4-bit codes with one scale and one zero point for the whole row; i4_codec.h has the layout. Layer L2. */
#include "../i4_codec.h"

Q_I4_CODEC(i4_row, 32, 16, Q_I4_IN_ROW)

#ifdef Q_HOST
static void head(const q_fit_in *in, int64_t n, uint8_t *row) { q_fit_zero(in, n, 15, row); }
static void fit(const q_fit_in *in, q_grid *grid) { i4_grid(in->head, grid); }
static int32_t nearest(const q_grid *grid, int32_t j, float x, float *value) {
    Q_UNUSED(j);
    return q_fit_nearest_zero(grid, 15, x, value);
}
static void emit(const q_grid *grid, const int32_t *codes, uint8_t *block) {
    Q_UNUSED(grid);
    i4_codes(codes, i4_row_weights, block);
}

const q_format q_format_i4_row = {.name = "i4_row", .weights = i4_row_weights, .bytes = i4_row_bytes, .row_head = 4,
                                  .fallback = "f16", .span = Q_SPAN_ROW, .decode = i4_row_decode,
                                  .split = i4_row_split, .head = head, .fit = fit, .nearest = nearest, .emit = emit};
#endif
