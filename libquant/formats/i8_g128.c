/* i8_g128.c: 8-bit codes in groups of 128, each with a scale and a zero point; i8_codec.h has the layout. Layer L2. */
#include "../i8_codec.h"

Q_I8_CODEC(i8_g128, 128, 132)

#ifdef Q_HOST
Q_I8_GROUPS(i8_g128)
#endif
