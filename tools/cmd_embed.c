/* cmd_embed.c: `lq embed`: one vector for each text.
 *
 * Texts are lines, of a file or of standard input, or one is given. All are read and tokenized first, so that the
 * session is no longer than the longest of them, and several go through the model at once. Standard output gets a line
 * of numbers for each, in their order. Refuses texts that the model's context cannot hold, with their number. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

enum { TOGETHER = 32, MANY = 1024 }; /* texts at once, and how many tokens of them, but for one that is longer */

typedef struct args {
    cli_place place;
    cli_memory memory;
    const char *model, *text, *file, *pooling, *isa, *activations;
    cli_kv kv;
    uint64_t threads, threads_prefill;
    uint32_t whole, normalize, no_normalize, special;
} args;

static const args defaults = {.place = CLI_PLACE};

static const cli_operand operands[] = {{"MODEL", offsetof(args, model), 0, "a GGUF file or a Hugging Face folder"},
                                       {"TEXT", offsetof(args, text), 1, "a text; without it, lines of standard input"},
                                       {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "Texts"},
    {.type = CLI_TEXT,
     .letter = 'f',
     .name = "file",
     .value = "FILE",
     .at = offsetof(args, file),
     .help = "a file with a text on each line; - is standard input",
     .also = "|input|prompt-file|"},
    {.type = CLI_FLAG,
     .name = "whole",
     .at = offsetof(args, whole),
     .help = "the file, or standard input, is one text with all its lines"},
    {.type = CLI_FLAG,
     .name = "special",
     .at = offsetof(args, special),
     .help = "text that spells a special token becomes that token",
     .also = "|parse-special|"},
    {.type = CLI_GROUP, .name = "Vectors"},
    {.type = CLI_TEXT,
     .name = "pooling",
     .value = "HOW",
     .at = offsetof(args, pooling),
     .help = "mean (default) of what all tokens have behind the model's last norm; last: that of the\n"
             "last token, which in a causal model has seen all others; first (cls): that of the first.\n"
             "A model that was trained for embeddings says which one it means",
     .values = "mean last first cls",
     .also = "|pool|"},
    {.type = CLI_FLAG,
     .name = "normalize",
     .at = offsetof(args, normalize),
     .help = "make each vector's length (L2) 1, so that products are cosines: the default",
     .also = "|l2|embd-normalize|"},
    {.type = CLI_FLAG,
     .name = "no-normalize",
     .at = offsetof(args, no_normalize),
     .help = "leave vectors as they come"},
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_DEVICE(args),
    CLI_OPT_GPU_LAYERS(args),
    CLI_OPT_NO_PACK(args),
    CLI_OPT_PACK_AT_OPEN(args),
    CLI_OPT_LOAD_AS(args),
    CLI_OPT_RUN_LORA(args),
    CLI_OPT_KV(args),
    CLI_OPT_ACTIVATIONS(args),
    CLI_OPT_THREADS(args),
    CLI_OPT_THREADS_PREFILL(args),
    CLI_OPT_MEMORY(args),
    CLI_OPT_ISA(args),
    {.type = CLI_END}};

typedef struct text {
    const char *bytes;
    size_t n;
    int32_t *ids;
    size_t count;
} text;

typedef struct state {
    const args *a;
    lq_model *model;
    lq_session *session;
    lq_model_info info;
    lq_plan_info plan;
    text *texts;
    size_t count, longest;
    uint32_t pooling;
    float *out; /* [TOGETHER][embedding] */
    json_t *all;
} state;

static int add_text(cli *c, state *s, const char *bytes, size_t n) {
    if ((s->count & (s->count - 1)) == 0) { /* a power of two: there is no room */
        text *more = realloc(s->texts, (s->count ? 2 * s->count : 1) * sizeof *more);
        if (!more) return cli_nomem(c);
        s->texts = more;
    }
    s->texts[s->count++] = (text){.bytes = bytes, .n = n};
    return 0;
}

