/* matmul_split_avx2.c: products with float32 activations of the formats of split_codecs.h: inlined into a function of
 * this instruction set, their loops of 32 become vectors. A new format gets a line there and one in kernels.def.
 * Layer L2. */
#include "tile_f32_avx2.h"

#include "../split_codecs.h"

#define DECODED(name, target)   \
    Q_SPLIT_WIDEN(name, target) \
    Q_TILE_PRODUCT(matmul_##name##_f32_3x2__avx2, name##_widen)

Q_SPLIT_CODECS(DECODED, Q_AVX2)
