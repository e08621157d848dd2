/* scale.comp: SCALE, value by value. Dispatch: EACH_VALUE. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"

void main() {
    const int c = int(gl_WorkGroupID.y), n = st.y_heads * st.y_width;
    if (c >= columns()) return;
    float gate = 1.0;
    if (present(st.z_base)) gate = sigmoid(SLOT(z)[VIEW_AT(z, c, 0)]);
    EACH_VALUE(i, n) {
        const int at = VIEW_FLAT(y, c, i);
        float v = softcapped(st.scale * SLOT(x)[VIEW_FLAT(x, c, i)] * gate, st.softcap);
        if (st.add != 0) v += SLOT(y)[at];
        SLOT(y)[at] = v;
    }
}
