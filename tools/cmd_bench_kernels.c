/* cmd_bench_kernels.c: `lq bench kernels`: each CPU kernel by itself, beside what its instructions and the memory
 * allow.
 *
 * Walks the table of kernels; bench/kernels.c and bench/kernel_steps.c time one. Roofs, and what OpenBLAS does with the
 * same shape (bench/openblas.c), are measured when first needed. */
#include "bench_speed.h"

#include <string.h>
#include <strings.h>

#include "../bench/kernels.h"
#include "../bench/openblas.h"
#include "../bench/peak.h"

typedef struct args {
    const char *op, *format, *isa, *csv, *kv;
    uint64_t threads, repeat, columns, depth, context, head, share;
    uint32_t hot;
} args;

static const args defaults = {.threads = 1, .repeat = 15, .depth = 4096, .context = 2048, .kv = "f16", .head = 128,
                              .share = 4};

static const cli_operand operands[] = {{0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "Which kernels (default: every one that this machine can run)"},
    {.type = CLI_TEXT,
     .name = "op",
     .value = "NAME",
     .at = offsetof(args, op),
     .help = "matmul (products), quantize (activation formats), norm, glu, kv_put, attn,\n"
             "sample (choosing a token), ...",
     .also = "|operation|kernel|"},
    {.type = CLI_TEXT,
     .name = "format",
     .value = "NAME",
     .at = offsetof(args, format),
     .help = "format of the weights, such as q4_k: its own kernels, and those for any format on it",
     .also = "|type|weights|"},
    {.type = CLI_TEXT,
     .name = "isa",
     .value = "NAME",
     .at = offsetof(args, isa),
     .help = "kernels of this instruction set alone, such as scalar or avx2",
     .also = "|cpu|arch|simd|"},
    {.type = CLI_GROUP, .name = "On what"},
    {.type = CLI_UINT,
     .name = "columns",
     .value = "N",
     .at = offsetof(args, columns),
     .min = 1,
     .max = 4096,
     .help = "tokens in a pass (default: 1, 4, 8 and 512: decoding, a few, a prompt)",
     .also = "|tokens|batch|n|"},
    {.type = CLI_UINT,
     .name = "depth",
     .value = "N",
     .at = offsetof(args, depth),
     .min = 32,
     .max = 1048576,
     .help = "weights in a row (default 4096); has to fill the blocks of a format",
     .also = "|k|width|"},
    {.type = CLI_UINT,
     .name = "context",
     .value = "N",
     .at = offsetof(args, context),
     .min = 1,
     .max = 131072,
     .help = "keys that attention's last column sees (default 2048); the columns are its last ones",
     .also = "|keys|length|"},
    {.type = CLI_TEXT,
     .name = "kv",
     .value = "FORMAT",
     .at = offsetof(args, kv),
     .help = "how attention's keys and values are kept (default f16)",
     .also = "|cache-type|kv-type|kv-cache|",
     .values = CLI_KV_FORMS},
    {.type = CLI_UINT,
     .name = "head-dim",
     .value = "N",
     .at = offsetof(args, head),
     .min = 32,
     .max = 512,
     .help = "numbers of a head (default 128); 4096 are those of all query heads",
     .also = "|head|head-size|head-width|"},
    {.type = CLI_UINT,
     .name = "share",
     .value = "N",
     .at = offsetof(args, share),
     .min = 1,
     .max = 128,
     .help = "query heads that share a head of keys and values (default 4)",
     .also = "|gqa|group|queries|"},
    {.type = CLI_FLAG,
     .name = "hot",
     .at = offsetof(args, hot),
     .help = "weights that stay in the caches: what the arithmetic alone could consume",
     .also = "|cache|cached|"},
    {.type = CLI_GROUP, .name = "How"},
    {.type = CLI_UINT,
     .letter = 't',
     .name = "threads",
     .value = "N",
     .at = offsetof(args, threads),
     .min = 1,
     .max = CLI_THREADS_MAX,
     .help = "threads for products (default 1); other kernels always run on one",
     .also = "|jobs|cpus|cores|n-threads|"},
    {.type = CLI_UINT,
     .letter = 'r',
     .name = "repeat",
     .value = "N",
     .at = offsetof(args, repeat),
     .min = 1,
     .max = BENCH_SAMPLES,
     .help = "passes of each, of two milliseconds or more (default 15; a slow kernel stops after a second)",
     .also = "|repetitions|runs|passes|"},
    BENCH_OPT_CSV(args),
    {.type = CLI_END}};

