/* rows16.h: where things lie in a block of the layouts of rows16.c, for those and for the kernels that read them.
 *
 * Sizes are of a block of sixteen rows. Layer L2. */
#ifndef Q_ROWS16_H
#define Q_ROWS16_H

#include "layout.h"

enum {
    Q_ROWS16_Q4_0 = 64 + 2 * 256, /* of two blocks: halves d, d, codes, codes */
    Q_ROWS16_Q8_0 = 64 + 2 * 512,
    Q_ROWS16_Q4_K = 64 + 128 + 128 + 2048 /* halves d, dmin; bytes: eight scales, eight minima; codes */
};

#endif
