/* dense.h: dense algebra on large symmetric matrices: sums of outer products, and the factor of an inverse.
 *
 * By OpenBLAS, which is opened at run time when it is first needed, and only then: nothing else of the library wants
 * it. Work is cut into tiles of a fixed size, one call of one thread each, so results do not depend on the number of
 * threads. They do depend on the kernels that OpenBLAS chooses for the processor. Layer L1. */
#ifndef Q_DENSE_H
#define Q_DENSE_H

#include "threads.h"

typedef struct q_dense q_dense;

/* LQ_E_UNSUPPORTED names the package when no OpenBLAS is here. One that has threads of its own is held to one while it
 * is open, for the whole process. */
lq_status q_dense_open(const q_alloc *a, q_dense **out);
void q_dense_close(q_dense *d); /* NULL is fine */
/* What an open one holds of the allocator's: OpenBLAS's own buffers are its own. */
uint64_t q_dense_open_bytes(void);

/* h += X' X for n rows of x, `stride` floats apart: float32 [k][k], of which tiles on and below the diagonal are kept
 * (each element below it is right, those above may not be). */
void q_dense_gram(const q_dense *d, q_pool *pool, const float *x, int64_t n, int64_t stride, int64_t k, float *h);

/* U, upper triangular, with U' U = A^-1, as float32 [k][k] with zeros below the diagonal. `a` is float64 [k][k] and is
 * overwritten: element (i, j) with j <= i has to hold A's element (k-1-i, k-1-j). *definite false: A is not positive
 * definite as far as float64 can tell, and u is not written. */
lq_status q_dense_inverse_factor(const q_dense *d, const q_alloc *a, q_pool *pool, double *m, int64_t k, float *u,
                                 bool *definite);
/* What that asks of the allocator meanwhile. */
uint64_t q_dense_inverse_bytes(uint64_t k, uint32_t threads);

#endif
