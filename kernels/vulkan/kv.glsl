/* kv.glsl: rows of pages: where a page holds the keys and values of a position (libquant/kv_form.h, step.def), and a
 * handle by which the codecs of libquant/formats/ read and write them, each as its form has it.
 *
 * The formats of keys and of values are specialization constants, as that of a weight is; KV_FORMS lists those that
 * they can be. Include it before decode.glsl. Layer L2. */
#include "roles.h"
#include "vk_kv_forms.glsl" /* made by the Makefile of kv_forms.def */

/* A row whose cells (kv_form.h) of `cell` bytes lie `far` cells apart, from cell `at` behind base. Bytes one after the
 * other are cells of one byte. Where far and cell are constants, so is what they choose here. */
struct kv_row {
    uvec2 base;
    int at, cell, far;
};
#define Q_SRC_TYPE kv_row

layout(buffer_reference, std430, buffer_reference_align = 4) buffer Words { uint w[]; };
layout(buffer_reference, std430, buffer_reference_align = 1) buffer Stores { uint8_t b[]; };

/* Byte i, counted in units of `size` bytes, of which a cell is a multiple. */
int kv_place(const kv_row row, const int i, const int size) {
    return (row.at + i / row.cell * row.far) * (row.cell / size) + i % row.cell / size;
}
/* Rows of bytes one after the other begin at even ones. */
bool kv_plain(const kv_row row) { return row.cell == 1 && row.far == 1; }

uint load8(const kv_row row, const int i) { return uint(Bytes(row.base).b[kv_place(row, i, 1)]); }
uint load16(const kv_row row, const int i) {
    if (kv_plain(row)) return uint(Pairs(row.base).h[(row.at + i) >> 1]);
    if (row.cell == 1) return load8(row, i) | load8(row, i + 1) << 8;
    return uint(Pairs(row.base).h[kv_place(row, i, 2)]);
}
uint load32(const kv_row row, const int i) {
    if (row.cell == 4) return Words(row.base).w[kv_place(row, i, 4)];
    return load16(row, i) | load16(row, i + 2) << 16;
}
void store8(const kv_row row, const int i, const uint v) { Stores(row.base).b[kv_place(row, i, 1)] = uint8_t(v); }
void store16(const kv_row row, const int i, const uint v) {
    if (row.cell == 1) {
        store8(row, i, v);
        store8(row, i + 1, v >> 8);
    } else Halves(row.base).h[kv_place(row, i, 2)] = uint16_t(v);
}
void store32(const kv_row row, const int i, const uint v) {
    if (row.cell == 4) {
        Words(row.base).w[kv_place(row, i, 4)] = v;
    } else {
        store16(row, i, v);
        store16(row, i + 2, v >> 16);
    }
}

/* The row from n times `size` bytes on: whole cells. */
kv_row step64(const kv_row row, const int n, const int size) {
    return kv_row(row.base, row.at + n * (size / row.cell) * row.far, row.cell, row.far);
}

/* The page of position pos of sequence s: its address for this layer. */
uvec2 page_of(int s, int pos) {
    const int page = param_int(pm.pages_at, (s * pm.pools + st.kv_pool) * pm.page_stride + pos / 32);
    return step64(st.kv, page, st.kv_page);
}
/* Where a page's values begin; they may be a prefix of the keys. */
uvec2 values_of(uvec2 page) { return add64(page, uint(st.kv_v_at)); }
/* The key of position pos, of head h; its value. */
kv_row page_key(uvec2 page, int h, int pos, int cell) {
    return kv_row(page, h * 32 * (st.kv_k_bytes / cell) + pos % 32, cell, 32);
}
kv_row page_value(uvec2 values, int h, int pos, int cell) {
    return kv_row(values, (h * 32 + pos % 32) * (st.kv_v_bytes / cell), cell, 1);
}
/* Cells of a format: a number, or of a block its bytes. */
#define KV_CELL(name) (name##_weights == 1 ? name##_bytes : 1)

/* A function that turns n numbers of a shared array, in turns of `turn` (0: none), each of which is then multiplied
 * with `by`; for 64 threads, which all have written. The sums are kv_form.h's: what goes from place to place there
 * stays where it is here, and the distance of two halves each time. */
#define KV_TURN(function, all)                                                                              \
    void function(int n, int turn, float by) {                                                              \
        const int tid = int(gl_LocalInvocationID.x);                                                        \
        if (turn == 0) return;                                                                              \
        barrier();                                                                                          \
        [[dont_unroll]] for (int half_turn = turn / 2; half_turn > 0; half_turn /= 2) {                     \
            [[dont_unroll]] for (int p = tid; p < n / 2; p += 64) {                                         \
                const int i = p / half_turn * 2 * half_turn + p % half_turn;                                \
                const float a = all[i], b = all[i + half_turn];                                             \
                all[i] = a + b;                                                                             \
                all[i + half_turn] = a - b;                                                                 \
            }                                                                                               \
            barrier();                                                                                      \
        }                                                                                                   \
        [[dont_unroll]] for (int i = tid; i < n; i += 64) {                                                 \
            precise const float turned = all[i] * by;                                                       \
            all[i] = turned;                                                                                \
        }                                                                                                   \
        barrier();                                                                                          \
    }