enum {
    MOST_ROOFS = 64,
    BLAS_COLUMNS = 24 /* with fewer a product is bound by reading, and float32 is twice the bytes of float16 */
};

typedef struct roof {
    const bench_peak *peak; /* NULL: reading */
    uint32_t threads;
    double per_s;
} roof;

typedef struct state {
    cli *c;
    const args *a;
    lq_device_info device;
    bench_kernels *b;
    FILE *csv;
    json_t *rows; /* with --json */
    cli_progress progress;
    roof roofs[MOST_ROOFS];
    uint32_t n_roofs, done, total, left_out;
    bool begun;
    bench_openblas blas;
    enum { BLAS_NOT_YET, BLAS_OPEN, BLAS_MISSING } blas_is;
    double blas_best; /* operations per second with `blas_columns` */
    int32_t blas_columns;
} state;

/* ---- roofs */

/* What `peak` (NULL: reading memory) does per second with so many threads: the best of its passes; 0 = unknown. */
static double roof_of(state *s, const bench_peak *peak, uint32_t threads) {
    bench_rate r;
    for (uint32_t i = 0; i < s->n_roofs; i++) {
        if (s->roofs[i].peak == peak && s->roofs[i].threads == threads) return s->roofs[i].per_s;
    }
    const bool ok = peak ? bench_peak_rate(peak, threads, 40, &r)
                         : bench_read_rate(threads, bench_roof_buffer(s->device.memory), 40, &r);
    if (s->n_roofs < MOST_ROOFS) s->roofs[s->n_roofs++] = (roof){peak, threads, ok ? bench_rate_max(&r) : 0};
    return ok ? bench_rate_max(&r) : 0;
}

/* ---- one row of the table */

static json_t *fraction(double part, double of) { return of > 0 && part > 0 ? json_real(part / of) : json_null(); }

/* What a row is beside; 0 = nothing to compare with. Operations, bytes and operations per second. */
typedef struct beside {
    double peak, read, blas;
} beside;

static json_t *row_json(const char *kernel, const char *format, const char *isa, const bench_kernel_time *t,
                        uint32_t threads, const beside *of) {
    json_t *o = json_object();
    const double best = bench_rate_max(&t->passes), median = bench_rate_median(&t->passes);
    cli_set_text(o, "kernel", kernel);
    cli_set(o, "format", format ? json_string(format) : json_null());
    cli_set_text(o, "isa", isa);
    cli_set_text(o, "shape", t->shape);
    cli_set_int(o, "threads", threads);
    cli_set_int(o, "runs", t->passes.n);
    cli_set_real(o, "ops_per_s", median * t->ops);
    cli_set_real(o, "best_ops_per_s", best * t->ops);
    cli_set(o, "peak_fraction", fraction(best * t->ops, of->peak));
    cli_set_real(o, "bytes_per_s", median * t->bytes);
    cli_set_real(o, "best_bytes_per_s", best * t->bytes);
    cli_set(o, "read_fraction", fraction(best * t->bytes, of->read));
    cli_set(o, "openblas_ratio", fraction(best * t->ops, of->blas));
    return o;
}

static void print_share(double part, double of) {
    if (of > 0 && part > 0) printf(" %5.0f %%", part / of * 100);
    else printf(" %7s", "");
}

static void print_row(state *s, const char *what, const bench_kernel_time *t, const beside *of) {
    const double best = bench_rate_max(&t->passes), median = bench_rate_median(&t->passes);
    if (!s->begun) {
        printf("%-38s %-26s %9s %9s %7s %9s %7s %8s\n", "kernel", "", "GOP/s", "best", "of peak", "GB/s", "of read",
               "OpenBLAS");
    }
    s->begun = true;
    printf("%-38s %-26s", what, t->shape);
    if (t->ops > 0) printf(" %9.2f %9.2f", median * t->ops * 1e-9, best * t->ops * 1e-9);
    else printf(" %9s %9s", "", "");
    print_share(best * t->ops, of->peak);
    printf(" %9.2f", best * t->bytes * 1e-9);
    print_share(best * t->bytes, of->read);
    if (of->blas > 0) printf(" x %6.2f", best * t->ops / of->blas);
    putchar('\n');
    fflush(stdout);
}

/* What its multiply-adds take. */
static const char *kind_of(const q_cpu_kernel *k) {
    return !k->act || k->act->lanes ? "fp32" : k->act->floats ? "bf16" : "int8";
}

