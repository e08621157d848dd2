/* attn.comp: ATTN: a workgroup of 64 threads has one query head of one column.
 *
 * Keys come in blocks of up to 32, shorter than op.h's. Two threads make a key's score; all take the weighted values, each
 * every 64th one; blocks merge in ascending order. ROLE: keys in pages, or in the columns of the batch. Widths up to 1024.
 * Dispatch: x = heads of x, y = columns. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "decode.glsl"
#include "kv.glsl"
#include "roles.h"

const int MOST = 1024, ALIBI = 1;
shared float query[MOST], acc[MOST], score[32], part[64];
shared int key_column[32];

float slope(int h) {
    int n = 1;
    while (2 * n <= st.x_heads) n *= 2;
    const float a = st.alpha != 0.0 ? st.alpha : 8.0;
    const float e = h < n ? a * float(h + 1) / float(n) : a * float(2 * (h - n) + 1) / float(2 * n);
    return exp_(e * -0.693147181);
}

void main() {
    const int h = int(gl_WorkGroupID.x), c = int(gl_WorkGroupID.y), tid = int(gl_LocalInvocationID.x);
    if (c >= columns()) return;
    const int kw = st.x_width, vw = st.y_width, q = VIEW_AT(x, c, h), seq = param_int(pm.seq_at, c);
    const int pos = param_int(pm.pos_at, c), lane = tid % 2, j = tid / 2;
    const bool paged = ROLE == Q_VK_ATTN_PAGES, alibi = st.kind == ALIBI, prefix = !present(st.v_base);
    const int kv = h / (st.x_heads / (paged ? st.kv_heads : st.z_heads));
    const float bias = alibi ? slope(h) : 0.0;
    float m = -INFINITY, l = 0.0;
    for (int i = tid; i < kw; i += 64) query[i] = SLOT(x)[q + i];
    for (int i = tid; i < vw; i += 64) acc[i] = 0.0;

    /* at: the next key, a position or a column; end: behind the last. */
    int at = st.window > 0 && pos >= st.window ? pos - st.window + 1 : 0, end = pos + 1;
    if (!paged) {
        for (at = c; at > 0 && param_int(pm.seq_at, at - 1) == seq;) at--;
        for (end = c + 1; end < pm.n && param_int(pm.seq_at, end) == seq;) end++;
    }
    while (at < end) {
        int n = min(32 - at % 32, end - at), key = at;
        uvec2 keys = st.z_base, values = prefix ? st.z_base : st.v_base;
        if (paged) {
            keys = page_of(seq, at);
            values = values_of(keys);
        } else { /* those of one block of positions */
            key = param_int(pm.pos_at, at);
            for (n = 1; n < 32 && at + n < end && param_int(pm.pos_at, at + n) / 32 == key / 32;) n++;
        }
        barrier();
        float s = 0.0;
        if (j < n) {
            const int from = paged ? key_at(kv, (at + j) % 32) : VIEW_AT(z, at + j, kv);
            [[dont_unroll]] for (int i = lane; i < kw; i += 2)
                s = fma(query[i], paged ? kv_load(keys, from + i * KEY_STEP) : Floats(keys).f[from + i], s);
        }
        part[tid] = s;
        barrier();
        if (lane == 0 && j < n) {
            s = softcapped(st.scale * (part[tid] + part[tid + 1]), st.softcap);
            if (alibi) s -= bias * abs(float(key + j - pos));
            score[j] = s;
        }
        barrier();
        float top = -INFINITY, sum = 0.0;
        for (int i = 0; i < n; i++) top = score[i] > top ? score[i] : top;
        barrier();
        if (tid < n) score[tid] = exp_(score[tid] - top);
        barrier();
        for (int i = 0; i < n; i++) sum += score[i];
        const float now = top > m ? top : m, a = exp_(m - now), b = exp_(top - now);
        l = fma(sum, b, l * a);
        m = now;
        [[dont_unroll]] for (int i = tid; i < vw; i += 64) {
            float v = 0.0;
            [[dont_unroll]] for (int t = 0; t < n; t++) {
                float x;
                if (!paged) x = Floats(values).f[(prefix ? VIEW_AT(z, at + t, kv) : VIEW_AT(v, at + t, kv)) + i];
                else if (st.kv_v_width == 0) x = kv_load(values, key_at(kv, (at + t) % 32) + i * KEY_STEP);
                else x = kv_load(values, value_at(kv, (at + t) % 32) + i);
                v = fma(score[t], x, v);
            }
            acc[i] = fma(v, b, acc[i] * a);
        }
        at += n;
    }
    float scale = 1.0;
    if (present(st.w_base)) { /* a sink: a score without a value */
        const float sink = decode_value(st.w_base, h, st.w_k), now = sink > m ? sink : m;
        scale = exp_(m - now);
        l = fma(1.0, exp_(sink - now), l * scale);
    }
    const float r = 1.0 / l;
    for (int i = tid; i < vw; i += 64) SLOT(y)[VIEW_AT(y, c, h) + i] = acc[i] * scale * r;
}
