/* conv.comp: CONV: a thread has one channel and takes the columns in order.
 *
 * Dispatch: x = channels / 64. Taps are decoded in units of 32. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "decode.glsl"

void main() {
    const int ch = int(gl_GlobalInvocationID.x), past = st.taps - 1, n = columns();
    if (ch >= st.x_heads * st.x_width) return;
    const uvec2 row = step64(st.w_base, ch, st.w_row);
    const bool biased = present(st.b);
    [[dont_unroll]] for (int c = 0; c < n; c++) {
        const int number = param_int(pm.state_at, param_int(pm.seq_at, c));
        const uvec2 old = add64(step64(st.state, number, mul64(uint(st.state_floats), 4u)), uint(4 * ch * past));
        const bool fresh = param_int(pm.pos_at, c) == 0;
        const float x = SLOT(x)[VIEW_FLAT(x, c, ch)];
        float v = 0.0;
        [[dont_unroll]] for (int t = 0; t < past; t++) {
            const float had = fresh ? 0.0 : Floats(old).f[t];
            v = fma(decode_value(row, t, st.w_k), had, v);
            if (t > 0) Floats(old).f[t - 1] = had;
        }
        if (past > 0) Floats(old).f[past - 1] = x;
        v = fma(decode_value(row, past, st.w_k), x, v);
        if (biased) v += Floats(st.b).f[ch];
        SLOT(y)[VIEW_FLAT(y, c, ch)] = act(v);
    }
}
