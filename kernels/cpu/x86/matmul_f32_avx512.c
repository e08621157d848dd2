/* matmul_f32_avx512.c: products of the float formats with float32 activations. Layer L2. */
#include "tile_f32_avx512.h"

Q_AVX512_INLINE __m512 load_f16(const uint8_t *p, __mmask16 in) {
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(in, p));
}
Q_AVX512_INLINE __m512 load_bf16(const uint8_t *p, __mmask16 in) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, p)), 16));
}
Q_AVX512_INLINE __m512 load_f32(const uint8_t *p, __mmask16 in) { return _mm512_maskz_loadu_ps(in, p); }

Q_STRIP_PRODUCT(matmul_f16_f32_6x4__avx512, 2, load_f16)
Q_STRIP_PRODUCT(matmul_bf16_f32_6x4__avx512, 2, load_bf16)
Q_STRIP_PRODUCT(matmul_f32_f32_6x4__avx512, 4, load_f32)
