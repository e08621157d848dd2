/* row_errors.h: what a row lost when it was quantized.
 *
 * Pure functions of the values before and after; sums go by rows, so figures do not depend on who formed them. Layer
 * L3. */
#ifndef Q_ROW_ERRORS_H
#define Q_ROW_ERRORS_H

#include "wide.h"

/* Squares of errors and of weights, and the same times the importance of each input. */
typedef struct q_row_sums {
    double error, norm, weighted_error, weighted_norm;
} q_row_sums;

/* Formats keep scales as halves and saturate: a weight beyond their range would shrink without a word. */
bool q_row_lost(const q_format *f, float x, float stored);

/* x is what was asked for, y what f stores; `im` may be NULL; false when some weight was lost. */
bool q_row_errors(const q_format *f, const q_wide *wide, const float *x, const float *y, const float *im, uint64_t k,
                  q_row_sums *sums);

#endif
