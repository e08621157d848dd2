/* attn.comp: ATTN: a workgroup of 64 threads has one query head of one column.
 *
 * Keys come in blocks of up to 32, shorter than op.h's. Two threads make a key's score; blocks merge in ascending order.
 * Of values that are single numbers a thread takes every 64th number of all keys; of values in blocks one block of every
 * so many keys, decoded once, and sums of its own, which are added at the end. ROLE: keys in pages, in pages as values
 * too, or float32 in the columns of the batch. Widths up to 1024. Dispatch: x = heads of x, y = columns. Layer L2. */
#version 460
#extension GL_GOOGLE_include_directive : require
layout(local_size_x = 64) in;
#include "common.glsl"
#include "kv.glsl"
#include "decode.glsl"

const int MOST = 1024, ALIBI = 1;
shared float query[MOST], acc[MOST], score[32], part[64];
KV_TURN(turn_query, query)
KV_TURN(turn_result, acc)

const bool paged = ROLE != Q_VK_ATTN_COLUMNS;

float slope(int h) {
    int n = 1;
    while (2 * n <= st.x_heads) n *= 2;
    const float a = st.alpha != 0.0 ? st.alpha : 8.0;
    const float e = h < n ? a * float(h + 1) / float(n) : a * float(2 * (h - n) + 1) / float(2 * n);
    return exp_(e * -0.693147181);
}

/* The key, and the value, at position `at` of a page, or of column `at`. */
kv_row key_row(const uvec2 keys, const int kv, const int at, const int cell) {
    if (paged) return page_key(keys, kv, at, cell);
    return kv_row(keys, VIEW_AT(z, at, kv), cell, 1);
}
kv_row value_row(const uvec2 values, const int kv, const int at, const int cell) {
    if (ROLE == Q_VK_ATTN_PAGES) return page_value(values, kv, at, cell);
    if (ROLE == Q_VK_ATTN_PREFIX) return page_key(values, kv, at, cell);
    return kv_row(values, present(st.v_base) ? VIEW_AT(v, at, kv) : VIEW_AT(z, at, kv), cell, 1);
}

/* A thread's half of the product of the query with a key. */
float key_part(const uvec2 keys, const int kv, const int at, const int lane) {
    const int width = st.x_width;
    float s = 0.0;
#define FORM(name)                                                                                               \
    if (FORMAT_OF_K == number_of_##name) {                                                                       \
        const kv_row row = key_row(keys, kv, at, KV_CELL(name));                                                 \
        const bool one = name##_weights == 1;                                                                    \
        float y[32];                                                                                             \
        row_ends = one;                                                                                          \
        row_end = name##_bytes;                                                                                  \
        if (one) {                                                                                               \
            [[dont_unroll]] for (int i = lane; i < width; i += 2) {                                              \
                name##_decode(step64(row, i, name##_bytes), 0, 0, y);                                            \
                s = fma(query[i], y[0], s);                                                                      \
            }                                                                                                    \
        } else {                                                                                                 \
            [[dont_unroll]] for (int u = lane; 32 * u < width; u += 2) {                                         \
                name##_decode(row, u, 0, y);                                                                     \
                for (int i = 0; i < 32; i++) s = fma(query[32 * u + i], y[i], s);                                \
            }                                                                                                    \
        }                                                                                                        \
    }
    KV_FORMS
#undef FORM
    return s;
}

/* Values in blocks: a thread has block `unit` of every `keys_apart`th key from `first` on, if it has any. */
struct share {
    bool any;
    int unit, units, first, keys_apart;
};
share share_of(const int tid, const int width) {
    const int units = (width + 31) / 32, apart = 64 / units;
    return share(tid < apart * units, tid % units, units, tid / units, apart);
}

bool values_in_blocks() {
    bool blocks = false;
#define FORM(name) if (FORMAT_OF_V == number_of_##name) { blocks = name##_weights != 1; }
    KV_FORMS
#undef FORM
    return blocks;
}

/* The values of n keys by their scores, times b, beside what there is, times a. */
void weigh(const uvec2 values, const int kv, const int at, const int n, const float a, const float b, const share my,
           inout float own[32]) {
    const int tid = int(gl_LocalInvocationID.x), width = st.y_width;
#define FORM(name)                                                                                               \
    if (FORMAT_OF_V == number_of_##name) {                                                                       \
        const bool one = name##_weights == 1;                                                                    \
        float y[32];                                                                                             \
        row_ends = one;                                                                                          \
        row_end = name##_bytes;                                                                                  \
        if (one) {                                                                                               \
            [[dont_unroll]] for (int i = tid; i < width; i += 64) {                                              \
                float v = 0.0;                                                                                   \
                [[dont_unroll]] for (int t = 0; t < n; t++) {                                                    \
                    const kv_row row = value_row(values, kv, at + t, KV_CELL(name));                             \
                    name##_decode(step64(row, i, name##_bytes), 0, 0, y);                                        \
                    v = fma(score[t], y[0], v);                                                                  \
                }                                                                                                \
                acc[i] = fma(v, b, acc[i] * a);                                                                  \
            }                                                                                                    \
        } else if (my.any) {                                                                                     \
            for (int i = 0; i < 32; i++) own[i] *= a;                                                            \
            [[dont_unroll]] for (int t = my.first; t < n; t += my.keys_apart) {                                  \
                const float s = score[t] * b;                                                                    \
                name##_decode(value_row(values, kv, at + t, KV_CELL(name)), my.unit, 0, y);                      \
                for (int i = 0; i < 32; i++) own[i] = fma(s, y[i], own[i]);                                      \
            }                                                                                                    \
        }                                                                                                        \
    }
    KV_FORMS
#undef FORM
}

