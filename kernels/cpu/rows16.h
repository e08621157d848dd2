/* rows16.h: where things lie in a block of the layouts of rows16.c, for those and for the kernels that read them.
 *
 * Sizes are of a block of sixteen rows. Scales and minima are bytes. Layer L2. */
#ifndef Q_ROWS16_H
#define Q_ROWS16_H

#include "layout.h"

enum {
    Q_ROWS16_Q4_0 = 64 + 2 * 256,           /* of two blocks: halves d, d; codes, codes. IQ4_NL too */
    Q_ROWS16_Q8_0 = 64 + 2 * 512,           /* the same */
    Q_ROWS16_Q5_0 = 64 + 2 * 64 + 2 * 256,  /* the same; fifth bits of both come before the codes */
    Q_ROWS16_Q4_1 = 64 + 256,               /* halves d, m; codes */
    Q_ROWS16_Q5_1 = 64 + 64 + 256,          /* halves d, m; fifth bits; codes */
    Q_ROWS16_Q2_K = 64 + 256 + 1024,        /* halves d, dmin; sixteen bytes of scale and minimum; codes */
    Q_ROWS16_Q3_K = 64 + 256 + 512 + 1024,  /* floats d; sixteen scales, signed; third bits; codes */
    Q_ROWS16_Q4_K = 64 + 256 + 2048,        /* halves d, dmin; eight scales, eight minima; codes */
    Q_ROWS16_Q5_K = 64 + 256 + 512 + 2048,  /* the same; fifth bits before the codes */
    Q_ROWS16_Q6_K = 64 + 256 + 2048 + 1024, /* floats d; sixteen scales, signed; four bits of the codes, two bits */
    Q_ROWS16_IQ4_XS = 64 + 128 + 2048       /* floats d; eight scales, signed; codes */
};

#endif
