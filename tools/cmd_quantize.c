/* cmd_quantize.c: `lq quantize`: write a model as a GGUF file, or as a Hugging Face directory, with a scheme.
 *
 * The work is lq_quantize; this file shows what it does: progress, each tensor with -v, fall-backs as warnings, a
 * summary, and for each refusal the option that lifts it. */
#include "cli.h"

#include "../bench/openblas.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

typedef struct args {
    const char *src, *dst, *scheme, *recipe, *importance;
    uint64_t threads;
    uint32_t dry_run, force, requantize, verbose;
    cli_list lora;
} args;

static const cli_operand operands[] = {
    {"SRC", offsetof(args, src), 0, "a Hugging Face folder (config.json and safetensors) or a GGUF file"},
    {"DST", offsetof(args, dst), 0, "the GGUF file to write, or the directory (see above)"},
    {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "What to write"},
    {.type = CLI_TEXT,
     .letter = 's',
     .name = "scheme",
     .value = "NAME",
     .at = offsetof(args, scheme),
     .help = "which format each tensor gets, such as q4_k_m; `lq info --schemes` lists all.\n"
             "A format's name (`lq info --formats`) gives every tensor that format.\n"
             "NAME:rtn rounds to nearest, NAME:search (what is done without) looks for the\n"
             "scales with the least error; awq+NAME and smooth+NAME move outliers of\n"
             "inputs into neighbouring weights first, by factors that `lq calibrate --for awq+NAME`\n"
             "puts into the file of --importance; NAME+imatrix insists on that file",
     .also = "|bits|type|quant|method|format|",
     .values = CLI_SCHEMES},
    {.type = CLI_TEXT,
     .name = "recipe",
     .value = "FILE",
     .at = offsetof(args, recipe),
     .help = "instead of --scheme: a text that says per tensor what it gets, a rule a line,\n"
             "the first that fits wins: PATTERN [CONDITION...] FORMAT[:QUANTIZER];\n"
             "a line `transform awq` does what awq+NAME does",
     .also = "|recipe-file|tensor-type|config|"},
    CLI_OPT_IMPORTANCE(args),
    CLI_OPT_LORA(offsetof(args, lora), "merge an adapter (LoRA) into the weights before they are rounded:\n"),
    {.type = CLI_FLAG,
     .letter = 'n',
     .name = "dry-run",
     .at = offsetof(args, dry_run),
     .help = "report what would be written and how large it would be, write nothing",
     .also = "|plan|check|"},
    {.type = CLI_FLAG,
     .letter = 'f',
     .name = "force",
     .at = offsetof(args, force),
     .help = "replace DST if it exists: a file, or a directory with a config.json and no folders",
     .also = "|overwrite|replace|"},
    {.type = CLI_FLAG,
     .name = "requantize",
     .at = offsetof(args, requantize),
     .help = "accept a source that is already quantized; the damage of both adds up",
     .also = "|allow-requantize|"},
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_THREADS(args),
    {.type = CLI_FLAG,
     .letter = 'v',
     .name = "verbose",
     .at = offsetof(args, verbose),
     .help = "a line per tensor on standard output: formats, bytes, relative error"},
    {.type = CLI_END}};

/* One tensor that did not get what the scheme asked for. */
typedef struct fallback {
    char name[128], wanted[24], got[24];
} fallback;

typedef struct state {
    cli_progress progress;
    char unweighted[200]; /* names of tensors that the importance file lacks, as many as fit */
    uint32_t transformed;  /* tensors with factors or clips of: */
    const char *transform; /* static storage */
    const args *a;
    json_t *tensors; /* with --json */
    fallback *fallbacks;
    size_t fallback_count;
    bool table; /* print lines */
    bool begun;
} state;

static int on_progress(void *user, uint64_t done, uint64_t total, const char *what) {
    return cli_progress_update(&((state *)user)->progress, done, total, what);
}

