/* fit.h: how the formats find the parameters of a block, and the nearest code under them.
 *
 * Formats differ in the shape of a block (groups, levels, how scales and minima are stored), not in the search. A format
 * describes its shape and calls one of the two fits: `symmetric` (value = scale * level) or `minimum` (value =
 * scale * level - min). Both serve the reference encoder and the search, never return a grid whose weighted error is
 * above the reference's, and never a parameter that is not finite. Layer L1. */
#ifndef Q_FIT_H
#define Q_FIT_H

#include "format.h"

/* How much the error of a value counts where the caller gave no importance. */
typedef enum { Q_PRIOR_FLAT, Q_PRIOR_MIXED /* root mean square + |x| */, Q_PRIOR_SQUARE /* x^2 */ } q_prior;

typedef struct q_shape {
    int32_t weights, groups;   /* of a block */
    int32_t lo, hi;            /* levels are the integers lo .. hi, */
    const int *table;          /* or, when one is not NULL, these 16, ascending; lo = 0, hi = 15 are then the codes */
    const float *levels;
    int32_t sc_lo, sc_hi;      /* stored multiples of d per group; 1, 1 = d itself is the scale */
    int32_t mn_hi;             /* stored multiples of dmin per group, from 0; -1 = dmin itself, of either sign */
    bool full;                 /* d is a float32, not a half */
    float reference;           /* level given to the value of largest magnitude by the reference encoder */
    q_prior prior;
    float from, to;            /* search: level given to the largest magnitude (or, with minima, to the range), ... */
    int32_t steps;             /* ... in this many steps */
} q_shape;

/* Find d, sc (and dmin, mn) of one block and what follows from them. */
void q_fit_symmetric(const q_shape *s, const q_fit_in *in, q_grid *grid);
void q_fit_minimum(const q_shape *s, const q_fit_in *in, q_grid *grid);

/* The code in the shape whose value is nearest to x as weight j. Not a number: the lowest code. */
int32_t q_fit_nearest(const q_shape *s, const q_grid *grid, int32_t j, float x, float *value);

/* Round to the nearest half that is finite. */
uint16_t q_fit_half(float f);

#endif
