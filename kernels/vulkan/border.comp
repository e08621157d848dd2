/* border.comp: slot 1 at the ends of a segment: loaded from the parameter block (y is the slot), or stored to where the host
 * reads (x is the slot, y the other place).
 *
 * Dispatch: EACH_VALUE. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "roles.h"

void main() {
    const int c = int(gl_WorkGroupID.y), width = ROLE == Q_VK_BORDER_LOAD ? st.y_width : st.x_width;
    if (c >= pm.n) return;
    EACH_VALUE(i, width)
        SLOT(y)[c * st.y_column + i] =
            ROLE == Q_VK_BORDER_LOAD ? param_float(pm.x_at, c * pm.x_column + i) : SLOT(x)[c * st.x_column + i];
}