/* A tensor whose bits were chosen without importance, though there is a file. */
static void note_unweighted(state *s, const lq_tensor_report *t) {
    lq_format_info f = {.size = sizeof f};
    uint32_t index;
    if (t->importance || strcmp(t->from, t->to) == 0) return;
    if (lq_format_find(t->to, &index) != LQ_OK || lq_format_info_get(index, &f) != LQ_OK || f.block_weights == 1)
        return;
    const size_t n = strlen(s->unweighted), need = strlen(t->name) + 2;
    if (n + need + 5 < sizeof s->unweighted) {
        snprintf(s->unweighted + n, sizeof s->unweighted - n, "%s%s", n ? ", " : "", cli_safe(t->name).s);
    } else if (n < 3 || strcmp(s->unweighted + n - 3, "...") != 0) {
        snprintf(s->unweighted + n, sizeof s->unweighted - n, ", ...");
    }
}

static void on_tensor(void *user, const lq_tensor_report *t) {
    state *s = user;
    if (s->a->importance) note_unweighted(s, t);
    if (t->transform[0]) {
        s->transformed++;
        s->transform = t->transform;
    }
    if (s->tensors) {
        json_t *o = json_object();
        cli_set_text(o, "name", t->name);
        cli_set_text(o, "from", t->from);
        cli_set_text(o, "to", t->to);
        cli_set_text(o, "wanted", t->wanted);
        cli_set_int(o, "weights", t->weights);
        cli_set_int(o, "bytes", t->bytes);
        cli_set_text(o, "quantizer", t->quantizer);
        cli_set_text(o, "transform", t->transform);
        cli_set_real(o, "bits_per_weight", t->bits_per_weight);
        cli_set_real(o, "rel_error", t->rel_error);
        cli_set_real(o, "weighted_error", t->weighted_error);
        if (s->a->importance) cli_set_bool(o, "importance", t->importance != 0);
        if (s->a->lora.count) cli_set_int(o, "adapters", t->adapters);
        (void)json_array_append_new(s->tensors, o);
    }
    if (strcmp(t->to, t->wanted) != 0) {
        fallback *more = realloc(s->fallbacks, (s->fallback_count + 1) * sizeof *more);
        if (more) {
            s->fallbacks = more;
            fallback *f = &more[s->fallback_count++];
            snprintf(f->name, sizeof f->name, "%.127s", cli_safe(t->name).s);
            snprintf(f->wanted, sizeof f->wanted, "%s", t->wanted);
            snprintf(f->got, sizeof f->got, "%s", t->to);
        }
    }
    if (!s->table) return;
    cli_progress_clear(&s->progress);
    if (!s->begun) {
        printf("%-32s %-7s %-7s %-7s %12s %12s %6s  %-10s  %s\n", "tensor", "from", "to", "by", "weights", "bytes",
               "bits/w", "rel. error", "weighted");
    }
    s->begun = true;
    printf("%-32s %-7s %-7s %-7s %12llu %12llu %6.3f  %-10.5f", cli_safe(t->name).s, t->from, t->to,
           t->quantizer[0] ? t->quantizer : "copy", (unsigned long long)t->weights, (unsigned long long)t->bytes,
           t->bits_per_weight, t->rel_error);
    if (t->importance) printf("  %.5f", t->weighted_error);
    if (t->transform[0]) printf("%s  %s", t->importance ? "" : "  -      ", t->transform);
    if (t->adapters) printf("  with %s", t->adapters == 1 ? "an adapter" : "adapters");
    putchar('\n');
}

/* Does the scheme write a directory, or floats, which may lie in one? */
static bool makes_directory(const char *scheme) {
    static const char *const floats[] = {"f32", "f16", "bf16"};
    for (size_t i = 0; i < CLI_COUNT(floats); i++)
        if (scheme && cli_scheme_has(scheme, floats[i])) return true;
    return scheme && cli_scheme_is_directory(scheme);
}

