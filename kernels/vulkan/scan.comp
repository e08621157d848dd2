/* scan.comp: SCAN: a thread has one value of a head of v, that is one column of the head's state, which is no other
 * thread's; it takes the tokens in order.
 *
 * Dispatch: x = value width / 64, y = heads of v. y may lie on v. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "decode.glsl"

void main() {
    const int j = int(gl_GlobalInvocationID.x), h = int(gl_WorkGroupID.y), kw = st.z_width, vw = st.v_width, n = columns();
    if (j >= vw) return;
    const int heads = st.v_heads, hq = h / (heads / st.x_heads), hk = h / (heads / st.z_heads);
    const float a = decode_value(st.w_base, h, st.w_k), bias = present(st.b) ? Floats(st.b).f[h] : 0.0;
    [[dont_unroll]] for (int c = 0; c < n; c++) {
        const int number = param_int(pm.state_at, param_int(pm.seq_at, c));
        const uvec2 state = step64(add64(st.state, uint(4 * j)), number, mul64(uint(st.state_floats), 4u));
        const int at = h * kw * vw, q = VIEW_AT(x, c, hq), k = VIEW_AT(z, c, hk);
        const bool fresh = param_int(pm.pos_at, c) == 0;
        const float decay = exp_(a * softplus(SLOT(u)[VIEW_FLAT(u, c, h)] + bias));
        const float beta = sigmoid(SLOT(u)[VIEW_FLAT(u, c, (heads + h))]);
        float r = 0.0, sum = 0.0;
        [[dont_unroll]] for (int i = 0; i < kw; i++) {
            const float s = fresh ? 0.0 : Floats(state).f[at + i * vw] * decay;
            r = fma(s, SLOT(z)[k + i], r);
        }
        r = beta * (SLOT(v)[VIEW_AT(v, c, h) + j] - r);
        [[dont_unroll]] for (int i = 0; i < kw; i++) {
            float s = fresh ? 0.0 : Floats(state).f[at + i * vw] * decay;
            s = fma(SLOT(z)[k + i], r, s);
            Floats(state).f[at + i * vw] = s;
            sum = fma(s, SLOT(x)[q + i], sum);
        }
        SLOT(y)[VIEW_AT(y, c, h) + j] = st.scale * sum;
    }
}
