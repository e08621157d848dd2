/* kv_put.comp: KV_PUT, value by value: per KV head the key's values, then the value's. Dispatch: EACH_VALUE. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#define Q_GLSL 1
#define Q_SRC_TYPE uvec2
#include "libquant/codec.h"
#include "kv.glsl"

void kv_store(uvec2 rows, int at, float x) {
    const float size = abs(x); /* what cannot be kept is a number no more (libquant/kv_form.h) */
    if (st.kv_value == 4) Floats(rows).f[at] = size <= 3.402823466e38 ? x : uintBitsToFloat(0xFFFFFFFFu);
    else Halves(rows).h[at] = size <= 65504.0 ? uint16_t(half_of(x)) : uint16_t(0xFFFFu);
}

void main() {
    const int c = int(gl_WorkGroupID.y), each = st.kv_k_width + st.kv_v_width, n = st.kv_heads * each;
    if (c >= columns()) return;
    const int pos = param_int(pm.pos_at, c), row = pos % 32;
    const uvec2 page = page_of(param_int(pm.seq_at, c), pos);
    EACH_VALUE(t, n) {
        const int h = t / each, i = t % each, j = i - st.kv_k_width;
        if (j < 0) kv_store(page, key_at(h, row) + i * KEY_STEP, SLOT(x)[VIEW_AT(x, c, h) + i]);
        else kv_store(values_of(page), value_at(h, row) + j, SLOT(z)[VIEW_AT(z, c, h) + j]);
    }
}