/* Which option would have allowed what was refused: read off the files, not off the message. */
static const char *hint_for(const args *a, lq_status status) {
    struct stat src, dst;
    if (status != LQ_E_ARG) return NULL;
    const bool src_is = stat(a->src, &src) == 0, dst_is = stat(a->dst, &dst) == 0;
    if (src_is && dst_is && src.st_dev == dst.st_dev && src.st_ino == dst.st_ino) {
        return "SRC and DST are the same file: choose another DST.";
    }
    if (dst_is && S_ISDIR(dst.st_mode)) {
        if (!makes_directory(a->scheme)) return "DST is a folder: name a file in it.";
        if (a->force) return NULL; /* what it holds is not to be lost */
    }
    if (dst_is && !a->force) return "DST exists: use --force to replace it.";
    if (src_is && S_ISREG(src.st_mode) && !a->requantize) {
        return "If SRC is already quantized: quantize from the original, or use --requantize.";
    }
    return NULL;
}

static void print_summary(const args *a, const state *s, const lq_quantize_result *r) {
    for (size_t i = 0; i < s->fallback_count; i++) {
        const fallback *f = &s->fallbacks[i];
        cli_warn("%s is %s, because its shape does not allow %s", f->name, f->got, f->wanted);
    }
    fprintf(stderr, "%s%s: %u tensors, %llu weights, %.3f bits per weight, %s", a->dry_run ? "would write " : "",
            cli_safe(a->dst).s, r->tensors, (unsigned long long)r->weights, r->bits_per_weight, cli_bytes(r->bytes).s);
    if (r->adapted) fprintf(stderr, ", adapters in %u", r->adapted);
    if (r->fallbacks) fprintf(stderr, ", %u fall-back%s", r->fallbacks, r->fallbacks == 1 ? "" : "s");
    if (a->importance) fprintf(stderr, ", %u by importance", r->with_importance);
    if (s->transformed) fprintf(stderr, ", %u with %s", s->transformed, s->transform);
    if (r->without_importance) fprintf(stderr, ", %u without (%s)", r->without_importance, s->unweighted);
    if (!a->dry_run) fprintf(stderr, ", %.1f s", r->seconds);
    fputc('\n', stderr);
}

static int print_json(cli *c, const args *a, state *s, const lq_quantize_result *r) {
    json_t *o = json_object();
    cli_set_text(o, "source", a->src);
    cli_set_text(o, "destination", a->dst);
    cli_set_text(o, a->recipe ? "recipe" : "scheme", a->recipe ? a->recipe : a->scheme);
    cli_set_bool(o, "dry_run", a->dry_run != 0);
    cli_set_int(o, "tensors", r->tensors);
    cli_set_int(o, "fallbacks", r->fallbacks);
    cli_set_int(o, "weights", r->weights);
    cli_set_int(o, "bytes", r->bytes);
    cli_set_real(o, "bits_per_weight", r->bits_per_weight);
    cli_set_real(o, "seconds", r->seconds);
    if (a->importance) {
        json_t *i = json_object();
        cli_set_text(i, "file", a->importance);
        cli_set_int(i, "with", r->with_importance);
        cli_set_int(i, "without", r->without_importance);
        cli_set(o, "importance", i);
    }
    if (a->lora.count) {
        json_t *l = json_array();
        for (size_t i = 0; i < a->lora.count; i++)
            (void)json_array_append_new(l, cli_json_text(a->lora.items[i], strlen(a->lora.items[i])));
        cli_set(o, "lora", l);
        cli_set_int(o, "adapted", r->adapted);
    }
    cli_set(o, "report", s->tensors);
    s->tensors = NULL;
    return cli_json_print(c, o, CLI_OK);
}

