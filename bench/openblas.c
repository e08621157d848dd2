/* openblas.c: loading OpenBLAS and timing its sgemm. See openblas.h. */
#include "openblas.h"

#include <dlfcn.h>
#include <stdlib.h>

enum {
    COLUMN_MAJOR = 102, NO_TRANS = 111, TRANS = 112, /* of cblas.h */
    MOST_ROWS = 4096
};
#define LIBRARY "libopenblas.so.0"

/* What release 0.3.21 of Debian 12 knows on x86-64. Of its kernels for AVX-512, those of later processors differ in
 * bfloat16 and are slower in float32 (bench/SPEED.md). */
static const char *core_for(q_isas isas) {
#if defined(__x86_64__)
    char brand[64];
    q_cpu_brand(brand, sizeof brand);
    if (q_isa_in(isas, Q_ISA_avx512)) return "SkylakeX";
    if (q_isa_in(isas, Q_ISA_avx2)) return strncmp(brand, "AMD", 3) == 0 ? "Zen" : "Haswell";
#endif
    Q_UNUSED(isas);
    return NULL;
}

void bench_openblas_tell(void) {
    q_isas isas;
    const char *core = q_isa_choose(NULL, &isas) == LQ_OK ? core_for(isas) : NULL;
    if (core) setenv("OPENBLAS_CORETYPE", core, 0);
}

lq_status bench_openblas_open(bench_openblas *b, q_isas isas, uint32_t threads) {
    *b = (bench_openblas){.core = "", .wanted = core_for(isas)};
    if (b->wanted) setenv("OPENBLAS_CORETYPE", b->wanted, 0); /* a user's own word stands, and its row shows it */
    b->library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!b->library)
        return q_fail(LQ_E_UNSUPPORTED,
                      LIBRARY " cannot be loaded, so nothing stands beside products in float32; on Debian "
                              "libopenblas0-pthread or libopenblas0-serial brings it");
    void *sgemm = dlsym(b->library, "cblas_sgemm");
    void *corename = dlsym(b->library, "openblas_get_corename");
    void *parallel = dlsym(b->library, "openblas_get_parallel");
    void *set_threads = dlsym(b->library, "openblas_set_num_threads");
    if (!sgemm || !corename || !parallel || !set_threads)
        return q_fail(LQ_E_UNSUPPORTED, LIBRARY " lacks functions that OpenBLAS has");
    char *(*name)(void);
    int (*is_parallel)(void);
    memcpy(&b->sgemm, &sgemm, sizeof sgemm); /* ISO C has no cast from an object's address to a function's */
    memcpy(&b->set_threads, &set_threads, sizeof set_threads);
    memcpy(&name, &corename, sizeof corename);
    memcpy(&is_parallel, &parallel, sizeof parallel);
    if (threads > 1 && is_parallel() == 0)
        return q_fail(LQ_E_UNSUPPORTED,
                      "this OpenBLAS is built for one thread; on Debian libopenblas0-pthread brings another");
    b->core = name();
    b->set_threads((int)threads);
    return LQ_OK;
}

void bench_openblas_close(bench_openblas *b) {
    if (b->library) dlclose(b->library);
    *b = (bench_openblas){.core = ""};
}

typedef struct gemm {
    const bench_openblas *b;
    int rows, columns, depth;
    float *w, *x, *y;
    int64_t calls;
} gemm;

static void gemm_pass(void *arg) { /* rows of w and columns of x and y each lie one after the other in memory */
    const gemm *g = (const gemm *)arg;
    for (int64_t i = 0; i < g->calls; i++)
        g->b->sgemm(COLUMN_MAJOR, TRANS, NO_TRANS, g->rows, g->columns, g->depth, 1, g->w, g->depth, g->x, g->depth, 0,
                    g->y, g->rows);
}

static bool gemm_grow(void *arg) {
    gemm *g = (gemm *)arg;
    g->calls *= 2;
    return g->calls < INT32_MAX;
}

lq_status bench_openblas_product(const bench_openblas *b, const bench_kernel_how *how, uint64_t memory,
                                 bench_kernel_time *out) {
    const int64_t fit = (int64_t)(memory / 4 / sizeof(float)) / how->depth;
    gemm g = {.b = b, .rows = (int)Q_MAX(Q_MIN(fit, (int64_t)MOST_ROWS), (int64_t)1), .columns = how->columns,
              .depth = (int)how->depth, .calls = 1};
    g.w = Q_NEW(&q_alloc_libc, float, (int64_t)g.rows * g.depth);
    g.x = Q_NEW(&q_alloc_libc, float, (int64_t)g.columns * g.depth);
    g.y = Q_NEW(&q_alloc_libc, float, (int64_t)g.columns * g.rows);
    lq_status s = g.w && g.x && g.y ? LQ_OK : LQ_E_NOMEM;
    if (s == LQ_OK) {
        bench_kernel_fill(g.w, (int64_t)g.rows * g.depth);
        bench_kernel_fill(g.x, (int64_t)g.columns * g.depth);
        s = bench_kernel_time_passes(gemm_pass, gemm_grow, &g, how->passes, &out->passes);
    }
    const double weights = (double)g.rows * g.depth * (double)g.calls;
    out->ops = 2 * weights * g.columns;
    out->bytes = weights * sizeof(float);
    snprintf(out->shape, sizeof out->shape, "%d deep; %d columns", g.depth, g.columns);
    q_delete(&q_alloc_libc, g.w);
    q_delete(&q_alloc_libc, g.x);
    q_delete(&q_alloc_libc, g.y);
    return s;
}
