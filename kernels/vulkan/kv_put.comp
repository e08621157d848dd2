/* kv_put.comp: KV_PUT: a workgroup of 64 threads stores 256 numbers of a column, those of all heads in turn.
 *
 * Numbers are turned in shared memory, whole turns of at most 128; then a thread encodes every 64th number, or every
 * 64th block. ROLE: what z = 0 stores: keys, and z = 1 values where they are in the same format; or values. Dispatch:
 * x = numbers of a column / 256, y = columns, z. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#define KV_ALONE 1
#define Q_ENCODE 1
#include "kv.glsl"
#include "decode.glsl"

const int MANY = 256;
shared float number[MANY];
KV_TURN(turn_numbers, number)

/* What cannot be kept is a number no more, and makes its block none. */
void leave_out(const kv_row row, const int block, const int bytes) {
    for (int i = 0; i < bytes; i += 2) q_put16(row, block * bytes + i, 0xFFFFu);
}

void main() {
    const int c = int(gl_WorkGroupID.y), from = MANY * int(gl_WorkGroupID.x), tid = int(gl_LocalInvocationID.x);
    const bool keys = ROLE == Q_VK_PUT_KEYS && gl_WorkGroupID.z == 0u;
    const int width = keys ? st.kv_k_width : st.kv_v_width, n = min(st.kv_heads * width - from, MANY);
    const float most = keys ? st.kv_k_most : st.kv_v_most;
    if (c >= columns() || n <= 0) return;
    const int pos = param_int(pm.pos_at, c);
    const uvec2 page = page_of(param_int(pm.seq_at, c), pos), values = values_of(page);
    for (int i = tid; i < n; i += 64) {
        const int h = (from + i) / width, j = (from + i) % width;
        if (keys) number[i] = SLOT(x)[VIEW_AT(x, c, h) + j];
        else number[i] = SLOT(z)[VIEW_AT(z, c, h) + j];
    }
    turn_numbers(n, keys ? st.kv_k_turn : st.kv_v_turn, keys ? st.kv_k_by : st.kv_v_by);
    barrier();
#define FORM(name)                                                                                               \
    if (FORMAT_OF_K == number_of_##name) {                                                                       \
        const bool one = name##_weights == 1;                                                                    \
        row_ends = one;                                                                                          \
        row_end = name##_bytes;                                                                                  \
        [[dont_unroll]] for (int i = one ? tid : 32 * tid; i < n; i += one ? 64 : 32 * 64) {                     \
            const int h = (from + i) / width, j = (from + i) % width;                                            \
            kv_row row = page_value(values, h, pos, KV_CELL(name));                                              \
            if (keys) row = page_key(page, h, pos, KV_CELL(name));                                               \
            if (one) row = step64(row, j, name##_bytes);                                                         \
            float x[32];                                                                                         \
            bool all = true;                                                                                     \
            for (int k = 0; k < 32; k++) {                                                                       \
                x[k] = k == 0 || !one ? number[i + k] : 0.0;                                                     \
                all = all && abs(x[k]) <= most;                                                                  \
            }                                                                                                    \
            if (all) name##_store(row, one ? 0 : j / 32, x);                                                    \
            if (!all) leave_out(row, one ? 0 : j / 32, name##_bytes);                                            \
        }                                                                                                        \
    }
    KV_FORMS
#undef FORM
}
