/* cmd_bench_model.c: `lq bench model`: the speed of one model, beside what the memory of this machine allows, or of two
 * instruction sets, or formats of keys and values, that take turns on it. */
#include "bench_speed.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
    cli_place place;
    cli_memory memory;
    cli_kv kv;
    cli_rope rope;
    const char *model, *isa, *versus, *versus_kv, *csv;
    uint64_t prefill, decode, context, threads, threads_prefill, repeat;
} args;

static const args defaults = {.place = CLI_PLACE, .prefill = 512, .decode = 128, .repeat = 3};

static const cli_operand operands[] = {{"MODEL", offsetof(args, model), 0, "a GGUF file or a Hugging Face folder"},
                                       {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "What to measure"},
    {.type = CLI_UINT,
     .letter = 'p',
     .name = "prefill",
     .value = "N",
     .at = offsetof(args, prefill),
     .min = 2,
     .max = 1048576,
     .help = "tokens of the prompt (default 512; at most the trained context)",
     .also = "|prompt|n-prompt|"},
    {.type = CLI_UINT,
     .letter = 'n',
     .name = "decode",
     .value = "N",
     .at = offsetof(args, decode),
     .min = 1,
     .max = 1048576,
     .help = "tokens made one by one (default 128; at most the trained context)",
     .also = "|tokens|n-gen|generate|"},
    {.type = CLI_UINT,
     .name = "context",
     .value = "N",
     .at = offsetof(args, context),
     .min = 0,
     .max = 1 << 28,
     .help = "tokens already in the sequence when decoding begins (default 0), and decoding from 0 in turn",
     .also = "|depth|ctx|past|"},
    {.type = CLI_UINT,
     .letter = 'r',
     .name = "repeat",
     .value = "N",
     .at = offsetof(args, repeat),
     .min = 1,
     .max = BENCH_SAMPLES,
     .help = "runs of each; the median counts (default 3)",
     .also = "|repetitions|runs|"},
    {.type = CLI_TEXT,
     .name = "versus-isa",
     .value = "NAME",
     .at = offsetof(args, versus),
     .help = "measure this instruction set too, run by run in turn with --isa, and print the ratio",
     .also = "|versus|against|compare|"},
    {.type = CLI_TEXT,
     .name = "versus-kv",
     .value = "FORMAT",
     .at = offsetof(args, versus_kv),
     .help = "measure with keys and values in this format too, run by run in turn with --kv",
     .also = "|compare-kv|",
     .values = CLI_KV_FORMS},
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_DEVICE(args),
    CLI_OPT_GPU_LAYERS(args),
    CLI_OPT_NO_PACK(args),
    CLI_OPT_LOAD_AS(args),
    CLI_OPT_RUN_LORA(args),
    CLI_OPT_KV(args),
    CLI_OPT_ROPE(args),
    CLI_OPT_THREADS(args),
    CLI_OPT_THREADS_PREFILL(args),
    CLI_OPT_MEMORY(args),
    CLI_OPT_ISA(args),
    BENCH_OPT_CSV(args),
    {.type = CLI_END}};

typedef struct roof {
    double bytes_per_s;
    uint64_t buffer;
    uint32_t threads;
} roof;

/* What is measured: [0] as --isa and --kv say, [1] what it is compared with. */
typedef struct side {
    lq_ctx *ctx;
    lq_model *model;
    lq_device_info device; /* the processor, or --device */
    bench_speed speed;
} side;

typedef struct state {
    const args *a;
    side sides[BENCH_MODELS];
    size_t n;
    lq_model_info model;
    roof roof;
    FILE *csv;
} state;

static bool on_device(const side *x) { return x->speed.plan.device[0] != 0; }

