/* matmul_units_dotprod.c: products with 8-bit activations by the instruction that adds four products of bytes to each
 * lane of 32 bits (FEAT_DotProd). Layer L2. */
#if defined(__clang__)
#define Q_UNITS_TARGET __attribute__((target("dotprod")))
#else
#define Q_UNITS_TARGET __attribute__((target("arch=armv8.2-a+dotprod")))
#endif
#include "units_neon.h"

/* In assembly, since clang 14 declares the intrinsic only where a whole file is compiled for the extension. */
Q_UNITS_INLINE int32x4_t q_dot16(int32x4_t sums, int8x16_t w, int8x16_t a) {
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(w), "w"(a));
    return sums;
}

Q_UNITS_ROWS(neon_dotprod)
