/* cmd_calibrate.c: `lq calibrate`: measure on a text how much each input of a model's matrices matters.
 *
 * The work is lq_calibrate; this file chooses the window, checks that the text suffices before anything is evaluated,
 * and keeps the text from being overwritten by its own statistics. */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "../bench/openblas.h"

typedef struct args {
    const char *model, *text, *output, *isa, *scheme, *recipe, *max_ram;
    uint64_t ctx, max_tokens, threads, samples;
    uint32_t force, hessians;
} args;

static const cli_operand operands[] = {
    {"MODEL", offsetof(args, model), 0, "a GGUF file or a Hugging Face folder, best in f16 or bf16"}, {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "What to measure"},
    {.type = CLI_TEXT,
     .letter = 'x',
     .required = 1,
     .name = "text",
     .value = "FILE",
     .at = offsetof(args, text),
     .help = "a text like those the model is for, in UTF-8; - reads standard input",
     .also = "|file|corpus|prompt|dataset|"},
    {.type = CLI_TEXT,
     .letter = 'o',
     .required = 1,
     .name = "output",
     .value = "STATS",
     .at = offsetof(args, output),
     .help = "the importance file to write (GGUF)",
     .also = "|out|output-file|importance|imatrix|"},
    {.type = CLI_FLAG,
     .letter = 'f',
     .name = "force",
     .at = offsetof(args, force),
     .help = "replace STATS if it exists, with what a run that was killed at its end left beside it",
     .also = "|overwrite|replace|"},
    {.type = CLI_FLAG,
     .letter = 'H',
     .name = "hessians",
     .at = offsetof(args, hessians),
     .help = "measure also what the quantizer gptq needs: how the inputs of a matrix go together.\n"
             "STATS then has some 4 bytes per weight of the layers; needs OpenBLAS",
     .also = "|hessian|gptq|"},
    {.type = CLI_TEXT,
     .name = "for",
     .value = "NAME",
     .at = offsetof(args, scheme),
     .help = "the scheme that the model will be quantized by: with a transform (awq+q4_k_m, smooth+int8), whose\n"
             "factors STATS then has, or with --hessians (q4_k_m:gptq), or both. Each matrix's inputs are\n"
             "measured behind matrices that are quantized already",
     .also = "|scheme|quantize|",
     .values = CLI_SCHEMES},
    {.type = CLI_TEXT,
     .name = "recipe",
     .value = "FILE",
     .at = offsetof(args, recipe),
     .help = "instead of --for: a recipe, as `lq quantize --recipe` takes it"},
    CLI_OPT_CTX(args),
    CLI_OPT_MAX_TOKENS(args),
    {.type = CLI_UINT,
     .name = "samples",
     .value = "N",
     .at = offsetof(args, samples),
     .min = 1,
     .max = 1e9,
     .help = "use the first N windows of the text (default: all); 128 are usual for gptq",
     .also = "|nsamples|windows|chunks|"},
    {.type = CLI_GROUP, .name = "How"},
    {.type = CLI_TEXT,
     .name = "max-ram",
     .value = "BYTES",
     .at = offsetof(args, max_ram),
     .help = "with --hessians or a transform: use at most so much memory (8G, 500M) beside the model's weights;\n"
             "where the text needs more, it lies in a file beside STATS. Too little is refused, and the least\n"
             "that suffices is told",
     .also = "|memory|ram|"},
    CLI_OPT_THREADS(args),
    CLI_OPT_ISA(args),
    {.type = CLI_END}};

/* The output must not be the text: --force would replace it by its own statistics. */
static int check_output(cli *c, const args *a) {
    struct stat text, output;
    if (strcmp(a->text, "-") == 0) return 0;
    if (stat(a->text, &text) != 0) return cli_error(c, LQ_E_IO, "%s: %s", a->text, strerror(errno));
    if (stat(a->output, &output) != 0) {
        return errno == ENOENT ? 0 : cli_error(c, LQ_E_IO, "%s: %s", a->output, strerror(errno));
    }
    if (text.st_dev != output.st_dev || text.st_ino != output.st_ino) return 0;
    return cli_usage(c, "--output %s is the text itself", a->output);
}

/* What the file calls the text: its name without folders, so that the same text gives the same file anywhere. */
static const char *text_name(const char *path) {
    const char *slash = strrchr(path, '/');
    return strcmp(path, "-") == 0 ? "standard input" : slash ? slash + 1 : path;
}

static int print_json(cli *c, const args *a, const lq_calibrate_result *r) {
    json_t *o = json_object();
    cli_set_text(o, "model", a->model);
    cli_set_text(o, "text", a->text);
    cli_set_text(o, "output", a->output);
    cli_set_int(o, "entries", r->entries);
    cli_set_int(o, "tokens", r->tokens);
    cli_set_int(o, "chunks", r->chunks);
    cli_set_int(o, "window", r->window);
    cli_set_int(o, "bytes", r->bytes);
    cli_set_real(o, "seconds", r->seconds);
    return cli_json_print(c, o, CLI_OK);
}