/* A line ends with "\n", and the last one need not. */
static int split(cli *c, state *s, const char *bytes, size_t n) {
    if (s->a->whole || s->a->text) return add_text(c, s, bytes, n);
    for (size_t at = 0; at < n;) {
        const char *end = memchr(bytes + at, '\n', n - at);
        const size_t line = end ? (size_t)(end - (bytes + at)) : n - at;
        const int code = add_text(c, s, bytes + at, line);
        if (code != 0) return code;
        at += line + 1;
    }
    return s->count ? 0 : cli_error(c, LQ_E_ARG, "there is no text: a line for each is needed");
}

static int tokenize(cli *c, state *s) {
    const uint32_t flags = LQ_TOKENIZE_BOS | (s->a->special ? LQ_TOKENIZE_PARSE_SPECIAL : 0u);
    int code = 0;
    for (size_t i = 0; i < s->count && code == 0; i++) {
        text *t = &s->texts[i];
        code = cli_tokenize(c, s->model, t->bytes, t->n, flags, &t->ids, &t->count);
        if (code != 0) return code;
        if (t->count == 0)
            return cli_error(c, LQ_E_ARG, "text %zu is empty, and the model wants no token before a text", i + 1);
        if (t->count > s->info.context)
            return cli_error(c, LQ_E_CONTEXT, "text %zu has %zu tokens, the model's context %u", i + 1, t->count,
                             s->info.context);
        if (t->count > s->longest) s->longest = t->count;
    }
    return code;
}

static int print_vector(cli *c, state *s, const text *t, const float *v) {
    if (!c->json) {
        for (uint32_t k = 0; k < s->info.embedding; k++) printf(k ? " %.9g" : "%.9g", (double)v[k]);
        return putchar('\n') == EOF ? cli_finish(c, 0) : 0;
    }
    json_t *o = json_object(), *values = json_array();
    for (uint32_t k = 0; k < s->info.embedding; k++) (void)json_array_append_new(values, json_real((double)v[k]));
    cli_set(o, "text", cli_json_text(t->bytes, t->n));
    cli_set_int(o, "tokens", t->count);
    cli_set(o, "vector", values);
    (void)json_array_append_new(s->all, o);
    return 0;
}

/* The texts from `at` on that go together: how many. */
static size_t some(const state *s, size_t at, lq_item *items) {
    size_t n = 0, tokens = 0;
    for (; at + n < s->count && n < TOGETHER; n++) {
        const text *t = &s->texts[at + n];
        tokens += (t->count + 31) / 32 * 32; /* whole pages */
        if (n > 0 && tokens > MANY) break;
        items[n] = (lq_item){.sequence = (uint32_t)n, .ids = t->ids, .count = t->count};
    }
    return n;
}

static int embed_all(cli *c, state *s) {
    const lq_embed_options o = {.size = sizeof o, .pooling = s->pooling, .no_normalize = s->a->no_normalize};
    lq_item items[TOGETHER];
    int code = 0;
    for (size_t at = 0, n; at < s->count && code == 0; at += n) {
        n = some(s, at, items);
        const lq_status status = cli_interrupted() ? LQ_E_CANCELLED : lq_embed(s->session, items, n, &o, s->out);
        if (status == LQ_E_NUMERIC)
            return cli_fail(c, status, "`lq info MODEL --check-tensors` finds weights that are not finite.");
        if (status != LQ_OK) return cli_fail(c, status, NULL);
        for (size_t i = 0; i < n && code == 0; i++)
            code = print_vector(c, s, &s->texts[at + i], s->out + i * s->info.embedding);
        for (uint32_t i = 0; i < n; i++) (void)lq_seq_truncate(s->session, i, 0); /* room for the next ones */
    }
    return code;
}

static int print_all(cli *c, const state *s) {
    static const char *const names[] = {"mean", "last", "first"};
    json_t *o = json_object();
    cli_set_text(o, "model", s->a->model);
    cli_set_text(o, "pooling", names[s->pooling]);
    cli_set_bool(o, "normalized", !s->a->no_normalize);
    cli_set_int(o, "embedding", s->info.embedding);
    cli_set(o, "texts", json_incref(s->all));
    if (s->plan.device[0]) cli_set(o, "device", cli_plan_json(&s->plan));
    return cli_json_print(c, o, CLI_OK);
}