static int quantize(cli *c, const args *a, state *s, const cli_loras *loras) {
    lq_ctx *ctx;
    lq_quantize_result r = {.size = sizeof r};
    if (!a->scheme && !a->recipe)
        return cli_usage(c,
                         "no scheme was given: --scheme q4_k_m is the usual choice, and `lq info --schemes` lists all");
    if (a->scheme && a->recipe)
        return cli_usage(c, "--scheme and --recipe: a recipe says itself what each tensor gets");
    bench_openblas_tell(); /* some quantizers use it */
    int code = cli_open(c, a->threads, NULL, NULL, &ctx);
    if (code != 0) return code;
    cli_progress_begin(&s->progress, "quantize");
    const lq_quantize_options o = {.size = sizeof o,
                                   .scheme = a->scheme,
                                   .threads = (uint32_t)a->threads,
                                   .force = a->force,
                                   .requantize = a->requantize,
                                   .dry_run = a->dry_run,
                                   .progress = on_progress,
                                   .report = on_tensor,
                                   .user = s,
                                   .importance = a->importance,
                                   .recipe = a->recipe,
                                   .loras = (const char *const *)loras->paths,
                                   .lora_scales = loras->scales,
                                   .n_loras = loras->n};
    const lq_status status = lq_quantize(ctx, a->src, a->dst, &o, &r);
    cli_progress_clear(&s->progress);
    if (status != LQ_OK) {
        code = cli_fail(c, status, hint_for(a, status));
    } else {
        print_summary(a, s, &r);
        if (c->json) code = print_json(c, a, s, &r);
    }
    lq_close(ctx);
    return code;
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    state s = {.a = a, .table = a->verbose && !c->json};
    if (c->json && !(s.tensors = json_array())) return cli_nomem(c);
    cli_loras loras;
    int code = cli_loras_open(c, &a->lora, &loras);
    if (code == 0) code = quantize(c, a, &s, &loras);
    cli_loras_free(&loras);
    json_decref(s.tensors);
    free(s.fallbacks);
    return code;
}

const cli_command cli_command_quantize = {
    .name = "quantize",
    .summary = "write a model in fewer bits per weight: as a GGUF file or a Hugging Face directory",
    .about = "A scheme is a recipe: it gives each tensor a format by its role, more bits where errors hurt\n"
             "most. q4_k_m is the usual choice; q8_0 is almost lossless; q2_k is the smallest. What each\n"
             "costs on your text is shown by `lq bench quality`.\n\n"
             "Schemes of Hugging Face directories (nf4, int8 and others: `lq info --schemes`) write DST as a\n"
             "directory that transformers loads: shards of safetensors, config.json, the tokenizer of\n"
             "SRC, which must be such a directory too. f16, bf16 and f32 do where DST ends in '/' or is one.\n\n"
             "Tensors are read, quantized and written one by one, so the model need not fit into memory.\n"
             "DST appears only when it is complete and was read back; whatever goes wrong before (a full\n"
             "disk, Ctrl-C, a crash), nothing is left under that name.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq quantize my-model/ my-model.q4_k_m.gguf --scheme q4_k_m\n"
                "  lq quantize my-model.f16.gguf small.gguf -s q2_k --dry-run -v\n"
                "  lq quantize my-model/ small.gguf -s iq4_xs+imatrix --importance stats.gguf\n"
                "  lq quantize my-model/ small.gguf -s awq+q4_k_m --importance awq.gguf\n"
                "  lq quantize my-model/ mine.gguf --recipe mine.txt       # mine.txt: attn_v,ffn_down more q6_k\n"
                "                                                          #           * q4_k\n"
                "  lq quantize my-model/ my-model-nf4 -s nf4-dq            # a directory\n"
                "  lq quantize my-model/ tuned.gguf -s q4_k_m --lora my-adapter/\n"
                "  lq quantize old.q8_0.gguf new.gguf -s q4_0 --requantize --force --json\n",
    .args_size = sizeof(args),
    .run = run,
};
