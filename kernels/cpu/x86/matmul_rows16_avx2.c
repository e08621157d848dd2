/* matmul_rows16_avx2.c: products of packed weights with 8-bit activations by AVX2. Layer L2. */
#define Q_Y_TARGET "avx2,fma,f16c"
#define Q_Y_VNNI 0
#include "rows16_avx2.h"
#include "rows16_formats_avx2.h"

Q_Y_PRODUCTS(avx2)
Q_Y_PRODUCT(matmul_q8_0_a8_32_rows16__avx2, q8_0)
