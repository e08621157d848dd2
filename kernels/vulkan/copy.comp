/* copy.comp: COPY, value by value; one head into all where x has one of y's width. Dispatch: EACH_VALUE. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"

void main() {
    const int c = int(gl_WorkGroupID.y), n = st.y_heads * st.y_width;
    const bool spread = st.x_heads == 1 && st.x_width == st.y_width;
    if (c >= columns()) return;
    const int from = gathered(c);
    EACH_VALUE(i, n) SLOT(y)[VIEW_FLAT(y, c, i)] = SLOT(x)[VIEW_FLAT(x, from, (spread ? i % st.x_width : i))];
}