static void set_speed(json_t *o, const bench_speed *b, const state *s) {
    json_t *prefill = json_object(), *decode = json_object();
    cli_set_int(prefill, "tokens", b->prefill_tokens);
    cli_set_real(prefill, "tokens_per_s", b->prefill_per_s);
    cli_set_real(prefill, "min", bench_rate_min(&b->prefill));
    cli_set_real(prefill, "max", bench_rate_max(&b->prefill));
    cli_set_real(prefill, "cpu_share", b->prefill_share);
    cli_set_real(prefill, "tokens_per_cpu_s", bench_rate_median(&b->prefill_cpu));
    cli_set(o, "prefill", prefill);
    cli_set_int(decode, "tokens", b->decode_tokens);
    cli_set_int(decode, "context", s->a->context);
    cli_set_real(decode, "tokens_per_s", b->decode_per_s);
    cli_set_real(decode, "min", bench_rate_min(&b->decode));
    cli_set_real(decode, "max", bench_rate_max(&b->decode));
    cli_set_real(decode, "cpu_share", b->decode_share);
    cli_set_real(decode, "tokens_per_cpu_s", bench_rate_median(&b->decode_cpu));
    cli_set_real(decode, "bytes_per_s", b->decode_bytes_per_s);
    cli_set_real(decode, "barriers_per_token",
                 b->stats.decode_tokens ? (double)b->stats.decode_barriers / (double)b->stats.decode_tokens : 0);
    cli_set(decode, "roof_fraction",
            s->roof.bytes_per_s > 0 ? json_real(b->decode_bytes_per_s / s->roof.bytes_per_s) : json_null());
    if (b->start.n) {
        const bench_rate of_start = bench_rate_ratio(&b->start, &b->decode);
        cli_set_real(decode, "start_tokens_per_s", bench_rate_median(&b->start));
        cli_set(decode, "of_start", bench_rate_json(&of_start));
    }
    cli_set(o, "decode", decode);
}

static int print_json(cli *c, const state *s) {
    json_t *o = json_object(), *top = json_object();
    cli_set_text(o, "model", s->a->model);
    cli_set_text(o, "scheme", s->model.file_scheme);
    cli_set_int(o, "weight_bytes", s->model.weight_bytes);
    cli_set_int(o, "bytes_per_token", s->model.bytes_per_token);
    cli_set_real(o, "bits_per_weight", s->model.bits_per_weight);
    cli_set_int(o, "threads", s->roof.threads);
    cli_set_int(o, "threads_prefill", s->sides[0].speed.plan.threads_prefill);
    cli_set_text(o, "isa", s->sides[0].device.isa);
    cli_set_text(o, "kv_k", s->sides[0].speed.plan.kv_k);
    cli_set_text(o, "kv_v", s->sides[0].speed.plan.kv_v);
    cli_set_int(o, "repeat", s->a->repeat);
    set_speed(o, &s->sides[0].speed, s);
    if (on_device(&s->sides[0])) cli_set(o, "device", cli_plan_json(&s->sides[0].speed.plan));
    cli_border_json(o, &s->sides[0].speed.stats);
    cli_set_real(top, "bytes_per_s", s->roof.bytes_per_s);
    cli_set_int(top, "buffer_bytes", s->roof.buffer);
    cli_set(o, "roof", top);
    if (s->n > 1) {
        const bench_speed *a = &s->sides[0].speed, *b = &s->sides[1].speed;
        const bench_rate prefill = bench_rate_ratio(&a->prefill, &b->prefill);
        const bench_rate decode = bench_rate_ratio(&a->decode, &b->decode);
        json_t *versus = json_object();
        cli_set_text(versus, "isa", s->sides[1].device.isa);
        cli_set_text(versus, "kv_k", b->plan.kv_k);
        cli_set_text(versus, "kv_v", b->plan.kv_v);
        set_speed(versus, b, s);
        cli_set(versus, "prefill_ratio", bench_rate_json(&prefill));
        cli_set(versus, "decode_ratio", bench_rate_json(&decode));
        cli_set(o, "versus", versus);
    }
    return cli_json_print(c, o, CLI_OK);
}

static void print_range(const bench_rate *r) {
    if (r->n > 1) printf(", %.1f to %.1f in %u runs", bench_rate_min(r), bench_rate_max(r), r->n);
}

