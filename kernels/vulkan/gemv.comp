/* gemv.comp: MATMUL, HEAD, the logits of ROUTE and adapters for few columns (COLUMNS at most, a constant of the pipeline).
 *
 * A workgroup is 64 threads. T of them share a row: the least power of two that is no less than the row's units of 32,
 * at most 32; so a group has 64 / T rows. A thread decodes every T-th unit in registers and multiplies it with each
 * column; the T sums of a row are added as a tree. Dispatch: x and y fold the groups, z = heads of x. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "product.glsl"

shared float part[64 * COLUMNS];
shared float unit[32 * 64]; /* [value][thread]: registers cannot be indexed in a loop, and unrolled it is long */

void main() {
    const int k = product_k(), units = (k + 31) / 32, rows = product_rows(), h = int(gl_WorkGroupID.z);
    const int n = min(columns(), COLUMNS), tid = int(gl_LocalInvocationID.x);
    int T = 1;
    while (T < units && T < 32) T *= 2;
    const int lane = tid % T, r = folded_group() * (64 / T) + tid / T;
    if (n == 0) return;

    float acc[COLUMNS];
    for (int c = 0; c < COLUMNS; c++) acc[c] = 0.0;
    if (r < rows) {
        const uvec2 row = product_row(h, r), x = product_x();
        int from[COLUMNS];
        for (int c = 0; c < COLUMNS; c++) from[c] = product_x_at(c, h);
        for (int u = lane; u < units; u += T) {
            float w[32];
            decode_unit(row, u, k, w);
            for (int i = 0; i < 32; i++) unit[64 * i + tid] = w[i];
            [[dont_unroll]] for (int i = 0; i < 32; i++) {
                const float a = unit[64 * i + tid];
                const int at = min(32 * u + i, k - 1); /* beyond a row's end weights are zeros: any value of x does */
                for (int c = 0; c < COLUMNS; c++)
                    if (c < n) acc[c] = fma(a, Floats(x).f[from[c] + at], acc[c]);
            }
        }
    }
    for (int c = 0; c < COLUMNS; c++) part[64 * c + tid] = acc[c];
    for (int s = T / 2; s > 0; s /= 2) {
        barrier();
        if (lane < s)
            for (int c = 0; c < COLUMNS; c++) part[64 * c + tid] += part[64 * c + tid + s];
    }
    barrier();
    if (r >= rows) return;
    for (int c = lane; c < n; c += T) product_emit(c, h, r, part[64 * c + tid - lane]);
}