/* A line, an object, a line of the CSV file. `format` NULL: a kernel without weights. */
static void show_row(state *s, const char *kernel, const char *what, const char *format, const char *isa,
                     const bench_kernel_time *t, uint32_t threads, const beside *of) {
    char name[256];
    snprintf(name, sizeof name, "%s; %s", what, t->shape);
    bench_rate unit = t->passes;
    for (uint32_t i = 0; i < unit.n; i++) unit.sample[i] *= t->ops > 0 ? t->ops : t->bytes;
    bench_csv_add(s->csv, "kernels", name, isa, threads, t->ops > 0 ? "GOP/s" : "GB/s", 1e9, &unit);
    if (s->rows) (void)json_array_append_new(s->rows, row_json(kernel, format, isa, t, threads, of));
    else print_row(s, what, t, of);
}

/* The last peak in float32 that the machine has, or that --isa leaves. */
static const bench_peak *float_peak(const state *s) {
    for (int i = Q_ISA_COUNT; i-- > 0;) {
        const bench_peak *p = q_isa_present((q_isa)i) && (!s->a->isa || strcmp(s->a->isa, q_isa_names[i]) == 0)
                                  ? bench_peak_for("fp32", (q_isa)i) : NULL;
        if (p) return p;
    }
    return NULL;
}

/* What OpenBLAS does with this shape in float32, measured and shown once; 0 = nothing. One that took the machine for
 * another has a row that says so, and nothing is compared with it. */
static double blas_of(state *s, const bench_kernel_how *how) {
    q_isas isas;
    char what[128];
    bench_kernel_time t = {0};
    if (s->blas_is == BLAS_NOT_YET) {
        const bool ok = q_isa_choose(s->a->isa, &isas) == LQ_OK &&
                        bench_openblas_open(&s->blas, isas, (uint32_t)s->a->threads) == LQ_OK;
        s->blas_is = ok ? BLAS_OPEN : BLAS_MISSING;
        if (!ok) cli_warn("%s", lq_error_detail());
    }
    if (s->blas_is == BLAS_MISSING) return 0;
    if (s->blas_columns == how->columns) return s->blas_best;
    if (bench_openblas_product(&s->blas, how, s->device.memory, &t) != LQ_OK) return 0;
    const bool wrong = bench_openblas_is_wrong(&s->blas);
    const bench_peak *p = float_peak(s);
    const beside of = {p ? roof_of(s, p, (uint32_t)s->a->threads) : 0, roof_of(s, NULL, (uint32_t)s->a->threads), 0};
    snprintf(what, sizeof what, wrong ? "openblas_sgemm as %.20s, not %s" : "openblas_sgemm as %.20s", s->blas.core,
             s->blas.wanted);
    show_row(s, "openblas_sgemm", what, "f32", s->blas.core, &t, (uint32_t)s->a->threads, &of);
    if (wrong) cli_warn("OpenBLAS runs its kernels for %s; this machine's are %s (OPENBLAS_CORETYPE): no comparison",
                        s->blas.core, s->blas.wanted);
    s->blas_columns = how->columns;
    s->blas_best = wrong ? 0 : bench_rate_max(&t.passes) * t.ops;
    return s->blas_best;
}

static bool beside_blas(const q_cpu_kernel *k, const q_format *f, const bench_kernel_how *how) {
    return k->mm && f->weights == 1 && strcmp(kind_of(k), "int8") != 0 && how->columns >= BLAS_COLUMNS && !how->hot;
}

static void show(state *s, const q_cpu_kernel *k, const q_format *f, const bench_kernel_how *how,
                 const bench_kernel_time *t, uint32_t threads) {
    char what[128];
    const bool any = f && strcmp(k->format, "any") == 0;
    const bench_peak *p = t->ops > 0 ? bench_peak_for(kind_of(k), k->isa) : NULL;
    const beside of = {p ? roof_of(s, p, threads) : 0, k->mm ? roof_of(s, NULL, threads) : 0,
                       beside_blas(k, f, how) ? blas_of(s, how) : 0};
    snprintf(what, sizeof what, "%s%s%s", k->name, any ? " on " : "", any ? f->name : "");
    show_row(s, k->name, what, f ? f->name : NULL, q_isa_names[k->isa], t, threads, &of);
}

/* ---- the table of kernels */

static const char *op_of(const q_cpu_kernel *k) {
    return k->quantize ? "quantize" : k->wide ? "sample" : q_ops[k->op].name;
}

