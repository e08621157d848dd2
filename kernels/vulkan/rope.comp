/* rope.comp: ROPE: a thread turns one pair of a head, or copies one value behind the pairs. y may be x.
 *
 * Per head there are rot / 2 pairs and width - rot values. Dispatch: EACH_VALUE over those of all heads. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"

void main() {
    const int c = int(gl_WorkGroupID.y), half_rot = st.rot / 2, each = st.x_width - half_rot, n = st.x_heads * each;
    const bool pairs = st.kind == 0;
    if (c >= columns()) return;
    const float pos = float(param_int(pm.pos_at, column_of(c)));
    const int freqs = half_rot * param_int(pm.freqs_at, param_int(pm.seq_at, column_of(c)));
    EACH_VALUE(t, n) {
        const int h = t / each, i = t % each, x = VIEW_AT(x, c, h), y = VIEW_AT(y, c, h);
        if (i >= half_rot) {
            SLOT(y)[y + half_rot + i] = SLOT(x)[x + half_rot + i];
            continue;
        }
        precise float angle = pos * Floats(st.freqs).f[freqs + i];
        const vec2 turn = cos_sin(angle) * st.mscale;
        const int i0 = pairs ? 2 * i : i, i1 = pairs ? 2 * i + 1 : i + half_rot;
        const float a = SLOT(x)[x + i0], b = SLOT(x)[x + i1];
        SLOT(y)[y + i0] = a * turn.x - b * turn.y;
        SLOT(y)[y + i1] = a * turn.y + b * turn.x;
    }
}
