/* matmul_split_neon.c: products with float32 activations of the formats whose codec is plain arithmetic on codes. The
 * codec is the one text of libquant/formats, compiled here once more and inlined: a row is decoded without a call per 32
 * weights. The same operations on the same floats, so the same bits. A new format gets a line here, one in kernels.def,
 * and its include. Layer L2. */
#include "tile_f32_neon.h"

#include "../../../libquant/formats/iq4_nl.c"
#include "../../../libquant/formats/iq4_xs.c"
#include "../../../libquant/formats/q2_k.c"
#include "../../../libquant/formats/q3_k.c"
#include "../../../libquant/formats/q4_0.c"
#include "../../../libquant/formats/q4_1.c"
#include "../../../libquant/formats/q4_k.c"
#include "../../../libquant/formats/q5_0.c"
#include "../../../libquant/formats/q5_1.c"
#include "../../../libquant/formats/q5_k.c"
#include "../../../libquant/formats/q6_k.c"
#include "../../../libquant/formats/q8_0.c"

#define DECODED(name)                                                                       \
    static void name##_widen(const q_format *f, const uint8_t *row, int64_t k, float *to) { \
        Q_UNUSED(f);                                                                        \
        for (int block = 0; block < (int)(k / name##_weights); block++)                     \
            for (int sub = 0; sub < name##_weights / Q_UNIT; sub++, to += Q_UNIT)           \
                name##_decode(row, block, sub, to);                                         \
    }                                                                                       \
    Q_TILE_PRODUCT(matmul_##name##_f32_2x3__neon, name##_widen)

DECODED(iq4_nl)
DECODED(iq4_xs)
DECODED(q2_k)
DECODED(q3_k)
DECODED(q4_0)
DECODED(q4_1)
DECODED(q4_k)
DECODED(q5_0)
DECODED(q5_1)
DECODED(q5_k)
DECODED(q6_k)
DECODED(q8_0)
