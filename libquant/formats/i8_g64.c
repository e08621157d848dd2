/* i8_g64.c: 8-bit codes in groups of 64, each with a scale and a zero point; i8_codec.h has the layout. Layer L2. */
#include "../i8_codec.h"

Q_I8_CODEC(i8_g64, 64, 68)

#ifdef Q_HOST
Q_I8_GROUPS(i8_g64)
#endif