static int with_model(cli *c, state *s, const char *bytes, size_t n) {
    const args *a = s->a;
    const lq_status status = lq_model_info_get(s->model, &s->info);
    int code = status == LQ_OK ? split(c, s, bytes, n) : cli_fail(c, status, NULL);
    if (code == 0) code = tokenize(c, s);
    const uint64_t pages = s->count < 2 ? 0 : s->longest > MANY ? s->longest + 32 : MANY;
    lq_session_options so = {.size = sizeof so, .context = (uint32_t)s->longest, .threads = (uint32_t)a->threads,
                             .activations = a->activations, .threads_prefill = (uint32_t)a->threads_prefill, .embed = 1,
                             .sequences = (uint32_t)(s->count < TOGETHER ? s->count : TOGETHER), .kv_tokens = pages};
    cli_kv_set(&a->kv, &so);
    if (code == 0) code = cli_plan_tell(c, s->model, &so, &s->plan);
    if (code == 0) code = cli_session(c, s->model, &so, &s->session);
    if (code == 0) {
        s->out = malloc((size_t)TOGETHER * s->info.embedding * sizeof *s->out);
        s->all = json_array();
        cli_watch(&s->session, 1);
        code = s->out && s->all ? embed_all(c, s) : cli_nomem(c);
        cli_unwatch();
        if (code == 0) code = c->json ? print_all(c, s) : cli_finish(c, 0);
    }
    lq_session_close(s->session);
    json_decref(s->all);
    for (size_t i = 0; i < s->count; i++) free(s->texts[i].ids);
    free(s->texts);
    free(s->out);
    return code;
}

static int check(cli *c, state *s) {
    static const char *const names[] = {"mean", "last", "first", "cls"};
    const args *a = s->a;
    size_t i = 0;
    while (a->pooling && i < CLI_COUNT(names) && strcmp(a->pooling, names[i]) != 0) i++;
    if (i == CLI_COUNT(names)) return cli_usage(c, "--pooling is one of mean, last, first (cls), not '%s'", a->pooling);
    s->pooling = i == 3 ? LQ_POOL_FIRST : (uint32_t)i;
    if (a->normalize && a->no_normalize) return cli_usage(c, "--normalize and --no-normalize exclude each other");
    if (a->text && a->file) return cli_usage(c, "the text is the one given or those of --file, not both");
    if (a->text && a->whole) return cli_usage(c, "--whole goes with --file or standard input");
    return cli_check_activations(c, a->activations);
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    state s = {.a = a, .info = {.size = sizeof s.info}};
    lq_ctx *ctx = NULL;
    char *read = NULL;
    size_t bytes = 0;
    const lq_model_options mo = cli_model_options(a->activations);
    int code = check(c, &s);
    if (code == 0 && !a->text) code = cli_read(c, a->file ? a->file : "-", &read, &bytes);
    if (code == 0) code = cli_open(c, a->threads, a->isa, &a->memory, &ctx);
    if (code == 0) {
        code = cli_model(c, ctx, a->model, &a->place, &mo, &s.model);
        if (code == 0) code = with_model(c, &s, read ? read : a->text, read ? bytes : strlen(a->text));
        lq_model_close(s.model);
        lq_close(ctx);
    }
    free(read);
    return code;
}

const cli_command cli_command_embed = {
    .name = "embed",
    .summary = "a vector for each text",
    .about = "Prints a line of numbers for each text: what the model makes of it, as a point. Texts of one meaning\n"
             "lie near each other as far as the model was trained for that; with vectors of length 1 the product of\n"
             "two is the cosine of their angle. Any model that lq runs gives vectors; those trained for embeddings\n"
             "give good ones. The same text has the same vector, to the last bit, in any company, and for any\n"
             "number of threads.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq embed my-model.gguf 'The ship is late.'\n"
                "  lq embed my-model.gguf -f titles.txt > vectors.txt\n"
                "  lq embed my-model.gguf --pooling last --json < titles.txt\n"
                "  lq embed my-model.gguf -f chapter.txt --whole --no-normalize\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
