/* dense.c: OpenBLAS at run time, and the blocked algorithms that call it tile by tile. See dense.h.
 *
 * The factor comes without inverting: A = M M' with M upper triangular is the Cholesky factor of A with rows and
 * columns in reverse, U = M^-1 then has U' U = A^-1, and half the work of inverting first and factoring again.
 *
 * Whose calls may overlap: the build with threads claims its buffers under a lock, and works for many callers at once
 * while it is held to one thread itself. Debian's build without threads (0.3.21) looks for a free buffer and takes it
 * with no lock held: two callers were seen to get the same one, and a factor came out wrong. So with any other build
 * calls wait for one another. Layer L1. */
#include "dense.h"

#include <math.h>

#include "file.h"

enum { TILE = 256, MOST_THREADS = 64 /* Debian's OpenBLAS has buffers for 128 callers at once */ };
/* of cblas.h */
enum { ROW_MAJOR = 101, NO_TRANS = 111, TRANS = 112, LOWER = 122, NON_UNIT = 131, LEFT = 141, RIGHT = 142 };

struct q_dense {
    const q_alloc *alloc;
    void *library;
    int before;   /* its threads before it was held to one; 0 = it has none of its own */
    bool one;     /* one call at a time: */
    bool has_turn;
    q_mutex *turn;
    void (*set_threads)(int n);
    void (*sgemm)(int order, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda, const float *b,
                  int ldb, float beta, float *c, int ldc);
    void (*dgemm)(int order, int ta, int tb, int m, int n, int k, double alpha, const double *a, int lda,
                  const double *b, int ldb, double beta, double *c, int ldc);
    void (*dtrsm)(int order, int side, int uplo, int ta, int diag, int m, int n, double alpha, const double *a, int lda,
                  double *b, int ldb);
    void (*dpotrf)(const char *uplo, const int *n, double *a, const int *lda, int *info, size_t length);
};

/* ------------------------------------------------------------------------------------------------ the library */

enum { THREADS_OF_ITS_OWN = 1 }; /* openblas_get_parallel: 0 = none, 2 = OpenMP's */

/* The build with threads first: Debian keeps several, of which the linker finds one. */
static const char *const names[] = {"/usr/lib/x86_64-linux-gnu/openblas-pthread/libopenblas.so.0",
                                    "/usr/lib/aarch64-linux-gnu/openblas-pthread/libopenblas.so.0", "libopenblas.so.0"};

static bool find(const q_dense *d, const char *name, void *function) {
    void *address = q_library_symbol(d->library, name);
    memcpy(function, &address, sizeof address); /* ISO C has no cast from an object's address to a function's */
    return address != NULL;
}

static lq_status open_library(q_dense *d) {
    for (size_t i = 0; i < Q_COUNT(names) && !d->library; i++) d->library = q_library_open(names[i]);
    if (!d->library)
        return q_fail(LQ_E_UNSUPPORTED,
                      "OpenBLAS (libopenblas.so.0) is not here, and Hessians need it; on Debian the package "
                      "libopenblas0-pthread brings it");
    int (*parallel)(void), (*get_threads)(void);
    const bool all = find(d, "cblas_sgemm", &d->sgemm) && find(d, "cblas_dgemm", &d->dgemm) &&
                     find(d, "cblas_dtrsm", &d->dtrsm) && find(d, "dpotrf_", &d->dpotrf) &&
                     find(d, "openblas_get_parallel", &parallel) && find(d, "openblas_get_num_threads", &get_threads) &&
                     find(d, "openblas_set_num_threads", &d->set_threads);
    if (!all)
        return q_fail(LQ_E_UNSUPPORTED, "libopenblas.so.0 lacks functions that OpenBLAS has; on Debian the package "
                      "libopenblas0-pthread brings one that has them");
    d->one = parallel() != THREADS_OF_ITS_OWN;
    if (parallel() != 0) {
        d->before = get_threads();
        d->set_threads(1);
    }
    d->turn = Q_NEW(d->alloc, q_mutex, 1);
    if (!d->turn) return LQ_E_NOMEM;
    Q_TRY(q_mutex_open(d->turn));
    d->has_turn = true;
    return LQ_OK;
}

