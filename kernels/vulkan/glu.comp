/* glu.comp: GLU, value by value. Dispatch: EACH_VALUE. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"

void main() {
    const int c = int(gl_WorkGroupID.y), n = st.y_heads * st.y_width;
    const bool gated = present(st.z_base);
    if (c >= columns()) return;
    EACH_VALUE(i, n) {
        const float x = SLOT(x)[VIEW_FLAT(x, c, i)];
        float v;
        if (gated) v = glu(x, SLOT(z)[VIEW_FLAT(z, c, i)]);
        else v = act(x);
        SLOT(y)[VIEW_FLAT(y, c, i)] = v;
    }
}
