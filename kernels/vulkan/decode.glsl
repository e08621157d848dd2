/* decode.glsl: rows of weights: the codecs of libquant/formats/, and one function that decodes 32 weights of any of them.
 *
 * The format is a specialization constant: a pipeline keeps one codec. The others are left out before a driver sees them
 * (vk_words.c), which knows "if" of a constant and a number, and no "else". A row begins at an even address and its codecs
 * load 16 bits at even bytes. Layer L2. */
#define Q_GLSL 1
#define Q_SRC_TYPE uvec2

/* Bytes of the row in sight: a row of a float format may end within 32 weights, and nothing behind its end is read. The
 * others never look. */
int row_end;
bool row_ends;

uint q_u8(const uvec2 row, const int i) { return row_ends && i >= row_end ? 0u : uint(Bytes(row).b[i]); }
uint q_u16(const uvec2 row, const int i) { return row_ends && i >= row_end ? 0u : uint(Pairs(row).h[i >> 1]); }
uint q_u32(const uvec2 row, const int i) { return q_u16(row, i) | q_u16(row, i + 2) << 16; }

#include "vk_codecs.glsl" /* made by the Makefile: includes every codec of formats.def */

/* Unit u (32 weights) of a row of k weights. */
void decode_unit(const uvec2 row, const int u, const int k, out float y[32]) {
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
float decode_value(const uvec2 row, const int i, const int k) {
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
