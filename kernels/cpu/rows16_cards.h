/* rows16_cards.h: where things lie in a block of the layouts of rows16_cards.c. Sizes are of a block of sixteen rows.
 * Layer L2. */
#ifndef Q_ROWS16_CARDS_H
#define Q_ROWS16_CARDS_H

#include "layout.h"

enum {
    /* halves d, bytes z, 16 unused bytes; then codes, 256 bytes per 32 weights */
    Q_ROWS16_I4_HEAD = 64,
    Q_ROWS16_I4_G32 = Q_ROWS16_I4_HEAD + 256,
    Q_ROWS16_I4_G64 = Q_ROWS16_I4_HEAD + 512, /* i4_row too */
    Q_ROWS16_I4_G128 = Q_ROWS16_I4_HEAD + 1024,
    Q_ROWS16_NF4 = 64 + 512,               /* floats absmax; codes as in i4. nf4_dq and fp4 too */
    Q_ROWS16_MXFP4 = 64 + 1024,            /* of four blocks: bytes e of each; codes as in i4 */
    /* of four units: bytes e, d = 2^(e - 127); eight scales, bytes; codes as in i4 */
    Q_ROWS16_NVFP4 = 64 + 128 + 1024,
    /* of four units: halves d of each, then bytes z of each; codes. All groups */
    Q_ROWS16_I8_G = 192 + 2048,
    Q_ROWS16_TQ2_0 = 64 + 1024,            /* floats d; codes. tq1_0 too */
    Q_ROWS16_I8_HEAD = 64,                 /* of a panel: floats d */
    Q_ROWS16_I8_ROW = 512
};

#endif
