/* cmd_bench_make_model.c: `lq bench make-model`: a file of random weights in the shape of a real model.
 *
 * The work is bench/make_model.c; this file shows it and reports what was made. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../bench/make_model.h"

typedef struct args {
    const char *dst, *shape, *scheme;
    uint64_t seed, threads;
    uint32_t force;
} args;

static const args defaults = {.seed = 1};

static const cli_operand operands[] = {{"DST", offsetof(args, dst), 0, "the GGUF file to write"}, {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "What to make"},
    {.type = CLI_TEXT,
     .required = 1,
     .name = "shape",
     .value = "NAME",
     .at = offsetof(args, shape),
     .help = "llama-1.1b: width 2048, 22 layers, 32 heads (4 of keys and values), feed-forward 5632,\n"
             "  32000 tokens\n"
             "llama3-8b: width 4096, 32 layers, 32 heads (8), feed-forward 14336, 128256 tokens\n"
             "tiny: width 256, 2 layers, 4 heads (2), feed-forward 512, 512 tokens; for tests",
     .also = "|model|size|arch|",
     .values = "llama-1.1b llama3-8b tiny"},
    CLI_OPT_SCHEME(args),
    {.type = CLI_UINT,
     .name = "seed",
     .value = "N",
     .at = offsetof(args, seed),
     .min = 0,
     .max = 4294967295.0,
     .help = "which random weights (default 1); equal seeds give equal bytes at any number of threads",
     .also = "|random-seed|rng|"},
    {.type = CLI_FLAG,
     .letter = 'f',
     .name = "force",
     .at = offsetof(args, force),
     .help = "replace DST if it exists",
     .also = "|overwrite|replace|"},
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_THREADS(args),
    {.type = CLI_END}};

static const char *shape_name(size_t i) { return bench_shape_at(i)->name; }

static const char *any_scheme(size_t i) {
    const uint32_t schemes = lq_scheme_count();
    return i < schemes ? lq_scheme_name((uint32_t)i, NULL) : q_formats[i - schemes]->name;
}

/* Names are checked before anything is made. */
static int check_names(cli *c, const args *a, const bench_shape **shape) {
    size_t shapes = 0;
    while (bench_shape_at(shapes)) shapes++;
    *shape = bench_shape_find(a->shape);
    if (!*shape) {
        return cli_usage(c, "--shape %s: there is no such shape; the nearest is %s", a->shape,
                         cli_nearest(a->shape, shape_name, shapes));
    }
    const size_t count = (size_t)lq_scheme_count() + q_format_count();
    for (size_t i = 0; i < count; i++) {
        if (strcmp(any_scheme(i), a->scheme) == 0) return 0;
    }
    return cli_usage(c, "--scheme %s: there is no such scheme; the nearest is %s, and `lq info --schemes` lists all",
                     a->scheme, cli_nearest(a->scheme, any_scheme, count));
}

static const char *hint_for(const args *a, lq_status status) {
    struct stat dst;
    if (status != LQ_E_ARG || stat(a->dst, &dst) != 0) return NULL;
    if (S_ISDIR(dst.st_mode)) return "DST is a folder: name a file in it.";
    return a->force ? NULL : "DST exists: use --force to replace it.";
}

static int print_json(cli *c, const args *a, const bench_make_result *r) {
    json_t *o = json_object();
    cli_set_text(o, "destination", a->dst);
    cli_set_text(o, "shape", a->shape);
    cli_set_text(o, "scheme", a->scheme);
    cli_set_int(o, "seed", a->seed);
    cli_set_int(o, "tensors", r->tensors);
    cli_set_int(o, "fallbacks", r->fallbacks);
    cli_set_int(o, "weights", r->weights);
    cli_set_int(o, "bytes", r->bytes);
    cli_set_real(o, "bits_per_weight", r->bits_per_weight);
    cli_set_real(o, "seconds", r->seconds);
    return cli_json_print(c, o, CLI_OK);
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    const bench_shape *shape;
    bench_make_result r = {0};
    cli_progress p;
    const int code = check_names(c, a, &shape);
    if (code != 0) return code;
    cli_progress_begin(&p, "make-model");
    const bench_make_options o = {.shape = shape, .scheme = a->scheme, .seed = a->seed, .threads = (uint32_t)a->threads,
                                  .force = a->force, .progress = cli_progress_update, .user = &p};
    const lq_status status = bench_make_model(a->dst, &o, &r);
    cli_progress_clear(&p);
    if (status != LQ_OK) return cli_fail(c, status, hint_for(a, status));
    fprintf(stderr, "%s: %s, %s, %u tensors, %llu weights, %.3f bits per weight, %s, %.1f s\n", cli_safe(a->dst).s,
            shape->name, a->scheme, r.tensors, (unsigned long long)r.weights, r.bits_per_weight, cli_bytes(r.bytes).s,
            r.seconds);
    return c->json ? print_json(c, a, &r) : CLI_OK;
}

const cli_command cli_command_bench_make_model = {
    .name = "bench make-model",
    .summary = "a file of random weights in a real model's shape, to measure speed with",
    .about = "Speed depends on a model's shape and on the formats of its tensors, not on what it learned. This\n"
             "writes a model of random weights and a made-up vocabulary, which every command can open: measure it\n"
             "with `lq bench model`. Its text and its perplexity mean nothing.\n\n"
             "Tensors are made and written piece by piece, so the model need not fit into memory. DST appears\n"
             "only when it is complete and was read back; whatever goes wrong before, nothing is left under that\n"
             "name. The trained context is 32768 tokens.\n",
    .operands = operands,
    .options = options,
    .examples =
        "  lq bench make-model --shape llama-1.1b --scheme q4_k_m /tmp/1.1b.gguf\n"
        "  lq bench make-model --shape llama3-8b -s q8_0 --seed 7 /tmp/8b.gguf && lq bench model /tmp/8b.gguf\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
