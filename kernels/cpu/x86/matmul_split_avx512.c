/* matmul_split_avx512.c: products with float32 activations of the formats of split_codecs.h, many columns lane by lane
 * (lanes_f32.h). Few are AVX2's, whose loops of 32 end where memory binds. Layer L2. */
#include "../split_codecs.h"

#define L_VECTORS 2 /* as in matmul_f32_avx512.c */
#define L_COLUMNS 12
#define L_TIMES_TILES(DO) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12)
#include "vec_avx512.h"

#include "../vec.h"

#include "../lanes_f32.h"

#define DECODED(name, target)                                                     \
    Q_SPLIT_UNIT(name, unit_avx512, target)                                       \
    uint64_t q_matmul_##name##_f32_32x12__avx512_scratch(int64_t k, int64_t n) { \
        return n < q_act_lanes.from ? q_matmul_##name##_f32_16x6__avx2_scratch(k, n) : l_scratch(k); \
    }                                                                             \
    target void q_matmul_##name##_f32_32x12__avx512(const q_mm *m) {            \
        if (m->n < q_act_lanes.from) q_matmul_##name##_f32_16x6__avx2(m);       \
        else l_product(m, NULL, name##_unit_avx512);                                     \
    }

Q_SPLIT_CODECS(DECODED, Q_AVX512)
