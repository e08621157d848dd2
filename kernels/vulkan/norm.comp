/* norm.comp: NORM and HEADNORM: a workgroup of 64 threads has one head of one column. ROLE says whether there is a w.
 *
 * Each thread adds every 64th term in ascending order, then the sums are added as a tree. Dispatch: x = heads of x,
 * y = columns. y may be x. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "decode.glsl"
#include "roles.h"

shared float part[64];

float sum_of_all(float mine) {
    const int tid = int(gl_LocalInvocationID.x);
    barrier();
    part[tid] = mine;
    for (int s = 32; s > 0; s /= 2) {
        barrier();
        if (tid < s) part[tid] += part[tid + s];
    }
    barrier();
    return part[0];
}

const int NORM_LAYER = 1, NORM_L2 = 2;

void main() {
    const int h = int(gl_WorkGroupID.x), c = int(gl_WorkGroupID.y), tid = int(gl_LocalInvocationID.x);
    if (c >= columns()) return;
    const int n = st.x_width, x = VIEW_AT(x, gathered(c), h), y = VIEW_AT(y, c, h), z = VIEW_AT(z, c, h);
    float mean = 0.0, mine = 0.0;
    if (st.kind == NORM_LAYER) {
        [[dont_unroll]] for (int i = tid; i < n; i += 64) mine += SLOT(x)[x + i];
        mean = sum_of_all(mine) / float(n);
    }
    mine = 0.0;
    [[dont_unroll]] for (int i = tid; i < n; i += 64) {
        const float d = SLOT(x)[x + i] - mean;
        mine = fma(d, d, mine);
    }
    const float sum = sum_of_all(mine);
    const float r = st.kind == NORM_L2 ? 1.0 / max(sqrt(sum), st.eps) : 1.0 / sqrt(sum / float(n) + st.eps);
    const int w = st.w_k > n ? h * n : 0, b = st.b_k > n ? h * n : 0;
    const bool biased = present(st.b), gated = present(st.z_base);
    [[dont_unroll]] for (int i = tid; i < n; i += 64) {
        float v = (SLOT(x)[x + i] - mean) * r;
        if (ROLE == Q_VK_NORM_W) v *= decode_value(st.w_base, w + i, st.w_k);
        if (biased) v += Floats(st.b).f[b + i];
        if (gated) {
            const float g = SLOT(z)[z + i];
            v *= g / (1.0 + exp_(-g));
        }
        if (st.add != 0) v += SLOT(y)[y + i];
        SLOT(y)[y + i] = v;
    }
}