/* How busy the processors were says little of a run that they only wait for. */
static void print_share(const side *x, double share) {
    if (!on_device(x)) printf(", %.0f %% of the CPUs", share * 100);
}

static void print_speed(const state *s, const side *x) {
    const bench_speed *b = &x->speed;
    printf("with      ");
    if (on_device(x)) printf("%s: %s, %s", x->device.name, cli_safe(x->device.description).s, x->device.isa);
    if (on_device(x) && !b->plan.device_embedding) printf("; and ");
    if (!b->plan.device_embedding) printf("%u thread%s", s->roof.threads, s->roof.threads == 1 ? "" : "s");
    if (!b->plan.device_embedding && b->plan.threads_prefill != s->roof.threads)
        printf(" (prefill %u)", b->plan.threads_prefill);
    if (!on_device(x)) printf(", %s", x->device.isa);
    printf(", keys and values in %s", cli_kv_text(&b->plan).s);
    printf("\nprefill   %10.1f tokens/s  (%u tokens", b->prefill_per_s, b->prefill_tokens);
    print_range(&b->prefill);
    putchar(')');
    print_share(x, b->prefill_share);
    printf("\ndecode    %10.1f tokens/s  (%u tokens", b->decode_per_s, b->decode_tokens);
    if (s->a->context) printf(" after %llu", (unsigned long long)s->a->context);
    print_range(&b->decode);
    putchar(')');
    print_share(x, b->decode_share);
    printf(", %.2f GB/s", b->decode_bytes_per_s * 1e-9);
    if (s->roof.bytes_per_s > 0) printf(", %.0f %% of the roof", b->decode_bytes_per_s / s->roof.bytes_per_s * 100);
    putchar('\n');
    if (b->start.n) {
        const bench_rate r = bench_rate_ratio(&b->start, &b->decode);
        printf("start     %10.1f tokens/s  (%u tokens of an empty sequence): decode is %.3f of it (%.3f to %.3f in %u "
               "pairs)\n",
               bench_rate_median(&b->start), b->decode_tokens, bench_rate_median(&r), bench_rate_min(&r),
               bench_rate_max(&r), r.n);
    }
}

static void print_ratio(const char *what, const bench_rate *a, const bench_rate *b) {
    const bench_rate r = bench_rate_ratio(a, b);
    printf("%-9s %10.3f times   (%.3f to %.3f in %u pairs)\n", what, bench_rate_median(&r), bench_rate_min(&r),
           bench_rate_max(&r), r.n);
}

static void print_table(const state *s) {
    const lq_model_info *m = &s->model;
    printf("model     %s: %s%s%s, %.3f bits per weight\n", cli_safe(s->a->model).s, cli_bytes(m->weight_bytes).s,
           m->file_scheme[0] ? ", " : "", cli_safe(m->file_scheme).s, m->bits_per_weight);
    for (size_t i = 0; i < s->n; i++) print_speed(s, &s->sides[i]);
    if (s->n > 1) {
        const side *a = &s->sides[0], *b = &s->sides[1];
        if (s->a->versus) printf("%s, beside %s\n", b->device.isa, a->device.isa);
        else printf("keys and values in %s, beside %s\n", cli_kv_text(&b->speed.plan).s, cli_kv_text(&a->speed.plan).s);
        print_ratio("prefill", &a->speed.prefill, &b->speed.prefill);
        print_ratio("decode", &a->speed.decode, &b->speed.decode);
    }
    if (s->roof.bytes_per_s > 0) {
        printf("roof      %10.2f GB/s      (reading %s)\n", s->roof.bytes_per_s * 1e-9, cli_bytes(s->roof.buffer).s);
    }
}

static void add_row(const state *s, const side *x, uint32_t threads, const char *name, const bench_rate *wall,
                    const bench_rate *cpu) {
    bench_csv_add(s->csv, "model", name, x->device.isa, threads, "tokens/s", 1, wall);
    if (!on_device(x)) bench_csv_add(s->csv, "model", name, x->device.isa, threads, "tokens/cpu-s", 1, cpu);
}

