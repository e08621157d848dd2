/* fit.h: how the formats find the parameters of a block, and the nearest code under them.
 *
 * Formats differ in the shape of a block (groups, levels, how scales and minima are stored), not in the search. One
 * describes its shape and calls one of the two fits: `symmetric` (value = scale * level) or `minimum` (value =
 * scale * level - min). Both serve the reference encoder and the search, never return a grid whose weighted error is
 * above the reference's, and never a parameter that is not finite. Layer L1. */
#ifndef Q_FIT_H
#define Q_FIT_H

#include <math.h>

#include "format.h"

typedef struct q_wide q_wide; /* wide.h */

typedef struct q_shape {
    int32_t weights, groups;   /* of a block */
    int32_t lo, hi;            /* levels are the integers lo .. hi, */
    const int *table;          /* or, when one is not NULL, these 16, ascending; lo = 0, hi = 15 are then the codes */
    const float *levels;
    int32_t sc_lo, sc_hi;      /* stored multiples of d per group; 1, 1 = d itself is the scale */
    int32_t mn_hi;             /* stored multiples of dmin per group, from 0; -1 = dmin itself, of either sign */
    bool full;                 /* d is a float32, not a half */
    float reference;           /* level given to the value of largest magnitude by the reference encoder */
    float from, to;            /* search: level given to the largest magnitude (or, with minima, to the range), ... */
    int32_t steps;             /* ... in this many steps */
} q_shape;

/* Find d, sc (and dmin, mn) of one block and what follows from them. */
void q_fit_symmetric(const q_shape *s, const q_fit_in *in, q_grid *grid);
void q_fit_minimum(const q_shape *s, const q_fit_in *in, q_grid *grid);

/* One scale for all n values of in->x, as a float32: a row's; of the shape, lo, hi, reference and the range of the
 * search. */
float q_fit_row(const q_shape *s, const q_fit_in *in, int64_t n);
/* A scale and a zero point for n values in levels 0 .. top (15 or 255), value = d * (level - zero): half d, byte zero,
 * 0. The reference spreads the levels over the values' range, widened to hold zero. */
void q_fit_zero(const q_fit_in *in, int64_t n, int32_t top, uint8_t head[4]);
/* The nearest code 0 .. top under d and the zero point mn[0] of a grid. */
int32_t q_fit_nearest_zero(const q_grid *grid, int32_t top, float x, float *value);

/* For scales of which there are few: that of `count` under which n values have the least weighted error, each at the
 * nearest of the shape's 16 levels. */
int32_t q_fit_choose(const q_shape *s, const float *x, const float *weight, int32_t n, const float *scales,
                     int32_t count);

/* Round to the nearest half that is finite. */
uint16_t q_fit_half(float f);

/* The value of a code, before scale and minimum. */
static inline float q_fit_level(const q_shape *s, int32_t code) {
    return s->table ? (float)s->table[code] : s->levels ? s->levels[code] : (float)code;
}
static inline bool q_fit_book(const q_shape *s) { return s->table || s->levels; }

/* Round to nearest in float arithmetic: adding 1.5 * 2^23 leaves no room for a fraction. For |v| < 2^22. */
Q_UNCHECKED static inline float q_fit_round(float v) { return (v + 12582912.0f) - 12582912.0f; }

/* 2^e as a double, -1022 <= e <= 1023. */
static inline double q_fit_power(int e) {
    const uint64_t bits = (uint64_t)(e + 1023) << 52;
    double d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

static inline int32_t q_fit_round_to(float v, int32_t lo, int32_t hi) {
    if (!(v > (float)lo)) return lo;
    if (v >= (float)hi) return hi;
    return (int32_t)q_fit_round(v);
}

/* Does level `other` come closer to x than *value does? Then take it. */
static inline void q_fit_closer(const q_shape *s, float scale, float min, float x, int32_t other, int32_t *code,
                                float *value) {
    if (other < s->lo || other > s->hi) return;
    const float y = scale * q_fit_level(s, other) - min;
    if (fabs((double)x - (double)y) < fabs((double)x - (double)*value)) {
        *code = other;
        *value = y;
    }
}

/* The code whose value is nearest to x as weight j; of two equally near ones of a codebook the lower. Not a number: the
 * lowest code. Inline, because the shape is a constant of the calling format. */
static inline int32_t q_fit_nearest(const q_shape *s, const q_grid *grid, int32_t j, float x, float *value) {
    const int32_t g = j / (s->weights / s->groups);
    const float scale = grid->scale[g], min = grid->min[g];
    int32_t code = s->lo;
    if (scale == 0.0f) { /* all the same: take the plain zero */
        while (code < s->hi && q_fit_level(s, code) < 0.0f) code++;
        *value = scale * q_fit_level(s, code) - min;
        return code;
    }
    const float v = (x + min) / scale;
    if (q_fit_book(s)) {
        for (int32_t half = 8; half > 0; half /= 2)
            if (v > (q_fit_level(s, code + half - 1) + q_fit_level(s, code + half)) * 0.5f) code += half;
    } else {
        code = q_fit_round_to(v, s->lo, s->hi);
    }
    *value = scale * q_fit_level(s, code) - min;
    /* The division and the halves above have rounded: near a border let the decoded values of the neighbours decide. */
    if (!q_fit_book(s) && fabsf(x - *value) < 0.499f * fabsf(scale)) return code;
    const int32_t middle = code;
    q_fit_closer(s, scale, min, x, middle - 1, &code, value);
    q_fit_closer(s, scale, min, x, middle + 1, &code, value);
    return code;
}

/* q_fit_nearest of all weights of a block. */
void q_fit_codes(const q_shape *s, const q_wide *wide, const q_grid *grid, const float *x, int32_t *codes);

#endif
