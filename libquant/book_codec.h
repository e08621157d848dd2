/* book_codec.h: the formats of 4-bit codes into a book of sixteen floats under a float32 scale, as bitsandbytes has
 * them: nibbles of neighbours lie in one byte, the first in the high one. nf4, fp4 and nf4_dq are this text with
 * another book, or with their absmax and codes elsewhere. Layer L1. */
#ifndef Q_BOOK_CODEC_H
#define Q_BOOK_CODEC_H

#include "codec.h"

/* `table`: the levels; `integers`: the same times 1 / `scale`, rounded, for 8-bit activations. ABSMAX and CODES are
 * expressions of row, block and sub: the scale of unit `sub`, and where its sixteen bytes begin. */
#define Q_BOOK_CODEC(name, table, integers, scale, ABSMAX, CODES)                                                   \
    Q_FN void name##_decode(Q_SRC row, int block, int sub, Q_OUT(float, y, 32)) {                                   \
        int codes = CODES;                                                                                          \
        Q_LOCAL_float(absmax, 1);                                                                                   \
        absmax[0] = ABSMAX;                                                                                         \
        for (int i = 0; i < 16; i++) {                                                                              \
            uint b = q_u8(row, codes + i);                                                                          \
            y[2 * i] = absmax[0] * table[b >> 4];                                                                   \
            y[2 * i + 1] = absmax[0] * table[b & 15u];                                                              \
        }                                                                                                           \
    }                                                                                                               \
    Q_FN void name##_split(Q_SRC row, int block, int sub, Q_OUT(int, q, 32), Q_OUT(int, sc, 2), Q_OUT(int, mn, 2),  \
                           Q_OUT(float, d, 2)) {                                                                    \
        int codes = CODES;                                                                                          \
        d[0] = (ABSMAX) * q_float(scale);                                                                           \
        d[1] = 0.0;                                                                                                 \
        for (int g = 0; g < 2; g++) {                                                                               \
            sc[g] = 1;                                                                                              \
            mn[g] = 0;                                                                                              \
        }                                                                                                           \
        for (int i = 0; i < 16; i++) {                                                                              \
            uint b = q_u8(row, codes + i);                                                                          \
            q[2 * i] = integers[b >> 4];                                                                            \
            q[2 * i + 1] = integers[b & 15u];                                                                       \
        }                                                                                                           \
    }

#endif
