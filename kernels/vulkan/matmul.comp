/* matmul.comp: what gemv does, for many columns: tiles of 64 rows by 64 columns.
 *
 * A workgroup is 64 threads and uses 16 KiB of shared memory. Loops that need not be unrolled stay loops: a compiler takes
 * seconds for thousands of products in a row. Per 32 values of k each thread decodes one row's unit and
 * fetches one column's values; then it multiplies 8 rows by 8 columns. Dispatch: x = tiles of rows (of one head), y = tiles
 * of columns, z = heads of x. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "product.glsl"

/* [k][row] of w, behind it [k][column] of x; in the end [column][row] of y. */
shared float tile[64 * 64];
const int X = 32 * 64;

void main() {
    const int k = product_k(), units = (k + 31) / 32, rows = product_rows(), h = int(gl_WorkGroupID.z), n = columns();
    const int tid = int(gl_LocalInvocationID.x), tx = tid % 8, ty = tid / 8;
    const int r0 = 64 * int(gl_WorkGroupID.x), c0 = 64 * int(gl_WorkGroupID.y);
    if (c0 >= n) return;

    const uvec2 row = product_row(h, min(r0 + tid, rows - 1)), x = product_x();
    const int from = product_x_at(min(c0 + tid, n - 1), h);
    float acc[8][8];
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) acc[i][j] = 0.0;
    for (int u = 0; u < units; u++) {
        float w[32];
        decode_unit(row, u, k, w);
        for (int i = 0; i < 32; i++) tile[64 * i + tid] = w[i];
        for (int i = 0; i < 32; i++) tile[X + 64 * i + tid] = Floats(x).f[from + min(32 * u + i, k - 1)];
        barrier();
        [[dont_unroll]] for (int i = 0; i < 32; i++) {
            float a[8], b[8];
            for (int j = 0; j < 8; j++) a[j] = tile[64 * i + 8 * j + ty];
            for (int j = 0; j < 8; j++) b[j] = tile[X + 64 * i + 8 * j + tx];
            for (int p = 0; p < 8; p++)
                for (int q = 0; q < 8; q++) acc[p][q] = fma(a[p], b[q], acc[p][q]);
        }
        barrier();
    }
    for (int p = 0; p < 8; p++)
        for (int q = 0; q < 8; q++) tile[64 * (8 * q + tx) + 8 * p + ty] = acc[p][q];
    barrier();
    if (r0 + tid >= rows) return;
    [[dont_unroll]] for (int c = c0; c < min(c0 + 64, n); c++) product_emit(c, h, r0 + tid, tile[64 * (c - c0) + tid]);
}