lq_status q_dense_open(const q_alloc *a, q_dense **out) {
    q_dense *d = Q_NEW(a, q_dense, 1);
    if (!d) return LQ_E_NOMEM;
    d->alloc = a;
    const lq_status status = open_library(d);
    if (status != LQ_OK) {
        q_dense_close(d);
        return status;
    }
    *out = d;
    return LQ_OK;
}

void q_dense_close(q_dense *d) {
    if (!d) return;
    if (d->before) d->set_threads(d->before);
    if (d->has_turn) q_mutex_close(d->turn);
    q_delete(d->alloc, d->turn);
    q_library_close(d->library);
    q_delete(d->alloc, d);
}

static void enter(const q_dense *d) {
    if (d->one) q_mutex_lock(d->turn);
}
static void leave(const q_dense *d) {
    if (d->one) q_mutex_unlock(d->turn);
}

/* ------------------------------------------------------------------------------------------------ tiles */

typedef struct work {
    const q_dense *d;
    q_pool *pool;
    void (*tile)(const struct work *w, int64_t i, int64_t j, uint32_t thread); /* tile (i, j), j <= i */
    int64_t first, last; /* rows and columns of tiles */
    const float *x;
    int64_t n, stride, k;
    float *h, *u;
    double *a, *room; /* [threads][k][TILE] */
    int64_t at; /* the tile column that was factored last */
} work;

static int64_t tiles(int64_t k) { return (k + TILE - 1) / TILE; }
static int size_of(const work *w, int64_t tile) { return (int)Q_MIN((int64_t)TILE, w->k - tile * TILE); }

/* Number t of the tiles (0,0) (1,0) (1,1) (2,0) ... */
static void triangle(int64_t t, int64_t *i, int64_t *j) {
    int64_t r = (int64_t)((sqrt(8.0 * (double)t + 1) - 1) / 2);
    while (r * (r + 1) / 2 > t) r--;
    while ((r + 1) * (r + 2) / 2 <= t) r++;
    *i = r;
    *j = t - r * (r + 1) / 2;
}

static void run_triangle(void *arg, uint32_t thread) {
    const work *w = (const work *)arg;
    const int64_t n = w->last - w->first;
    int64_t begin, end, i, j;
    while (q_pool_claim(w->pool, n * (n + 1) / 2, 1, &begin, &end)) {
        triangle(begin, &i, &j);
        w->tile(w, w->first + i, w->first + j, thread);
    }
}
static void run_column(void *arg, uint32_t thread) {
    const work *w = (const work *)arg;
    int64_t begin, end;
    while (q_pool_claim(w->pool, w->last - w->first, 1, &begin, &end)) w->tile(w, w->first + begin, w->at, thread);
}
static void on_threads(work *w, void (*run)(void *arg, uint32_t thread)) {
    if (w->first < w->last) q_pool_run_on(w->pool, Q_MIN(q_pool_threads(w->pool), (uint32_t)MOST_THREADS), run, w);
}

/* ------------------------------------------------------------------------------------------------ sums */

static void gram_tile(const work *w, int64_t i, int64_t j, uint32_t thread) {
    Q_UNUSED(thread);
    enter(w->d);
    w->d->sgemm(ROW_MAJOR, TRANS, NO_TRANS, size_of(w, i), size_of(w, j), (int)w->n, 1.0f, w->x + i * TILE,
                (int)w->stride, w->x + j * TILE, (int)w->stride, 1.0f, w->h + i * TILE * w->k + j * TILE, (int)w->k);
    leave(w->d);
}

void q_dense_gram(const q_dense *d, q_pool *pool, const float *x, int64_t n, int64_t stride, int64_t k, float *h) {
    work w = {
        .d = d, .pool = pool, .tile = gram_tile, .last = tiles(k), .x = x, .n = n, .stride = stride, .k = k, .h = h};
    on_threads(&w, run_triangle);
}

/* ------------------------------------------------------------------------------------------------ the factor */

