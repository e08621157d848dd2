/* nf4_levels.h: the sixteen levels that nf4 and nf4_dq share: the quantiles of a normal distribution that bitsandbytes
 * files use, and the same rounded to integers for products with 8-bit activations. Layer L1.
 *
 * The integers are level * 124, rounded: of the scales 100 .. 127 the one whose rounding is least, each level counted
 * as often as it occurs in blocks of 64 normally distributed weights. It moves weights by 2.4e-5 of their mean square;
 * NF4 itself misses them by 8.5e-3 of it. */
#ifndef Q_NF4_LEVELS_H
#define Q_NF4_LEVELS_H

#include "codec.h"

Q_TABLE(float, nf4_table, 16) = {
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0};

Q_TABLE(int, nf4_integers, 16) = {-124, -86, -65, -49, -35, -23, -11, 0, 10, 20, 31, 42, 55, 70, 90, 124};

#define NF4_SCALE 0.008064516129032258 /* 1 / 124: split's d is absmax times this, in float32 */
#define NF4_SPLIT_NMSE 3e-5f

#endif
