/* i4_g64.c: 4-bit codes in groups of 64, each with a scale and a zero point; i4_codec.h has the layout. Layer L2. */
#include "../i4_codec.h"

Q_I4_CODEC(i4_g64, 64, 36, Q_I4_IN_BLOCK)

#ifdef Q_HOST
Q_I4_GROUPS(i4_g64)
#endif
