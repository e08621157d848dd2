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
