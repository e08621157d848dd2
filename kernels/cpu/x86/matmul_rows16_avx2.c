/* matmul_rows16_avx2.c: products of packed weights with 8-bit activations by AVX2. Layer L2. */
#define Q_Y_TARGET "avx2,fma,f16c"
#define Q_Y_VNNI 0
#include "rows16_avx2.h"
#include "panel_avx2.h"
#include "rows16_formats_avx2.h"

Q_Y_PRODUCTS(avx2)

/* Bytes: what AVX-VNNI multiplies as fast from the file (bench/SPEED.md), so that set has no line of it. */
Q_Y_INLINE __m256i codes_q8_0(const uint8_t *p, int i, int u, int g, int h) {
    return q_y_load(p + 64 + 512 * (i + u) + 64 * g + 32 * h);
}
static const q_y_format q8_0 = {
    .bytes = Q_ROWS16_Q8_0, .units = 2, .act = 1, .span = 1, .codes = codes_q8_0, .d = d_pair};
Q_Y_PRODUCT(matmul_q8_0_a8_32_rows16__avx2, q8_0)

/* Two scales to 32 weights, which AVX-VNNI applies with two instructions each: as fast without it. */
Q_Y_INLINE __m256i codes_nvfp4(const uint8_t *p, int i, int u, int g, int h) {
    return codes_mxfp4(p + 128, i, u, g, h);
}
Q_Y_INLINE __m256i scale_nvfp4(const uint8_t *p, int unit, int half, int h) {
    return q_y_bytes(p + 64 + 32 * unit + 16 * half + 8 * h);
}
Q_Y_INLINE __m256 d_nvfp4(const uint8_t *p, int unit, int h) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(lanes_of(p + 16 * unit + 8 * h), 23));
}
static const q_y_format nvfp4 = {.bytes = Q_ROWS16_NVFP4,
                                 .units = 4,
                                 .act = 1,
                                 .span = 1,
                                 .most = 4,
                                 .bias = 12,
                                 .scales = 2,
                                 .codes = codes_nvfp4,
                                 .scale = scale_nvfp4,
                                 .d = d_nvfp4};
Q_Y_PRODUCT(matmul_nvfp4_a8_32_rows16__avx2, nvfp4)
