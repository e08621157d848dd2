/* embed.comp: EMBED, one table per pass (ROLE): w, then w2 and w3 added to what is there.
 *
 * 64 threads, one unit of 32 values each. Dispatch: x = units of a row / 64, y = columns. With no ids the first pass copies
 * the batch's rows and the others do nothing. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "decode.glsl"
#include "roles.h"

shared float unit[32 * 64]; /* [value][thread]: registers cannot be indexed in a loop */

void main() {
    const int c = int(gl_WorkGroupID.y), u = int(gl_GlobalInvocationID.x), k = st.y_heads * st.y_width;
    if (c >= columns() || 32 * u >= k) return;
    const int n = min(32, k - 32 * u);
    if (pm.ids_at == 0) {
        if (ROLE != Q_VK_EMBED_W) return;
        [[dont_unroll]] for (int i = 0; i < n; i++)
            SLOT(y)[VIEW_FLAT(y, c, 32 * u + i)] = param_float(pm.x_at, c * pm.x_column + 32 * u + i);
        return;
    }
    uvec2 row;
    int row_k = st.w_k;
    if (ROLE == Q_VK_EMBED_W) row = step64(st.w_base, param_int(pm.ids_at, c), st.w_row);
    if (ROLE == Q_VK_EMBED_W2) {
        row = step64(st.w2_base, param_int(pm.pos_at, c), st.w2_row);
        row_k = st.w2_k;
    }
    if (ROLE == Q_VK_EMBED_W3) {
        row = st.w3_base;
        row_k = st.w3_k;
    }
    float w[32];
    decode_unit(row, u, row_k, w);
    const int tid = int(gl_LocalInvocationID.x);
    for (int i = 0; i < 32; i++) unit[64 * i + tid] = w[i];
    [[dont_unroll]] for (int i = 0; i < n; i++) {
        const int at = VIEW_FLAT(y, c, 32 * u + i);
        const float x = unit[64 * i + tid];
        precise float v = ROLE == Q_VK_EMBED_W ? x * st.scale : SLOT(y)[at] + x;
        SLOT(y)[at] = v;
    }
}
