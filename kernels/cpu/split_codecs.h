/* split_codecs.h: the formats whose codec is plain arithmetic on codes, compiled once more for the instruction set of
 * the file that includes this: the one text of libquant/formats, inlined into a function with that set's target. The
 * same operations on the same floats, so the same bits. A new format gets its include and a line here. Layer L2. */
#ifndef Q_SPLIT_CODECS_H
#define Q_SPLIT_CODECS_H

#include "../../libquant/formats/fp4.c"
#include "../../libquant/formats/i4_g128.c"
#include "../../libquant/formats/i4_g32.c"
#include "../../libquant/formats/i4_g64.c"
#include "../../libquant/formats/i4_row.c"
#include "../../libquant/formats/i8_g128.c"
#include "../../libquant/formats/i8_g32.c"
#include "../../libquant/formats/i8_g64.c"
#include "../../libquant/formats/i8_row.c"
#include "../../libquant/formats/iq4_nl.c"
#include "../../libquant/formats/iq4_xs.c"
#include "../../libquant/formats/mxfp4.c"
#include "../../libquant/formats/nf4.c"
#include "../../libquant/formats/nf4_dq.c"
#include "../../libquant/formats/nvfp4.c"
#include "../../libquant/formats/q2_k.c"
#include "../../libquant/formats/q3_k.c"
#include "../../libquant/formats/q4_0.c"
#include "../../libquant/formats/q4_1.c"
#include "../../libquant/formats/q4_k.c"
#include "../../libquant/formats/q5_0.c"
#include "../../libquant/formats/q5_1.c"
#include "../../libquant/formats/q5_k.c"
#include "../../libquant/formats/q6_k.c"
#include "../../libquant/formats/q8_0.c"
#include "../../libquant/formats/tq1_0.c"
#include "../../libquant/formats/tq2_0.c"

/* DO(format, argument) for each. */
#define Q_SPLIT_CODECS(DO, argument) \
    DO(fp4, argument) \
    DO(i4_g128, argument) \
    DO(i4_g32, argument) \
    DO(i4_g64, argument) \
    DO(i4_row, argument) \
    DO(i8_g128, argument) \
    DO(i8_g32, argument) \
    DO(i8_g64, argument) \
    DO(i8_row, argument) \
    DO(iq4_nl, argument) \
    DO(iq4_xs, argument) \
    DO(mxfp4, argument) \
    DO(nf4, argument) \
    DO(nf4_dq, argument) \
    DO(nvfp4, argument) \
    DO(q2_k, argument) \
    DO(q3_k, argument) \
    DO(q4_0, argument) \
    DO(q4_1, argument) \
    DO(q4_k, argument) \
    DO(q5_0, argument) \
    DO(q5_1, argument) \
    DO(q5_k, argument) \
    DO(q6_k, argument) \
    DO(q8_0, argument) \
    DO(tq1_0, argument) \
    DO(tq2_0, argument)

/* name_unit(): weights 32 u .. 32 u + 31 of a row of the format `name` as floats; `unit` is of a file's own choice. */
#define Q_SPLIT_UNIT(name, unit, target)                                             \
    target static void name##_##unit(const uint8_t *row, int64_t u, float *to) {     \
        enum { UNITS = name##_weights / Q_UNIT };                                    \
        name##_decode(row, (int)(u / UNITS), (int)(u % UNITS), to);                  \
    }

/* name_widen(): a row of the format `name` to floats; `widen` is of a file's own choice. */
#define Q_SPLIT_WIDEN(name, widen, target)                                                           \
    target static void name##_##widen(const q_format *f, const uint8_t *row, int64_t k, float *to) { \
        Q_UNUSED(f);                                                                                 \
        for (int block = 0; block < (int)(k / name##_weights); block++)                              \
            for (int sub = 0; sub < name##_weights / Q_UNIT; sub++, to += Q_UNIT)                    \
                name##_decode(row, block, sub, to);                                                  \
    }

#endif
