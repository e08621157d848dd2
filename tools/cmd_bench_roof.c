/* cmd_bench_roof.c: `lq bench roof`: what this machine can do at most: bytes read, threads that wait for one another,
 * multiply-adds per instruction set. */
#include "bench_speed.h"

#include <string.h>

#include "../bench/peak.h"

typedef struct args {
    const char *csv;
    uint64_t threads, repeat, buffer;
} args;

static const args defaults = {.repeat = 40};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_THREADS(args),
    {.type = CLI_UINT,
     .letter = 'r',
     .name = "repeat",
     .value = "N",
     .at = offsetof(args, repeat),
     .min = 1,
     .max = BENCH_SAMPLES,
     .help = "passes of each; the median counts (default 40)",
     .also = "|repetitions|runs|passes|"},
    {.type = CLI_UINT,
     .name = "buffer",
     .value = "MIB",
     .at = offsetof(args, buffer),
     .min = 1,
     .max = 1048576,
     .help = "mebibytes to read (default 512, or a quarter of the free memory): more than the caches hold",
     .also = "|size|memory|"},
    BENCH_OPT_CSV(args),
    {.type = CLI_END}};

static const cli_operand operands[] = {{0}};

typedef struct state {
    cli *c;
    uint32_t threads, passes;
    uint64_t buffer;
    FILE *csv;
    json_t *read, *sync, *peaks; /* with --json */
} state;

static int stopped(cli *c) {
    return cli_interrupted() ? cli_error(c, LQ_E_CANCELLED, "interrupted") : cli_nomem(c);
}

/* Every number of threads up to eight, then the powers of two, then all. */
static uint32_t next_threads(uint32_t n, uint32_t most) {
    const uint32_t more = n < 8 ? n + 1 : n * 2;
    return n < most && more > most ? most : more;
}

static int measure_read(state *s) {
    char what[64];
    snprintf(what, sizeof what, "read %llu MiB", (unsigned long long)(s->buffer >> 20));
    if (!s->c->json) printf("%-14s %7s %10s %10s %10s  GB/s\n", what, "threads", "min", "median", "max");
    for (uint32_t n = 1; n <= s->threads; n = next_threads(n, s->threads)) {
        bench_rate r;
        if (!bench_read_rate(n, s->buffer, s->passes, &r)) return stopped(s->c);
        bench_csv_add(s->csv, "roof", what, "", n, "GB/s", 1e9, &r);
        if (s->c->json) {
            json_t *o = json_object();
            cli_set_int(o, "threads", n);
            cli_set(o, "bytes_per_s", bench_rate_json(&r));
            (void)json_array_append_new(s->read, o);
        } else {
            printf("%-14s %7u %10.2f %10.2f %10.2f\n", "", n, bench_rate_min(&r) * 1e-9, bench_rate_median(&r) * 1e-9,
                   bench_rate_max(&r) * 1e-9);
        }
    }
    return 0;
}

static void add_sync(state *s, const char *what, uint32_t threads, const bench_rate *r) {
    bench_csv_add(s->csv, "roof", what, "", threads, "1/us", 1e6, r);
    if (s->c->json) {
        json_t *o = json_object();
        cli_set_text(o, "what", what);
        cli_set_int(o, "threads", threads);
        cli_set(o, "per_s", bench_rate_json(r));
        (void)json_array_append_new(s->sync, o);
    } else {
        printf("%-14s %7u %10.2f %10.2f %10.2f\n", what, threads, 1e6 / bench_rate_max(r), 1e6 / bench_rate_median(r),
               1e6 / bench_rate_min(r));
    }
}

static int measure_sync(state *s) {
    if (s->threads < 2) return 0;
    if (!s->c->json) printf("\n%-14s %7s %10s %10s %10s  microseconds\n", "waiting", "threads", "min", "median", "max");
    for (uint32_t n = 2; n <= s->threads; n = next_threads(n, s->threads)) {
        bench_rate barriers, runs;
        if (!bench_sync_rate(n, s->passes, &barriers, &runs)) return stopped(s->c);
        add_sync(s, "barrier", n, &barriers);
        add_sync(s, "pool run", n, &runs);
    }
    return 0;
}

