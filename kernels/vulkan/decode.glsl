/* decode.glsl: rows of weights: the codecs of libquant/formats/, and one function that decodes 32 weights of any of them.
 *
 * The format is a specialization constant: a pipeline keeps one codec. The others are left out before a driver sees them
 * (vk_words.c), which knows "if" of a constant and a number, and no "else". A row begins at an even address and its codecs
 * load 16 bits at even bytes. Layer L2. */
#define Q_GLSL 1
#ifndef Q_SRC_TYPE /* kv.glsl has another, with loads and stores, and step64 */
#define Q_SRC_TYPE uvec2
uint load8(const uvec2 row, const int i) { return uint(Bytes(row).b[i]); }
uint load16(const uvec2 row, const int i) { return uint(Pairs(row).h[i >> 1]); }
uint load32(const uvec2 row, const int i) { return load16(row, i) | load16(row, i + 2) << 16; }
#endif

/* Bytes of the row in sight: a row of a float format may end within 32 weights, and nothing behind its end is read. The
 * others never look. */
int row_end;
bool row_ends;

bool behind_row(const int i) { return row_ends && i >= row_end; }

uint q_u8(const Q_SRC_TYPE row, const int i) { return behind_row(i) ? 0u : load8(row, i); }
uint q_u16(const Q_SRC_TYPE row, const int i) { return behind_row(i) ? 0u : load16(row, i); }
uint q_u32(const Q_SRC_TYPE row, const int i) { return behind_row(i) ? 0u : load32(row, i); }
#ifdef Q_ENCODE
void q_put8(const Q_SRC_TYPE row, const int i, const uint v) { if (!behind_row(i)) store8(row, i, v); }
void q_put16(const Q_SRC_TYPE row, const int i, const uint v) { if (!behind_row(i)) store16(row, i, v); }
void q_put32(const Q_SRC_TYPE row, const int i, const uint v) { if (!behind_row(i)) store32(row, i, v); }
#endif

#ifdef KV_ALONE /* no weights */
#include "vk_kv_codecs.glsl"
#else
#include "vk_codecs.glsl" /* made by the Makefile: includes every codec of formats.def */

/* Unit u (32 weights) of a row of k weights. */
void decode_unit(const Q_SRC_TYPE row, const int u, const int k, out float y[32]) {
#define FORMAT(name, id)                                                                             \
    if (FORMAT_OF_W == number_of_##name) {                                                           \
        const int units = name##_weights > 1 ? name##_weights / 32 : 1;                              \
        row_ends = name##_weights == 1;                                                              \
        row_end = k * name##_bytes;                                                                  \
        name##_decode(row, u / units, u % units, y);                                                 \
    }
#include "libquant/formats.def"
#undef FORMAT
}

/* One value of a row: learned vectors, where a whole unit would be waste. Of a float format only that value is read. */
float decode_value(const Q_SRC_TYPE row, const int i, const int k) {
    float y[32], value = 0.0;
#define FORMAT(name, id)                                                                             \
    if (FORMAT_OF_W == number_of_##name) {                                                           \
        const bool one = name##_weights == 1;                                                        \
        row_ends = one;                                                                              \
        row_end = name##_bytes;                                                                      \
        name##_decode(one ? step64(row, i, name##_bytes) : row, one ? 0 : i / name##_weights,        \
                      one ? 0 : i % name##_weights / 32, y);                                         \
        value = one ? y[0] : y[i % 32];                                                              \
    }
#include "libquant/formats.def"
#undef FORMAT
    return value;
}
#endif
