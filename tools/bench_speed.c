/* bench_speed.c: timed prefill and decode on one model, or on two that take turns.
 *
 * Wall clock, and processor time, around lq_decode. Prefill and decode are measured apart, so that neither depends on
 * the other's length; the median keeps one disturbed run from counting. */
#include "bench_speed.h"

#include <stdlib.h>
#include <time.h>

/* Seconds on the wall and on the processors. */
typedef struct spent {
    double wall, cpu;
} spent;

typedef struct bench {
    const bench_speed_options *o;
    lq_session *sessions[BENCH_MODELS];
    size_t n;
    int32_t *ids;
    double bytes[BENCH_MODELS]; /* per decoded token */
    uint32_t threads, threads_prefill; /* of a session */
    spent prefill[BENCH_MODELS], decode[BENCH_MODELS]; /* sums of all runs: of all threads */
} bench;

static double cpu_clock(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

/* Keep a run that began at `begin` as a rate by the wall and by the processors. */
static void keep(bench_rate *out, bench_rate *out_cpu, spent *sum, uint32_t tokens, uint32_t threads,
                 const spent *begin) {
    const double wall = cli_clock() - begin->wall, cpu = cpu_clock() - begin->cpu;
    bench_rate_add(out, tokens / wall);
    bench_rate_add(out_cpu, tokens * threads / cpu);
    sum->wall += wall * threads;
    sum->cpu += cpu;
}

static lq_status time_prefill(bench *b, size_t i, uint32_t tokens, bench_speed *out) {
    lq_status s = lq_seq_truncate(b->sessions[i], 0, 0);
    const spent begin = {cli_clock(), cpu_clock()};
    const lq_item prompt = {.ids = b->ids, .count = tokens, .logits_from = tokens - 1};
    if (s == LQ_OK) s = lq_decode(b->sessions[i], &prompt, 1);
    if (s == LQ_OK && out) keep(&out->prefill, &out->prefill_cpu, &b->prefill[i], tokens, b->threads_prefill, &begin);
    return s;
}

/* Sequences of a session. */
enum { DEEP, START }; /* `context` tokens before a decode; none */

/* Tokens before a decode: filled once, then the sequence is cut back to them. */
static lq_status fill(const bench *b, size_t i) {
    lq_status s = lq_seq_truncate(b->sessions[i], DEEP, 0);
    const lq_item before = {.ids = b->ids, .count = b->o->context, .logits_from = b->o->context};
    if (s == LQ_OK && b->o->context) s = lq_decode(b->sessions[i], &before, 1);
    return s;
}

/* Tokens one by one behind what a sequence has. */
static lq_status decode(const bench *b, size_t i, uint32_t sequence, uint32_t tokens) {
    lq_status s = LQ_OK;
    for (uint32_t k = 0; k < tokens && s == LQ_OK; k++) {
        const lq_item item = {.sequence = sequence, .ids = b->ids + k, .count = 1};
        s = cli_interrupted() ? LQ_E_CANCELLED : lq_decode(b->sessions[i], &item, 1);
    }
    return s;
}

/* From `context` tokens on. */
static lq_status time_decode(bench *b, size_t i, uint32_t tokens, bench_speed *out) {
    lq_session *session = b->sessions[i];
    lq_stats before = {.size = sizeof before}, after = {.size = sizeof after};
    lq_status s = lq_seq_truncate(session, DEEP, b->o->context);
    if (s == LQ_OK) s = lq_session_stats(session, &before);
    const spent begin = {cli_clock(), cpu_clock()};
    if (s == LQ_OK) s = decode(b, i, DEEP, tokens);
    if (s == LQ_OK && out) keep(&out->decode, &out->decode_cpu, &b->decode[i], tokens, b->threads, &begin);
    if (s == LQ_OK) s = lq_session_stats(session, &after);
    b->bytes[i] = (double)(after.decode_bytes - before.decode_bytes) / tokens;
    return s;
}

/* From the start, before it. */
static lq_status time_start(bench *b, size_t i, uint32_t tokens, bench_speed *out) {
    if (b->o->context == 0) return LQ_OK;
    lq_status s = lq_seq_truncate(b->sessions[i], START, 0);
    const double begin = cli_clock();
    if (s == LQ_OK) s = decode(b, i, START, tokens);
    if (s == LQ_OK) bench_rate_add(&out->start, tokens / (cli_clock() - begin));
    return s;
}

static lq_status repeat_runs(bench *b, bench_speed *out) {
    lq_status s = LQ_OK;
    for (size_t i = 0; i < b->n && s == LQ_OK; i++) { /* warm-up */
        s = time_prefill(b, i, out[i].prefill_tokens < 32 ? out[i].prefill_tokens : 32, NULL);
    }
    for (uint32_t r = 0; r < b->o->repeat; r++) {
        for (size_t i = 0; i < b->n && s == LQ_OK; i++) s = time_prefill(b, i, out[i].prefill_tokens, &out[i]);
    }
    for (size_t i = 0; i < b->n && s == LQ_OK; i++) {
        s = fill(b, i);
        if (s == LQ_OK) s = time_decode(b, i, out[i].decode_tokens < 4 ? out[i].decode_tokens : 4, NULL);
    }
    for (uint32_t r = 0; r < b->o->repeat; r++) {
        for (size_t i = 0; i < b->n && s == LQ_OK; i++) {
            s = time_start(b, i, out[i].decode_tokens, &out[i]);
            if (s == LQ_OK) s = time_decode(b, i, out[i].decode_tokens, &out[i]);
        }
    }
    for (size_t i = 0; i < b->n && s == LQ_OK; i++) {
        out[i].prefill_share = b->prefill[i].cpu / b->prefill[i].wall;
        out[i].decode_share = b->decode[i].cpu / b->decode[i].wall;
        out[i].prefill_per_s = bench_rate_median(&out[i].prefill);
        out[i].decode_per_s = bench_rate_median(&out[i].decode);
        out[i].decode_bytes_per_s = out[i].decode_per_s * b->bytes[i];
        out[i].stats.size = sizeof out[i].stats;
        s = lq_session_stats(b->sessions[i], &out[i].stats);
    }
    return s;
}

/* Sessions of one length for all models. */
static int open_sessions(cli *c, bench *b, lq_model *const *models, size_t n, bench_speed *out) {
    const bench_speed_options *o = b->o;
    lq_model_info info = {.size = sizeof info};
    const lq_status s = lq_model_info_get(models[0], &info);
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    const uint32_t longest = o->rope.type ? 1u << 28 : info.longest_context; /* then lq_session_open says what is */
    const uint32_t left = longest > o->context ? longest - o->context : 0;
    if (left == 0)
        return cli_usage(c, "the model was trained with a context of %u tokens; see --rope-scaling", longest);
    const uint32_t prefill = o->prefill < longest ? o->prefill : longest,
                   decode = o->decode < left ? o->decode : left;
    const uint32_t most = prefill > o->context + decode ? prefill : o->context + decode;
    b->ids = malloc(most * sizeof *b->ids);
    if (!b->ids) return cli_nomem(c);
    for (uint32_t i = 0; i < most; i++) b->ids[i] = (int32_t)((uint64_t)i * 7919 % info.vocabulary);
    for (size_t i = 0; i < n; i++) {
        lq_session_options so = {.size = sizeof so, .context = most, .no_reuse = 1, .threads = o->threads,
                                       .threads_prefill = o->threads_prefill};
        if (o->context) { /* one from the start, too */
            so.sequences = 2;
            so.kv_tokens = (uint64_t)most + decode + 64; /* of each, a page may be filled in part */
        }
        cli_kv_set(&o->kv[i], &so);
        cli_rope_set(&o->rope, &so);
        out[i] = (bench_speed){.prefill_tokens = prefill, .decode_tokens = decode};
        const lq_status planned = cli_plan(models[i], &so, true, &out[i].plan);
        if (planned != LQ_OK) return cli_fail(c, planned, NULL);
        const int code = cli_session(c, models[i], &so, &b->sessions[i]);
        if (code != 0) return code;
        b->n++;
        lq_session_info session = {.size = sizeof session};
        const lq_status asked = lq_session_info_get(b->sessions[i], &session);
        if (asked != LQ_OK) return cli_fail(c, asked, NULL);
        b->threads = session.threads;
        b->threads_prefill = prefill > 8 ? session.threads_prefill : session.threads; /* as libquant.h says */
    }
    return 0;
}

int bench_speed_run(cli *c, lq_model *const *models, size_t n, const bench_speed_options *o, bench_speed *out) {
    bench b = {.o = o};
    int code = open_sessions(c, &b, models, n < BENCH_MODELS ? n : BENCH_MODELS, out);
    if (code == 0) {
        cli_watch(b.sessions, b.n);
        const lq_status s = repeat_runs(&b, out);
        cli_unwatch();
        if (s != LQ_OK) code = cli_fail(c, s, NULL);
    }
    for (size_t i = 0; i < b.n; i++) lq_session_close(b.sessions[i]);
    free(b.ids);
    return code;
}
