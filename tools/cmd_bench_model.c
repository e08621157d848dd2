/* cmd_bench_model.c: `lq bench model`: the speed of one model, beside what the memory of this machine allows. */
#include "bench_speed.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
    const char *model, *isa;
    uint64_t prefill, decode, threads, repeat;
} args;

static const args defaults = {.prefill = 512, .decode = 128, .repeat = 3};

static const cli_operand operands[] = {{"MODEL", offsetof(args, model), 0, "a GGUF file or a Hugging Face folder"}, {0}};

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
     .letter = 'r',
     .name = "repeat",
     .value = "N",
     .at = offsetof(args, repeat),
     .min = 1,
     .max = 100,
     .help = "runs of each; the median counts (default 3)",
     .also = "|repetitions|runs|"},
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_THREADS(args),
    CLI_OPT_ISA(args),
    {.type = CLI_END}};

typedef struct roof {
    double bytes_per_s;
    uint64_t buffer;
    uint32_t threads;
    char isa[32];
} roof;

static int print_json(cli *c, const args *a, const lq_model_info *m, const bench_speed *b, const roof *r) {
    json_t *o = json_object(), *prefill = json_object(), *decode = json_object(), *top = json_object();
    cli_set_text(o, "model", a->model);
    cli_set_text(o, "scheme", m->file_scheme);
    cli_set_int(o, "weight_bytes", m->weight_bytes);
    cli_set_int(o, "bytes_per_token", m->bytes_per_token);
    cli_set_real(o, "bits_per_weight", m->bits_per_weight);
    cli_set_int(o, "threads", r->threads);
    cli_set_text(o, "isa", r->isa);
    cli_set_int(o, "repeat", a->repeat);
    cli_set_int(prefill, "tokens", b->prefill_tokens);
    cli_set_real(prefill, "tokens_per_s", b->prefill_per_s);
    cli_set(o, "prefill", prefill);
    cli_set_int(decode, "tokens", b->decode_tokens);
    cli_set_real(decode, "tokens_per_s", b->decode_per_s);
    cli_set_real(decode, "bytes_per_s", b->decode_bytes_per_s);
    cli_set(decode, "roof_fraction",
            r->bytes_per_s > 0 ? json_real(b->decode_bytes_per_s / r->bytes_per_s) : json_null());
    cli_set(o, "decode", decode);
    cli_set_real(top, "bytes_per_s", r->bytes_per_s);
    cli_set_int(top, "buffer_bytes", r->buffer);
    cli_set(o, "roof", top);
    return cli_json_print(c, o, CLI_OK);
}

static void print_table(const args *a, const lq_model_info *m, const bench_speed *b, const roof *r) {
    printf("model     %s: %s%s%s, %.3f bits per weight\n", cli_safe(a->model).s, cli_bytes(m->weight_bytes).s,
           m->file_scheme[0] ? ", " : "", cli_safe(m->file_scheme).s, m->bits_per_weight);
    printf("with      %u thread%s, %s\n", r->threads, r->threads == 1 ? "" : "s", r->isa);
    printf("prefill   %10.1f tokens/s  (%u tokens)\n", b->prefill_per_s, b->prefill_tokens);
    printf("decode    %10.1f tokens/s  (%u tokens), %.2f GB/s", b->decode_per_s, b->decode_tokens,
           b->decode_bytes_per_s * 1e-9);
    if (r->bytes_per_s > 0) {
        printf(", %.0f %% of the roof\nroof      %10.2f GB/s      (reading %s)", b->decode_bytes_per_s / r->bytes_per_s * 100,
               r->bytes_per_s * 1e-9, cli_bytes(r->buffer).s);
    }
    putchar('\n');
}

static int measure(cli *c, const args *a, lq_ctx *ctx, lq_model *model) {
    lq_model_info m = {.size = sizeof m};
    lq_device_info d = {.size = sizeof d};
    bench_speed b = {0};
    roof r = {0};
    lq_status s = lq_model_info_get(model, &m);
    if (s == LQ_OK) s = lq_device_info_get(ctx, 0, &d);
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    if (a->prefill > m.context || a->decode > m.context) {
        fprintf(stderr, "note: the model was trained with a context of %u tokens; longer runs are cut to that\n", m.context);
    }
    const int code =
        bench_speed_run(c, model, (uint32_t)a->prefill, (uint32_t)a->decode, (uint32_t)a->threads, (uint32_t)a->repeat, &b);
    if (code != 0) return code;
    r.threads = a->threads ? (uint32_t)a->threads : d.threads;
    snprintf(r.isa, sizeof r.isa, "%s", d.isa);
    r.bytes_per_s = bench_roof(r.threads, d.memory, &r.buffer);
    if (cli_interrupted()) return cli_error(c, LQ_E_CANCELLED, "interrupted");
    if (c->json) return print_json(c, a, &m, &b, &r);
    print_table(a, &m, &b, &r);
    return 0;
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    lq_ctx *ctx;
    lq_model *model = NULL;
    int code = cli_open(c, a->threads, a->isa, &ctx);
    if (code != 0) return code;
    const lq_status s = lq_model_open(ctx, a->model, NULL, &model);
    code = s == LQ_OK ? measure(c, a, ctx, model) : cli_fail(c, s, NULL);
    lq_model_close(model);
    lq_close(ctx);
    return code;
}

const cli_command cli_command_bench_model = {
    .name = "bench model",
    .summary = "the speed of a model, beside what the memory allows",
    .about = "Measures prefill (reading a prompt: many tokens in one pass, bound by arithmetic) and decode\n"
             "(writing: one token per pass over all weights, bound by memory). The roof is the rate at which\n"
             "this machine reads memory, measured in the same process with the same threads: a decode at\n"
             "100 % of it cannot be made faster without making the model smaller. A model that fits into the\n"
             "processor's caches can exceed it.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq bench model my-model.q4_k_m.gguf\n"
                "  lq bench model my-model.gguf -p 2048 -n 256 --threads 8 --repeat 5 --json\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
