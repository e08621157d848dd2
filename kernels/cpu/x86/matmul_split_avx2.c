/* matmul_split_avx2.c: products with float32 activations of the formats of split_codecs.h: inlined into a function of
 * this instruction set, their loops of 32 become vectors. A new format gets a line there and one in kernels.def.
 * Layer L2. */
#include "tile_f32_avx2.h"

#include "../split_codecs.h"

#define L_VECTORS 2 /* as in matmul_f32_avx2.c */
#define L_COLUMNS 6
#define L_TIMES_TILES(DO) DO(3) DO(4) DO(5) DO(6)
#include "vec_avx2.h"

#include "../vec.h"

#include "../lanes_f32.h"

#define DECODED(name, target)                                                    \
    Q_SPLIT_UNIT(name, unit_avx2, target)                                        \
    Q_SPLIT_WIDEN(name, widen, target)                                           \
    uint64_t q_matmul_##name##_f32_16x6__avx2_scratch(int64_t k, int64_t n) {  \
        return n < q_act_lanes.from ? q_tile_bytes(k) : l_scratch(k);            \
    }                                                                            \
    target void q_matmul_##name##_f32_16x6__avx2(const q_mm *m) {              \
        if (m->n < q_act_lanes.from) q_tile_product(m, name##_widen);            \
        else l_product(m, NULL, name##_unit_avx2);                                    \
    }

Q_SPLIT_CODECS(DECODED, Q_AVX2)