/* The sums of all threads, as a tree, to acc. */
void add_shares(const share my, inout float own[32]) {
    int n = 1;
    while (2 * n < my.keys_apart) n *= 2;
    [[dont_unroll]] for (; n > 0; n /= 2) {
        const int to = (my.first - n) * my.units + my.unit, from = my.first * my.units + my.unit; /* below 32 */
        barrier();
        if (my.any && my.first >= n && my.first < 2 * n)
            for (int i = 0; i < 32; i++) acc[32 * i + to] = own[i];
        barrier();
        if (my.any && my.first < n && my.first + n < my.keys_apart)
            for (int i = 0; i < 32; i++) own[i] += acc[32 * i + from];
    }
    barrier();
    if (my.any && my.first == 0)
        for (int i = 0; i < 32; i++) acc[32 * my.unit + i] = own[i];
    barrier();
}

void main() {
    const int h = int(gl_WorkGroupID.x), c = int(gl_WorkGroupID.y), tid = int(gl_LocalInvocationID.x);
    if (c >= columns()) return;
    const int kw = st.x_width, vw = st.y_width, q = VIEW_AT(x, c, h), seq = param_int(pm.seq_at, c);
    const int pos = param_int(pm.pos_at, c), lane = tid % 2, j = tid / 2;
    const bool alibi = st.kind == ALIBI, blocks = values_in_blocks();
    const int kv = h / (st.x_heads / (paged ? st.kv_heads : st.z_heads));
    const float bias = alibi ? slope(h) : 0.0;
    const share my = share_of(tid, vw);
    float m = -INFINITY, l = 0.0, own[32];
    for (int i = 0; i < 32; i++) own[i] = 0.0;
    for (int i = tid; i < kw; i += 64) query[i] = SLOT(x)[q + i];
    for (int i = tid; i < vw; i += 64) acc[i] = 0.0;
    if (paged) turn_query(kw, st.kv_k_turn, st.kv_k_by);

    /* at: the next key, a position or a column; end: behind the last. [0, sinks): those that are apart from the others,
     * which begin at first. */
    int first = st.window > 0 && pos >= st.window ? pos - st.window + 1 : 0, sinks = min(st.sink_tokens, first);
    if (sinks == first) first = sinks = 0;
    int at = sinks > 0 ? 0 : first, end = pos + 1;
    if (!paged) {
        sinks = 0;
        for (at = c; at > 0 && param_int(pm.seq_at, at - 1) == seq;) at--;
        for (end = c + 1; end < pm.n && param_int(pm.seq_at, end) == seq;) end++;
    }
    while (at < end) {
        int n = min(32 - at % 32, (at < sinks ? sinks : end) - at), key = at;
        uvec2 keys = st.z_base, values = present(st.v_base) ? st.v_base : st.z_base;
        if (paged) {
            keys = page_of(seq, at);
            values = values_of(keys);
        } else { /* those of one block of positions */
            key = param_int(pm.pos_at, at);
            for (n = 1; n < 32 && at + n < end && param_int(pm.pos_at, at + n) / 32 == key / 32;) n++;
        }
        barrier();
        float s = 0.0;
        if (j < n) s = key_part(keys, kv, at + j, lane);
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
        weigh(values, kv, at, n, a, b, my, own);
        at += n;
        if (at == sinks) at = first;
    }
    if (blocks) add_shares(my, own);
    float scale = 1.0;
    if (present(st.w_base)) { /* a sink: a score without a value */
        const float sink = decode_value(kv_row(st.w_base, 0, 1, 1), h, st.w_k), now = sink > m ? sink : m;
        scale = exp_(m - now);
        l = fma(1.0, exp_(sink - now), l * scale);
    }
    const float r = 1.0 / l;
    for (int i = tid; i < vw; i += 64) acc[i] = acc[i] * scale * r;
    if (paged) turn_result(vw, st.kv_v_turn, st.kv_v_by);
    for (int i = tid; i < vw; i += 64) SLOT(y)[VIEW_AT(y, c, h) + i] = acc[i];
}
