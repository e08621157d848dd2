/* moe.comp: MOE_GLU and MOE_DOWN: rows of the experts that a column chose.
 *
 * As in gemv, T of a workgroup's 64 threads share a row. EXPERT and EXPERT2: a pass each for w and w2, a group has rows of
 * one (column, i). DOWN: a group has rows of one column and adds its experts in order. Dispatch: x = groups of rows,
 * y = columns, z = experts used (DOWN: 1). Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "decode.glsl"
#include "roles.h"

shared float part[64];
shared float unit[32 * 64];

/* The expert of place i: ids come out of float slots and are kept inside the table whatever they hold. */
int expert(int c, int i) {
    const float id = SLOT(z)[VIEW_FLAT(z, c, i)];
    return id > 0.0 ? id < float(st.w_matrices) ? int(id) : st.w_matrices - 1 : 0;
}

void main() {
    const int c = int(gl_WorkGroupID.y), tid = int(gl_LocalInvocationID.x), rows = st.y_width;
    const int k = ROLE == Q_VK_EXPERT2 ? st.w2_k : st.w_k, units = (k + 31) / 32;
    int T = 1;
    while (T < units && T < 32) T *= 2;
    const int lane = tid % T, r = int(gl_WorkGroupID.x) * (64 / T) + tid / T;
    if (c >= columns()) return;
    const int first = ROLE == Q_VK_DOWN ? 0 : int(gl_WorkGroupID.z), last = ROLE == Q_VK_DOWN ? st.n_used : first + 1;
    const uvec2 bias = ROLE == Q_VK_EXPERT2 ? st.b2 : st.b;
    const int bias_row = ROLE == Q_VK_EXPERT2 ? st.b2_row : st.b_row;
    float total = 0.0;
    for (int i = first; i < last; i++) {
        const int e = expert(c, i), x = ROLE == Q_VK_DOWN ? VIEW_AT(x, c, i) : VIEW_AT(x, c, 0);
        float acc = 0.0;
        if (r < rows) {
            uvec2 row;
            if (ROLE == Q_VK_EXPERT2) row = step64(step64(st.w2_base, e, st.w2_matrix), r, st.w2_row);
            else row = step64(step64(st.w_base, e, st.w_matrix), r, st.w_row);
            [[dont_unroll]] for (int u = lane; u < units; u += T) {
                float w[32];
                decode_unit(row, u, k, w);
                for (int t = 0; t < 32; t++) unit[64 * t + tid] = w[t];
                [[dont_unroll]] for (int t = 0; t < 32; t++)
                    acc = fma(unit[64 * t + tid], SLOT(x)[x + min(32 * u + t, k - 1)], acc);
            }
        }
        barrier();
        part[tid] = acc;
        for (int s = T / 2; s > 0; s /= 2) {
            barrier();
            if (lane < s) part[tid] += part[tid + s];
        }
        barrier();
        float v = part[tid - lane];
        if (r < rows && present(bias)) v += Floats(bias).f[e * bias_row + r];
        if (ROLE == Q_VK_DOWN) total = fma(SLOT(z)[VIEW_FLAT(z, c, (st.n_used + i))], v, total);
        else total = v;
    }
    if (lane != 0 || r >= rows) return;
    if (ROLE == Q_VK_DOWN) {
        const int at = VIEW_FLAT(y, c, r);
        SLOT(y)[at] = st.add != 0 ? SLOT(y)[at] + total : total;
    } else {
        const int at = VIEW_AT(y, c, first) + r;
        if (ROLE == Q_VK_EXPERT2) total = glu(SLOT(y)[at], total);
        else if (!present(st.w2_base)) total = act(total);
        SLOT(y)[at] = total;
    }
}
