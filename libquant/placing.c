/* placing.c: how large blocks are placed in memory: what the options of a context ask for, what the system offers, and
 * where they say "auto", what a short test of reading finds faster. Refuses what was asked for by name and cannot be
 * had.
 *
 * Without interleaving a page lies on the node of the thread that first writes to it. KV pages, activations and copies
 * of a file's bytes are written first by the thread that opens the model or session, packed and quantized weights by
 * whichever thread of the pool claimed those rows, so by chance; of a mapped file, by whoever read it first. No thread
 * later reads the rows that it placed rather than others: with several nodes the choice is between one node's memory
 * and all of them in turn. Layer L3. */
#include "engine.h"

#include <stdio.h>

enum { TEST_BYTES = 64 << 20, PASSES = 4, PIECE = 1 << 18 };
#define GAIN 1.02 /* by so much reading has to be faster before anything is done for it */

typedef struct job {
    const uint64_t *data;
    volatile uint64_t sink; /* keeps the sums alive; which of them stays does not matter */
} job;

static void read_part(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    job *j = (job *)arg;
    uint64_t sum[8] = {0};
    for (int64_t i = begin; i + 8 <= end; i += 8)
        for (int k = 0; k < 8; k++) sum[k] += j->data[i + k];
    for (int k = 1; k < 8; k++) sum[0] += sum[k];
    if (thread == 0) j->sink = sum[0];
}

/* Bytes per second of reading a block placed so, the best of some passes; 0 = it cannot be had. */
static double read_rate(const lq_ctx *ctx, const q_placing *how) {
    q_pool *pool;
    double best = 0;
    job j = {(const uint64_t *)q_new_placed(&ctx->alloc, how, TEST_BYTES, true), 0};
    if (!j.data) return 0;
    if (q_pool_open(&ctx->alloc, ctx->threads, &pool) == LQ_OK) {
        for (int i = 0; i < PASSES; i++) {
            const double begin = q_clock();
            q_pool_for(pool, TEST_BYTES / 8, PIECE, read_part, &j);
            best = Q_MAX(best, TEST_BYTES / (q_clock() - begin));
        }
        q_pool_close(pool);
    }
    q_delete(&ctx->alloc, (void *)(uintptr_t)j.data);
    return best;
}

/* Is reading faster with it? Where it is not, or memory is short, nothing is done. */
static bool gains(const lq_ctx *ctx, const q_placing *without, const q_placing *with, char *note, size_t n) {
    if (q_memory_available() / 8 < TEST_BYTES) {
        snprintf(note, n, "too little memory to measure");
        return false;
    }
    const double a = read_rate(ctx, without), b = read_rate(ctx, with);
    snprintf(note, n, "reading %.1f GB/s with, %.1f without", b * 1e-9, a * 1e-9);
    return b > a * GAIN;
}

static lq_status choose_huge(const lq_ctx *ctx, const char *want, q_placing *p, char *note, size_t n) {
    const bool has = q_memory_has_huge("");
    if (want && strcmp(want, "off") == 0) snprintf(note, n, "off");
    else if (!has && want && strcmp(want, "on") == 0)
        return q_fail(LQ_E_UNSUPPORTED, "huge_pages: the system gives none "
                                        "(/sys/kernel/mm/transparent_hugepage/enabled is absent or never)");
    else if (!has) snprintf(note, n, "off: the system gives none");
    else if (!want || strcmp(want, "on") == 0) {
        p->huge = true;
        snprintf(note, n, "on");
    } else if (strcmp(want, "auto") == 0) {
        const q_placing without = {0}, with = {.huge = true};
        char why[80];
        p->huge = gains(ctx, &without, &with, why, sizeof why);
        snprintf(note, n, "%s (%s)", p->huge ? "on" : "off", why);
    } else return q_fail(LQ_E_ARG, "huge_pages '%.40s' is not one of: on, off, auto", want);
    return LQ_OK;
}

static lq_status choose_nodes(const lq_ctx *ctx, const char *want, q_placing *p, char *note, size_t n) {
    const uint64_t nodes = q_memory_nodes("");
    if (!want || strcmp(want, "off") == 0) {
        snprintf(note, n, "off");
        return LQ_OK;
    }
    const bool by_name = strcmp(want, "interleave") == 0;
    if (!by_name && strcmp(want, "auto") != 0)
        return q_fail(LQ_E_ARG, "numa '%.40s' is not one of: off, interleave, auto", want);
    const q_placing with = {.nodes = nodes, .huge = p->huge}, without = {.huge = p->huge};
    if ((nodes & (nodes - 1)) == 0) {
        snprintf(note, n, "off: one node, nothing to interleave");
        return LQ_OK;
    }
    void *block = q_new_placed(&ctx->alloc, &with, 1, false);
    q_delete(&ctx->alloc, block);
    if (!block && by_name) return q_fail(LQ_E_UNSUPPORTED, "numa: %s", lq_error_detail());
    if (!block) snprintf(note, n, "off: the system does not interleave");
    else if (by_name) snprintf(note, n, "interleave");
    else {
        char why[80];
        if (!gains(ctx, &without, &with, why, sizeof why)) block = NULL;
        snprintf(note, n, "%s (%s)", block ? "interleave" : "off", why);
    }
    if (block) p->nodes = nodes;
    return LQ_OK;
}

lq_status q_placing_choose(lq_ctx *ctx, const lq_options *o) {
    char huge[104], numa[104];
    q_placing p = {0};
    Q_TRY(choose_huge(ctx, o->huge_pages, &p, huge, sizeof huge));
    Q_TRY(choose_nodes(ctx, o->numa, &p, numa, sizeof numa));
    p.lock = o->lock != 0;
    ctx->placing = p;
    snprintf(ctx->placed, sizeof ctx->placed, "huge pages %s; NUMA %s%s", huge, numa, p.lock ? "; locked" : "");
    q_log_write(&ctx->log, LQ_LOG_INFO, "memory: %s", ctx->placed);
    return LQ_OK;
}