/* A row is named by what the file says of itself, so that copies of it compare; by the instruction set or the device
 * only where one was asked for, so that builds with other kernels compare. */
static void add_csv(const state *s, const side *x, const char *isa) {
    char name[512], depth[48] = "", where[128] = "", kv[96] = "";
    const lq_plan_info *p = &x->speed.plan;
    const char *base = strrchr(s->a->model, '/');
    base = s->model.name[0] ? s->model.name : base && base[1] ? base + 1 : s->a->model;
    if (s->a->context) snprintf(depth, sizeof depth, " after %llu", (unsigned long long)s->a->context);
    if (p->device[0]) snprintf(where, sizeof where, "; %s %u of %u layers", p->device, p->device_layers, p->layers);
    else if (isa) snprintf(where, sizeof where, "; %.100s", isa);
    if (s->a->kv.both || s->a->kv.v || s->a->versus_kv) snprintf(kv, sizeof kv, "; kv %.80s", cli_kv_text(p).s);
    snprintf(name, sizeof name, "%.100s %s; prefill %u%s%s", base, s->model.file_scheme, x->speed.prefill_tokens, where,
             kv);
    add_row(s, x, p->threads_prefill, name, &x->speed.prefill, &x->speed.prefill_cpu);
    snprintf(name, sizeof name, "%.100s %s; decode %u%s%s%s", base, s->model.file_scheme, x->speed.decode_tokens, depth,
             where, kv);
    add_row(s, x, s->roof.threads, name, &x->speed.decode, &x->speed.decode_cpu);
    if (x->speed.start.n == 0) return;
    snprintf(name, sizeof name, "%.100s %s; decode %u%s%s", base, s->model.file_scheme, x->speed.decode_tokens, where,
             kv);
    bench_csv_add(s->csv, "model", name, x->device.isa, s->roof.threads, "tokens/s", 1, &x->speed.start);
}

/* What the device of this name says of itself; the processor for "". */
static lq_status describe(const lq_ctx *ctx, const char *name, lq_device_info *out) {
    lq_status s = lq_device_info_get(ctx, 0, out);
    for (uint32_t i = 1; name[0] && i < lq_device_count(ctx) && s == LQ_OK; i++) {
        lq_device_info d = {.size = sizeof d};
        if (lq_device_info_get(ctx, i, &d) == LQ_OK && strcmp(d.name, name) == 0) *out = d;
    }
    return s;
}

static int open_side(cli *c, state *s, const char *isa) {
    side *x = &s->sides[s->n];
    int code = cli_open(c, s->a->threads, isa, &s->a->memory, &x->ctx);
    if (code != 0) return code;
    s->n++;
    x->device.size = sizeof x->device;
    cli_place place = s->a->place;
    place.pack_at_open = 1; /* what is measured is what lasts */
    code = cli_model(c, x->ctx, s->a->model, &place, NULL, &x->model);
    if (code != 0) return code;
    lq_plan_info plan;
    lq_status status = lq_model_info_get(x->model, &s->model);
    if (status == LQ_OK) status = cli_plan(x->model, NULL, true, &plan);
    if (status == LQ_OK) status = describe(x->ctx, plan.device, &x->device);
    return status == LQ_OK ? 0 : cli_fail(c, status, NULL);
}