static double *tile_at(const work *w, int64_t i, int64_t j) { return w->a + i * TILE * w->k + j * TILE; }

/* Below a factored tile. */
static void panel_tile(const work *w, int64_t i, int64_t j, uint32_t thread) {
    Q_UNUSED(thread);
    enter(w->d);
    w->d->dtrsm(ROW_MAJOR, RIGHT, LOWER, TRANS, NON_UNIT, size_of(w, i), size_of(w, j), 1, tile_at(w, j, j), (int)w->k,
                tile_at(w, i, j), (int)w->k);
    leave(w->d);
}
/* What is left of a later tile when a column of tiles is known. */
static void rest_tile(const work *w, int64_t i, int64_t j, uint32_t thread) {
    Q_UNUSED(thread);
    enter(w->d);
    w->d->dgemm(ROW_MAJOR, NO_TRANS, TRANS, size_of(w, i), size_of(w, j), TILE, -1, tile_at(w, i, w->at), (int)w->k,
                tile_at(w, j, w->at), (int)w->k, 1, tile_at(w, i, j), (int)w->k);
    leave(w->d);
}
/* The columns of a tile's width of L^-1, and where they lie in U. */
static void inverse_tile(const work *w, int64_t i, int64_t j, uint32_t thread) {
    Q_UNUSED(j);
    const int64_t from = i * TILE, n = w->k - from, width = size_of(w, i);
    double *b = w->room + (int64_t)thread * w->k * TILE;
    memset(b, 0, (size_t)(n * width) * sizeof *b);
    for (int64_t c = 0; c < width; c++) b[c * width + c] = 1;
    enter(w->d);
    w->d->dtrsm(ROW_MAJOR, LEFT, LOWER, NO_TRANS, NON_UNIT, (int)n, (int)width, 1, tile_at(w, i, i), (int)w->k, b,
                (int)width);
    leave(w->d);
    for (int64_t r = 0; r < w->k; r++) {
        float *last = w->u + (w->k - 1 - r) * w->k + (w->k - 1 - from); /* rows and columns in reverse */
        for (int64_t c = 0; c < width; c++) last[-c] = r < from + c ? 0.0f : (float)b[(r - from) * width + c];
    }
}

lq_status q_dense_inverse_factor(const q_dense *d, const q_alloc *a, q_pool *pool, double *m, int64_t k, float *u,
                                 bool *definite) {
    const int64_t n = tiles(k);
    const int ld = (int)k;
    work w = {.d = d, .pool = pool, .k = k, .u = u, .a = m};
    *definite = false;
    for (int64_t t = 0; t < n; t++) {
        const int size = size_of(&w, t);
        int info = 0;
        d->dpotrf("U", &size, tile_at(&w, t, t), &ld, &info, 1); /* upper by columns is lower by rows */
        if (info != 0) return LQ_OK;
        w.at = t;
        w.first = t + 1;
        w.last = n;
        w.tile = panel_tile;
        on_threads(&w, run_column);
        w.tile = rest_tile;
        on_threads(&w, run_triangle);
    }
    w.room = (double *)q_new_raw(a, Q_MIN(q_pool_threads(pool), (uint32_t)MOST_THREADS) * (uint64_t)TILE,
                                 (uint64_t)k * sizeof *w.room);
    if (!w.room) return LQ_E_NOMEM;
    w.first = 0;
    w.tile = inverse_tile;
    on_threads(&w, run_column);
    q_delete(a, w.room);
    *definite = true;
    for (int64_t i = 0; i < k; i++) *definite &= u[i * k + i] > 0.0f && isfinite(u[i * k + i]);
    return LQ_OK;
}

uint64_t q_dense_inverse_bytes(uint64_t k, uint32_t threads) {
    return q_new_bytes(Q_MIN(threads, (uint32_t)MOST_THREADS) * (uint64_t)TILE * k * sizeof(double));
}
uint64_t q_dense_open_bytes(void) { return q_new_bytes(sizeof(q_dense)) + q_new_bytes(sizeof(q_mutex)); }
