/* bench_speed.c: timed prefill and decode on one model.
 *
 * Wall clock around lq_decode. Prefill and decode are measured apart, each from an empty sequence, so that neither
 * depends on the other's length; the median keeps one disturbed run from counting. */
#include "bench_speed.h"

#include <stdlib.h>

enum { MAX_REPEAT = 100 };

typedef struct sample {
    double per_s, bytes_per_s;
} sample;

static int by_rate(const void *a, const void *b) {
    const double x = ((const sample *)a)->per_s, y = ((const sample *)b)->per_s;
    return (x > y) - (x < y);
}

static lq_status time_prefill(lq_session *session, const int32_t *ids, uint32_t n, sample *out) {
    lq_status s = lq_seq_truncate(session, 0);
    const double begin = cli_clock();
    if (s == LQ_OK) s = lq_decode(session, ids, n, n - 1);
    out->per_s = n / (cli_clock() - begin);
    out->bytes_per_s = 0;
    return s;
}

static lq_status time_decode(lq_session *session, const int32_t *ids, uint32_t n, sample *out) {
    lq_stats before = {.size = sizeof before}, after = {.size = sizeof after};
    lq_status s = lq_seq_truncate(session, 0);
    if (s == LQ_OK) s = lq_session_stats(session, &before);
    const double begin = cli_clock();
    for (uint32_t i = 0; i < n && s == LQ_OK; i++) {
        s = cli_interrupted() ? LQ_E_CANCELLED : lq_decode(session, ids + i, 1, 0);
    }
    const double seconds = cli_clock() - begin;
    if (s == LQ_OK) s = lq_session_stats(session, &after);
    out->per_s = n / seconds;
    out->bytes_per_s = (double)(after.decode_bytes - before.decode_bytes) / seconds;
    return s;
}

static lq_status repeat_runs(lq_session *session, const int32_t *ids, uint32_t repeat, bench_speed *out) {
    sample prefill[MAX_REPEAT], decode[MAX_REPEAT], warm;
    const uint32_t short_run = out->decode_tokens < 4 ? out->decode_tokens : 4;
    lq_status s = time_prefill(session, ids, out->prefill_tokens < 32 ? out->prefill_tokens : 32, &warm);
    if (s == LQ_OK) s = time_decode(session, ids, short_run, &warm);
    for (uint32_t i = 0; i < repeat && s == LQ_OK; i++) s = time_prefill(session, ids, out->prefill_tokens, &prefill[i]);
    for (uint32_t i = 0; i < repeat && s == LQ_OK; i++) s = time_decode(session, ids, out->decode_tokens, &decode[i]);
    if (s != LQ_OK) return s;
    qsort(prefill, repeat, sizeof *prefill, by_rate);
    qsort(decode, repeat, sizeof *decode, by_rate);
    out->prefill_per_s = prefill[repeat / 2].per_s;
    out->decode_per_s = decode[repeat / 2].per_s;
    out->decode_bytes_per_s = decode[repeat / 2].bytes_per_s;
    return s;
}

int bench_speed_run(cli *c, lq_model *model, uint32_t prefill, uint32_t decode, uint32_t threads, uint32_t repeat,
                    bench_speed *out) {
    lq_model_info info = {.size = sizeof info};
    lq_session *session;
    lq_status s = lq_model_info_get(model, &info);
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    out->prefill_tokens = prefill < info.context ? prefill : info.context;
    out->decode_tokens = decode < info.context ? decode : info.context;
    const uint32_t n = out->prefill_tokens > out->decode_tokens ? out->prefill_tokens : out->decode_tokens;
    const lq_session_options so = {.size = sizeof so, .context = n, .threads = threads};
    int32_t *ids = malloc(n * sizeof *ids);
    if (!ids) return cli_nomem(c);
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)((uint64_t)i * 7919 % info.vocabulary);
    int code = cli_session(c, model, &so, &session);
    if (code == 0) {
        cli_watch(&session, 1);
        s = repeat_runs(session, ids, repeat < MAX_REPEAT ? repeat : MAX_REPEAT, out);
        cli_unwatch();
        if (s != LQ_OK) code = cli_fail(c, s, NULL);
        lq_session_close(session);
    }
    free(ids);
    return code;
}
