/* half_pi.h: pi / 2 in two doubles, whose sum has 106 bits of it, for reductions of angles. Layer L2. */
#ifndef Q_HALF_PI_H
#define Q_HALF_PI_H

#define Q_PI_2 0x1.921fb54442d18p+0
#define Q_PI_2_LOW 0x1.1a62633145c07p-54
#define Q_2_PI 0x1.45f306dc9c883p-1

#endif