static bool wanted(const args *a, const q_cpu_kernel *k) {
    if (!q_isa_present(k->isa)) return false;
    if (a->op && strcasecmp(a->op, op_of(k)) != 0) return false;
    if (a->isa && strcmp(a->isa, q_isa_names[k->isa]) != 0) return false;
    return !a->format || (k->mm && (strcmp(k->format, "any") == 0 || strcmp(k->format, a->format) == 0));
}

/* The sampler is told by its number in the place of columns. */
static int run_case(state *s, const q_cpu_kernel *k, const q_format *f, const bench_kernel_how *how) {
    bench_kernel_time t = {0};
    const lq_status status = k->mm         ? bench_kernel_product(s->b, k, f, how, &t)
                             : k->wide     ? bench_kernel_sample(k, (uint32_t)how->columns, how, &t)
                             : k->quantize ? bench_kernel_activation(k, how, &t)
                                           : bench_kernel_step(k, how, &t);
    if (status == LQ_E_UNSUPPORTED) {
        cli_warn("%s", lq_error_detail());
        s->left_out++;
        return 0;
    }
    if (status != LQ_OK) return cli_fail(s->c, status, NULL);
    show(s, k, f, how, &t, k->mm ? (uint32_t)s->a->threads : 1);
    return cli_interrupted() ? cli_error(s->c, LQ_E_CANCELLED, "interrupted") : 0;
}

/* One kernel on one format (NULL: it has none) for each number of columns, or each sampler. */
static int run_kernel(state *s, const q_cpu_kernel *k, const q_format *f) {
    static const int32_t usual[] = {1, 4, 8, 512};
    size_t n = s->a->columns || k->quantize ? 1 : CLI_COUNT(usual);
    if (k->wide)
        for (n = 0; bench_kernel_sampler((uint32_t)n);) n++;
    for (size_t i = 0; i < n; i++) {
        const int32_t columns = k->wide ? (int32_t)i : s->a->columns ? (int32_t)s->a->columns : usual[i];
        const bench_kernel_how how = {(int64_t)s->a->depth, columns, (int32_t)s->a->context, (uint32_t)s->a->repeat,
                                      s->a->hot != 0, s->a->kv, (int32_t)s->a->head, (int32_t)s->a->share};
        const int code = run_case(s, k, f, &how);
        if (code != 0) return code;
    }
    if (s->rows) cli_progress_update(&s->progress, ++s->done, s->total, k->name);
    return 0;
}

/* Call fn for every kernel wanted, and each format that it is for. */
static int each(state *s, int (*fn)(state *s, const q_cpu_kernel *k, const q_format *f)) {
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        int code = 0;
        if (!wanted(s->a, k)) continue;
        if (!k->mm) code = fn(s, k, NULL);
        for (uint32_t j = 0; j < q_format_count() && k->mm && code == 0; j++) {
            const q_format *f = q_formats[j];
            if (strcmp(k->format, "any") == 0 ? !s->a->format || strcmp(s->a->format, f->name) == 0
                                              : strcmp(k->format, f->name) == 0) {
                code = fn(s, k, f);
            }
        }
        if (code != 0) return code;
    }
    return 0;
}

static int count(state *s, const q_cpu_kernel *k, const q_format *f) {
    (void)k, (void)f;
    s->total++;
    return 0;
}

static const char *format_name(size_t i) { return q_formats[i]->name; }
static const char *kv_name(size_t i) { return q_kv_kinds[i].format->name; }
static const char *isa_name(size_t i) { return q_isa_names[i]; }

static int check_names(cli *c, const args *a) {
    q_isas isas;
    int named = 0;
    if (a->format && !q_format_find(a->format)) {
        return cli_usage(c, "--format %s: there is no such format; the nearest is %s", a->format,
                         cli_nearest(a->format, format_name, q_format_count()));
    }
    if (!q_kv_kind_find(a->kv))
        return cli_usage(c, "--kv %s: there is no such format; the nearest is %s", a->kv,
                         cli_nearest(a->kv, kv_name, q_kv_kind_count()));
    if (BENCH_KERNEL_VALUES % a->head || BENCH_KERNEL_VALUES / a->head % a->share)
        return cli_usage(c, "--head-dim %llu --share %llu: %d numbers are no whole number of such heads",
                         (unsigned long long)a->head, (unsigned long long)a->share, BENCH_KERNEL_VALUES);
    if (!a->isa) return 0;
    while (named < Q_ISA_COUNT && strcmp(q_isa_names[named], a->isa) != 0) named++;
    if (named == Q_ISA_COUNT) {
        return cli_usage(c, "--isa %s: there is no such instruction set; the nearest is %s", a->isa,
                         cli_nearest(a->isa, isa_name, Q_ISA_COUNT));
    }
    const lq_status status = q_isa_choose(a->isa, &isas);
    return status == LQ_OK ? 0 : cli_fail(c, status, NULL);
}