static int measure_peak(state *s, const bench_peak *p, uint32_t threads) {
    bench_rate r;
    char what[64];
    if (!bench_peak_rate(p, threads, s->passes, &r)) return stopped(s->c);
    snprintf(what, sizeof what, "peak %s %s", p->kind, p->isa);
    bench_csv_add(s->csv, "roof", what, p->isa, threads, "GOP/s", 1e9, &r);
    if (s->c->json) {
        json_t *o = json_object();
        cli_set_text(o, "kind", p->kind);
        cli_set_text(o, "isa", p->isa);
        cli_set_text(o, "instructions", p->how);
        cli_set_int(o, "threads", threads);
        cli_set(o, "ops_per_s", bench_rate_json(&r));
        (void)json_array_append_new(s->peaks, o);
    } else {
        char name[32];
        snprintf(name, sizeof name, "%s %s", p->kind, p->isa);
        printf("%-16s %5u %10.1f %10.1f %10.1f  %s\n", name, threads, bench_rate_min(&r) * 1e-9,
               bench_rate_median(&r) * 1e-9, bench_rate_max(&r) * 1e-9, p->how);
    }
    return 0;
}

static int measure(state *s) {
    const bench_peak *p;
    int code = measure_read(s);
    if (code == 0) code = measure_sync(s);
    if (code != 0) return code;
    if (!s->c->json) {
        printf("\n%-14s %7s %10s %10s %10s  GOP/s (a multiply-add is two)\n", "peak", "threads", "min", "median",
               "max");
    }
    for (size_t i = 0; (p = bench_peak_at(i)); i++) {
        if (!p->present()) continue;
        if ((code = measure_peak(s, p, 1)) != 0) return code;
        if (s->threads > 1 && (code = measure_peak(s, p, s->threads)) != 0) return code;
    }
    return 0;
}

static int report(state *s, const lq_device_info *d) {
    json_t *o = json_object();
    cli_set_text(o, "device", d->description);
    cli_set_int(o, "threads", s->threads);
    cli_set_int(o, "buffer_bytes", s->buffer);
    cli_set(o, "read", json_incref(s->read));
    cli_set(o, "sync", json_incref(s->sync));
    cli_set(o, "peaks", json_incref(s->peaks));
    return cli_json_print(s->c, o, CLI_OK);
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    lq_ctx *ctx;
    lq_device_info d = {.size = sizeof d};
    int code = cli_open(c, a->threads, NULL, NULL, &ctx);
    if (code != 0) return code;
    const lq_status status = lq_device_info_get(ctx, 0, &d);
    lq_close(ctx);
    if (status != LQ_OK) return cli_fail(c, status, NULL);
    state s = {.c = c, .threads = a->threads ? (uint32_t)a->threads : d.threads, .passes = (uint32_t)a->repeat,
               .buffer = a->buffer ? a->buffer << 20 : bench_roof_buffer(d.memory)};
    if ((code = bench_csv_open(c, a->csv, &d, &s.csv)) != 0) return code;
    s.read = json_array(), s.sync = json_array(), s.peaks = json_array();
    if (!s.read || !s.sync || !s.peaks) code = cli_nomem(c);
    if (code == 0) code = measure(&s);
    code = bench_csv_close(c, s.csv, a->csv, code);
    if (code == 0 && c->json) code = report(&s, &d);
    json_decref(s.read);
    json_decref(s.sync);
    json_decref(s.peaks);
    return code;
}

const cli_command cli_command_bench_roof = {
    .name = "bench roof",
    .summary = "what this machine can do at most: bytes read, multiply-adds",
    .about = "Reading: each thread sums its part of a buffer that the caches cannot hold. Writing a token reads all\n"
             "weights once, so a model of B bytes makes at most (rate / B) tokens per second.\n\n"
             "Waiting: what a point costs at which all threads wait for one another (a layer has five of them when a\n"
             "token is written), and a run of the thread pool that does nothing. Its rows in a CSV file are rates,\n"
             "per microsecond.\n\n"
             "Peaks: loops of nothing but multiply-adds on registers, for each instruction set present; fp32 are\n"
             "floats, int8 bytes summed in 32 bits, bf16 pairs summed in floats. Reading a prompt is bound by\n"
             "them: a kernel at 100 % of the peak of its instruction set has nothing left to gain but by other\n"
             "instructions. Other programs on the machine lower all figures: the maximum is nearest to the\n"
             "machine, the median to what a program will see.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq bench roof\n"
                "  lq bench roof --threads 1 --repeat 100\n"
                "  lq bench roof --csv this-machine.csv\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
