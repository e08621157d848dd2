/* border.comp: slot 1 at the ends of a segment: loaded from the parameter block (y is the slot), or stored to where the host
 * reads (x is the slot, y the other place).
 *
 * 64 threads, 4 values each. Dispatch: x = values of a column / 256, y = columns. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "roles.h"

void main() {
    const int c = int(gl_WorkGroupID.y), width = ROLE == Q_VK_BORDER_LOAD ? st.y_width : st.x_width;
    if (c >= pm.n) return;
    for (int j = 0; j < 4; j++) {
        const int i = 256 * int(gl_WorkGroupID.x) + 64 * j + int(gl_LocalInvocationID.x);
        if (i >= width) return;
        SLOT(y)[c * st.y_column + i] =
            ROLE == Q_VK_BORDER_LOAD ? param_float(pm.x_at, c * pm.x_column + i) : SLOT(x)[c * st.x_column + i];
    }
}