static int measure(state *s) {
    each(s, count);
    if (s->total == 0) return cli_usage(s->c, "no kernel of this machine is what was asked for");
    const lq_status status = bench_kernels_open((uint32_t)s->a->threads, s->device.memory, &s->b);
    if (status != LQ_OK) return cli_fail(s->c, status, NULL);
    cli_progress_begin(&s->progress, "kernels");
    const int code = each(s, run_kernel);
    cli_progress_clear(&s->progress);
    bench_kernels_close(s->b);
    return code;
}

static int report(state *s) {
    json_t *o = json_object(), *roofs = json_array();
    for (uint32_t i = 0; i < s->n_roofs; i++) {
        const roof *r = &s->roofs[i];
        json_t *one = json_object();
        cli_set_text(one, "kind", r->peak ? r->peak->kind : "read");
        cli_set_text(one, "isa", r->peak ? r->peak->isa : "");
        cli_set_int(one, "threads", r->threads);
        cli_set_real(one, r->peak ? "ops_per_s" : "bytes_per_s", r->per_s);
        (void)json_array_append_new(roofs, one);
    }
    cli_set_text(o, "device", s->device.description);
    cli_set(o, "rows", json_incref(s->rows));
    cli_set(o, "roofs", roofs);
    cli_set_int(o, "left_out", s->left_out);
    json_t *blas = s->blas_is == BLAS_OPEN ? json_object() : json_null();
    if (s->blas_is == BLAS_OPEN) {
        cli_set_text(blas, "core", s->blas.core);
        cli_set(blas, "wanted", s->blas.wanted ? json_string(s->blas.wanted) : json_null());
    }
    cli_set(o, "openblas", blas);
    return cli_json_print(s->c, o, CLI_OK);
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    lq_ctx *ctx;
    state s = {.c = c, .a = a, .device = {.size = sizeof s.device}};
    int code = check_names(c, a);
    if (code == 0) code = cli_open(c, 0, NULL, NULL, &ctx);
    if (code != 0) return code;
    const lq_status status = lq_device_info_get(ctx, 0, &s.device);
    lq_close(ctx);
    if (status != LQ_OK) return cli_fail(c, status, NULL);
    if (c->json && !(s.rows = json_array())) return cli_nomem(c);
    code = bench_csv_open(c, a->csv, &s.device, &s.csv);
    if (code == 0) code = bench_csv_close(c, s.csv, a->csv, measure(&s));
    if (code == 0 && c->json) code = report(&s);
    bench_openblas_close(&s.blas);
    json_decref(s.rows);
    return code;
}

const cli_command cli_command_bench_kernels = {
    .name = "bench kernels",
    .summary = "each CPU kernel by itself, beside what its instructions allow",
    .about = "Times every kernel that this machine can run, those too that a model would not get because a better\n"
             "one hides them. Products multiply weights that lie in memory with 1, 4, 8 and 512 columns: decoding, a\n"
             "few sequences or guesses, a prompt. A multiply-add is two operations.\n\n"
             "of peak   the best pass, beside the best pass of nothing but multiply-adds with the instructions of the\n"
             "          kernel's set (bytes for kernels on 8-bit activations): what a prompt is bound by\n"
             "of read   bytes of weights, beside reading memory with as many threads: what decoding is bound by\n"
             "OpenBLAS  for prompts with weights in floats: how many times as fast as its product of float32 matrices\n"
             "          of the same depth and columns, which has a row of its own; where the library is installed\n\n"
             "\"8 of 64 to q8_0\" are 8 query heads of 64 numbers to one of keys and values in q8_0; the\n"
             "usual shape, 4 of 128 to f16, is not told.\n\n"
             "GB/s of kernels without weights are the values that they read and write; of sampling the logits: 262144\n"
             "of them in 0.3 ms are 3.5 GB/s. On a machine that others use\n"
             "too, best figures come near to the machine and medians do not.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq bench kernels --format q4_k\n"
                "  lq bench kernels --op attn --context 16384 --kv q8_0 --head-dim 64 --share 8\n"
                "  lq bench kernels --isa avx2 --columns 1 --hot\n"
                "  lq bench kernels --csv kernels.csv --threads 2\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