static int measure(cli *c, state *s) {
    const args *a = s->a;
    const bench_speed_options o = {(uint32_t)a->prefill, (uint32_t)a->decode,          (uint32_t)a->context,
                                   (uint32_t)a->threads, (uint32_t)a->threads_prefill, (uint32_t)a->repeat,
                                   {a->kv, {a->versus_kv ? a->versus_kv : a->kv.both, a->versus_kv ? NULL : a->kv.v}},
                                   a->rope};
    lq_model *models[BENCH_MODELS] = {0};
    bench_speed speeds[BENCH_MODELS] = {0};
    const uint32_t longest = s->model.longest_context;
    if (!a->rope.type && (a->prefill > longest || a->context + a->decode > longest)) {
        fprintf(stderr, "note: the model was trained with a context of %u tokens; longer runs are cut to that\n",
                longest);
    }
    for (size_t i = 0; i < s->n; i++) models[i] = s->sides[i].model;
    const int code = bench_speed_run(c, models, s->n, &o, speeds);
    if (code != 0) return code;
    for (size_t i = 0; i < s->n; i++) s->sides[i].speed = speeds[i];
    s->roof.threads = speeds[0].plan.threads;
    /* How fast the processor reads its memory is no roof of another device. */
    if (!on_device(&s->sides[0]))
        s->roof.bytes_per_s = bench_roof(s->roof.threads, s->sides[0].device.memory, &s->roof.buffer);
    if (cli_interrupted()) return cli_error(c, LQ_E_CANCELLED, "interrupted");
    add_csv(s, &s->sides[0], a->isa);
    if (s->n > 1) add_csv(s, &s->sides[1], a->versus);
    return 0;
}

static int run(cli *c, const void *arguments) {
    state s = {.a = arguments, .model = {.size = sizeof s.model}};
    int code = 0;
    if (s.a->versus && s.a->place.device) {
        return cli_usage(c, "--versus-isa compares instruction sets of the processor; --device has no place there");
    }
    if (s.a->versus && s.a->versus_kv) return cli_usage(c, "--versus-isa and --versus-kv: one comparison at a time");
    code = open_side(c, &s, s.a->isa);
    if (code == 0 && s.a->versus) code = open_side(c, &s, s.a->versus);
    if (code == 0 && s.a->versus_kv) code = open_side(c, &s, s.a->isa);
    lq_device_info machine = {.size = sizeof machine};
    if (code == 0 && lq_device_info_get(s.sides[0].ctx, 0, &machine) == LQ_OK)
        code = bench_csv_open(c, s.a->csv, &machine, &s.csv);
    if (code == 0) code = bench_csv_close(c, s.csv, s.a->csv, measure(c, &s));
    for (size_t i = 0; i < s.n; i++) {
        lq_model_close(s.sides[i].model);
        lq_close(s.sides[i].ctx);
    }
    if (code != 0) return code;
    if (c->json) return print_json(c, &s);
    cli_plan_print(stderr, &s.sides[0].speed.plan);
    cli_border_print(&s.sides[0].speed.stats);
    print_table(&s);
    return 0;
}

const cli_command cli_command_bench_model = {
    .name = "bench model",
    .summary = "the speed of a model, beside what the memory allows",
    .about = "Measures prefill (reading a prompt: many tokens in one pass, bound by arithmetic) and decode\n"
             "(writing: one token per pass over all weights, bound by memory). The roof is the rate at which\n"
             "this machine reads memory, measured in the same process with the same threads: a decode at\n"
             "100 % of it cannot be made faster without making the model smaller. A model that fits into the\n"
             "processor's caches can exceed it.\n\n"
             "'of the CPUs' is how much of the threads' time the processors really ran them. Well below 100 % other\n"
             "programs are in the way; then the files of --csv have a second row, tokens/cpu-s, by processor time\n"
             "alone, which with --threads 1 is about what a quiet machine does.\n\n"
             "With --context, decoding from an empty sequence is measured in turn, as 'start': what attention costs\n"
             "over so many tokens is how much slower decode is than that.\n\n"
             "With --device there is no roof: it is of the processor's memory, and so is the second row.\n"
             "To compare two instruction sets: --versus-isa; two formats of keys and values: --versus-kv.\n"
             "To compare two programs or two machines, let each append to a file of its own\n"
             "(--csv), best in turn, and use `lq bench compare`.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq bench model my-model.q4_k_m.gguf\n"
                "  lq bench model my-model.gguf -p 2048 -n 256 --threads 8 --repeat 5 --json\n"
                "  lq bench model my-model.gguf -n 32 --context 4096\n"
                "  lq bench model my-model.gguf --device vulkan:0\n"
                "  lq bench model my-model.gguf --isa avx2 --versus-isa scalar --repeat 5\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
