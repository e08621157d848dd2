/* matmul_units_neon.c: products with 8-bit activations by the multiplications of base NEON, which yield 16 bits: two
 * products of a code of magnitude at most 128 with one of at most 127 are 32512 at most and fit. Layer L2. */
#define Q_UNITS_TARGET
#include "units_neon.h"

Q_UNITS_INLINE int32x4_t q_dot16(int32x4_t sums, int8x16_t w, int8x16_t a) {
    return vpadalq_s16(sums, vmlal_high_s8(vmull_s8(vget_low_s8(w), vget_low_s8(a)), w, a));
}

Q_UNITS_ROWS(neon)
