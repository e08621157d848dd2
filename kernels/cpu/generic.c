/* generic.c: kernels for every format and every machine: the scalar rung of products, in the reference's order, but
 * decoding each weight once for all columns. Layer L2. */
#include "cpu.h"

enum { TILE = 4 };

uint64_t q_matmul_any_f32__scalar_scratch(int64_t k, int64_t n) {
    Q_UNUSED(n);
    return (uint64_t)k * TILE * sizeof(float);
}

void q_combine_f32__scalar(float *y, bool add, const float *value, int64_t n, const int32_t *place, const float *weight,
                           int64_t used) {
    for (int64_t r = 0; r < n; r++) {
        float v = 0;
        for (int64_t i = 0; i < used; i++) v = fmaf(weight[i], value[place[i] * n + r], v);
        y[r] = add ? y[r] + v : v;
    }
}

void q_matmul_any_f32__scalar(const q_mm *m) {
    float *tile = (float *)m->scratch;
    for (int64_t r0 = 0; r0 < m->rows; r0 += TILE) {
        const int64_t rows = Q_MIN(m->rows - r0, (int64_t)TILE);
        for (int64_t r = 0; r < rows; r++)
            q_decode_row(m->format, m->w + (uint64_t)(r0 + r) * m->row_bytes, m->k, tile + r * m->k);
        for (int64_t c = 0; c < m->n; c++) {
            const float *x = (const float *)(const void *)(m->x + c * m->x_stride);
            float *y = m->y + c * m->y_stride + r0;
            for (int64_t r = 0; r < rows; r++) {
                float v = q_ref_dot(tile + r * m->k, x, m->k);
                if (m->bias) v += m->bias[r0 + r];
                y[r] = m->add ? y[r] + v : v;
            }
        }
    }
}