/* The session and the tokens are there. */
static int measure(cli *c, const args *a, lq_session *session, uint32_t window, const int32_t *ids, size_t count) {
    lq_calibrate_result r = {.size = sizeof r};
    cli_progress progress;
    uint64_t max_ram;
    const int wrong = cli_ram(c, a->max_ram, &max_ram);
    if (wrong) return wrong;
    const lq_calibrate_options o = {.hessians = a->hessians,
                                    .scheme = a->scheme,
                                    .recipe = a->recipe,
                                    .max_ram = max_ram,
                                    .size = sizeof o,
                                    .window = window,
                                    .max_tokens = a->samples ? a->samples * window : a->max_tokens,
                                    .force = a->force,
                                    .dataset = text_name(a->text),
                                    .progress = cli_progress_update,
                                    .user = &progress};
    cli_progress_begin(&progress, "calibrate");
    cli_watch(&session, 1);
    const lq_status s = lq_calibrate(session, ids, count, a->output, &o, &r);
    cli_unwatch();
    cli_progress_clear(&progress);
    struct stat st;
    if (s == LQ_E_ARG && !a->force && stat(a->output, &st) == 0)
        return cli_fail(c, s, "STATS exists: use --force to replace it.");
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    fprintf(stderr, "%s: %u matrices, %llu tokens in %u windows of %u, %s, %.1f s\n", cli_safe(a->output).s, r.entries,
            (unsigned long long)r.tokens, r.chunks, r.window, cli_bytes(r.bytes).s, r.seconds);
    return c->json ? print_json(c, a, &r) : 0;
}

static int calibrate(cli *c, const args *a, lq_model *model) {
    lq_model_info info = {.size = sizeof info};
    lq_session *session;
    int32_t *ids;
    size_t count;
    const lq_status s = lq_model_info_get(model, &info);
    if (s != LQ_OK) return cli_fail(c, s, NULL);
    if (a->ctx > info.context) {
        return cli_usage(c, "--ctx %llu: %s was trained with a context of %u tokens", (unsigned long long)a->ctx, a->model,
                         info.context);
    }
    const uint32_t window = a->ctx ? (uint32_t)a->ctx : info.context < 512 ? info.context : 512;
    if (a->max_tokens && a->max_tokens < window) {
        return cli_usage(c, "--max-tokens %llu: one window alone has %u tokens; see --ctx",
                         (unsigned long long)a->max_tokens, window);
    }
    int code = cli_corpus(c, model, a->text, window, &ids, &count);
    if (code != 0) return code;
    const lq_session_options so = {.size = sizeof so, .context = window, .threads = (uint32_t)a->threads, .activations = "f32"};
    code = cli_session(c, model, &so, &session);
    if (code == 0) {
        code = measure(c, a, session, window, ids, count);
        lq_session_close(session);
    }
    free(ids);
    return code;
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    lq_ctx *ctx;
    lq_model *model;
    int code = check_output(c, a);
    if (code == 0 && a->max_ram && !a->hessians && !a->scheme && !a->recipe) code = cli_usage(c, "--max-ram goes with --hessians, or with --for and a transform (awq+q4_k_m)");
    if (code == 0 && a->scheme && a->recipe) code = cli_usage(c, "--for and --recipe exclude each other");
    if (code == 0 && a->samples && a->max_tokens) code = cli_usage(c, "--samples and --max-tokens exclude each other");
    if (code == 0 && a->hessians) bench_openblas_tell();
    if (code == 0) code = cli_open(c, a->threads, a->isa, NULL, &ctx);
    if (code != 0) return code;
    const lq_model_options mo = cli_model_options("f32");
    const lq_status s = lq_model_open(ctx, a->model, &mo, &model);
    code = s == LQ_OK ? calibrate(c, a, model) : cli_fail(c, s, NULL);
    if (s == LQ_OK) lq_model_close(model);
    lq_close(ctx);
    return code;
}

const cli_command cli_command_calibrate = {
    .name = "calibrate",
    .summary = "measure on a text which weights matter, for quantize --importance",
    .about = "The model reads the text, and the mean square of each input of each matrix is kept: an error in a\n"
             "weight hurts as much as its input is large. `lq quantize --importance STATS` then spends the same\n"
             "bits better, most visibly below 5 bits per weight. Some 100,000 tokens are enough; what counts is\n"
             "that the text is like those the model will see. Other engines read and write the same file\n"
             "(\"imatrix\").\n\n"
             "STATS appears only when it is complete; whatever goes wrong before, no file is left under that\n"
             "name.\n\n"
             "With --hessians, and for a scheme with a transform (awq, smooth), the text goes through the model\n"
             "layer by layer, and each finished layer is kept beside STATS: the same command goes on where it was\n"
             "interrupted. What another command left beside the same STATS is told, and goes when STATS is complete.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq calibrate my-model/ --text examples.txt -o stats.gguf\n"
                "  lq quantize my-model/ my-model.q4_k_m.gguf --scheme q4_k_m --importance stats.gguf\n"
                "  lq calibrate my-model/ --text examples.txt -o awq.gguf --for awq+q4_k_m --samples 128\n"
                "  lq calibrate my-model/ --text examples.txt -o gptq.gguf --hessians --for q4_k_m:gptq --samples 128\n"
                "  lq quantize my-model/ my-model.gptq.gguf --scheme q4_k_m:gptq --importance gptq.gguf\n",
    .args_size = sizeof(args),
    .run = run,
};
