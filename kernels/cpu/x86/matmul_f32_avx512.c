/* matmul_f32_avx512.c: products of the float formats with float32 activations, and these brought into the order for
 * them. Layer L2. */
#include "tile_f32_avx512.h"

#define L_VECTORS 2 /* 32 rows and 12 columns in 24 registers: 14 loads for 24 multiply-adds */
#define L_COLUMNS 12
#define L_TIMES_TILES(DO) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12)
#include "vec_avx512.h"

#include "../vec.h"

#include "../lanes_f32.h"

Q_AVX512_INLINE __m512 sixteen_f16(const uint8_t *p, __mmask16 in) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(in, p));
}
Q_AVX512_INLINE __m512 sixteen_bf16(const uint8_t *p, __mmask16 in) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, p)), 16));
}
Q_AVX512_INLINE __m512 sixteen_f32(const uint8_t *p, __mmask16 in) { return _mm512_maskz_loadu_ps(in, p); }

/* PRODUCT's two functions for a format whose weights take `bytes` each. */
#define FLOATS(name, bytes)                                                                                            \
    Q_AVX512_INLINE __m512 upto16_##name(const uint8_t *row, int64_t i, int64_t n) {                                   \
        return sixteen_##name(row + i * bytes, q_mask16(n));                                                           \
    }                                                                                                                  \
    uint64_t q_matmul_##name##_f32_32x12__avx512_scratch(int64_t k, int64_t n) {                                       \
        return n < q_act_lanes.from ? 0 : l_scratch(k);                                                                \
    }                                                                                                                  \
    Q_AVX512 void q_matmul_##name##_f32_32x12__avx512(const q_mm *m) {                                                 \
        if (m->n < q_act_lanes.from)                                                                                   \
            q_strip_product(m, bytes, sixteen_##name);                                                                 \
        else                                                                                                           \
            l_product(m, upto16_##name, NULL);                                                                         \
    }

FLOATS(f16, 2)
FLOATS(bf16, 2)
FLOATS(f32, 4)

Q_AVX512 void q_act_lanes__avx512(const float *x, int64_t n, void *dst) { l_arrange(x, n, (float *)dst); }
