/* matmul_split_neon.c: products with float32 activations of the formats of split_codecs.h: inlined, a row is decoded
 * without a call per 32 weights. A new format gets a line there and one in kernels.def. Layer L2. */
#include "tile_f32_neon.h"

#include "../split_codecs.h"

#define DECODED(name, target)          \
    Q_SPLIT_WIDEN(name, widen, target) \
    Q_TILE_PRODUCT(matmul_##name##_f32_2x3__neon, name##_widen)

Q_SPLIT_CODECS(DECODED, )
