/* e2m1.h: the sixteen values of a 4-bit float (a sign, two bits of exponent, one of mantissa), which mxfp4 and nvfp4
 * share, as integers: twice the value. Their scales are halved for it, so that products are exact integers. Layer
 * L1. */
#ifndef Q_E2M1_H
#define Q_E2M1_H

#include "codec.h"

Q_TABLE(int, e2m1_table, 16) = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#ifdef Q_HOST
/* A grid's codes are the levels in ascending order; of the two zeros the plain one is written. */
static const int e2m1_levels[16] = {-12, -8, -6, -4, -3, -2, -1, 0, 0, 1, 2, 3, 4, 6, 8, 12};
static inline uint8_t e2m1_code(int32_t level) {
    static const uint8_t code[16] = {15, 14, 13, 12, 11, 10, 9, 0, 0, 1, 2, 3, 4, 5, 6, 7};
    return code[level & 15];
}
#endif
#endif
