/* cmd_run.c: `lq run`: let a model continue a text.
 *
 * Standard output gets the bytes the model makes and nothing else, as they come; a character is printed when its last
 * byte is there. Everything about the run (why it stopped, speed, the hash of the last logits) goes to standard
 * error. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct args {
    cli_place place;
    cli_memory memory;
    const char *model, *prompt, *isa, *activations, *overflow, *max_ram;
    cli_kv kv;
    uint64_t keep, n, top_k, seed, ctx, threads, threads_prefill;
    double temp, top_p, min_p;
    uint32_t special, ignore_eos;
} args;

static const args defaults = {.place = CLI_PLACE, .n = 128};

static const cli_operand operands[] = {{"MODEL", offsetof(args, model), 0, "a GGUF file or a Hugging Face folder"}, {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "Text"},
    {.type = CLI_TEXT,
     .letter = 'p',
     .required = 1,
     .name = "prompt",
     .value = "TEXT",
     .at = offsetof(args, prompt),
     .help = "the text to continue; - reads standard input. For one that begins with two\n"
             "dashes write --prompt=TEXT",
     .also = "|text|input|"},
    {.type = CLI_UINT,
     .letter = 'n',
     .name = "tokens",
     .value = "N",
     .at = offsetof(args, n),
     .min = 0,
     .max = 16777216,
     .help = "at most N new tokens (default 128; 0 evaluates the prompt alone)",
     .also = "|n-predict|max-tokens|predict|length|"},
    {.type = CLI_UINT,
     .letter = 'c',
     .name = "ctx",
     .value = "N",
     .at = offsetof(args, ctx),
     .min = 2,
     .max = 16777216,
     .help = "context in tokens, prompt and answer together (default: as trained, or the power of\n"
             "two that fits into memory)",
     .also = "|context|ctx-size|n-ctx|"},
    {.type = CLI_TEXT,
     .name = "overflow",
     .value = "HOW",
     .at = offsetof(args, overflow),
     .help = "when the context is full: stop (default: the answer ends; a prompt that is longer is\n"
             "refused), or slide: half of the tokens behind the first --keep are dropped, the\n"
             "oldest, what follows is evaluated again, and the end tells how many that were",
     .values = "stop slide"},
    {.type = CLI_UINT,
     .name = "keep",
     .value = "N",
     .at = offsetof(args, keep),
     .min = 1,
     .max = 16777216,
     .help = "with --overflow slide: the first N tokens stay (default: the one that begins\n"
             "every text, where the model wants one)",
     .also = "|n-keep|"},
    {.type = CLI_FLAG,
     .name = "special",
     .at = offsetof(args, special),
     .help = "text in the prompt that spells a special token becomes that token.\n"
             "Without it such text is plain text, so that input cannot pose as control",
     .also = "|parse-special|"},
    {.type = CLI_FLAG, .name = "ignore-eos", .at = offsetof(args, ignore_eos), .help = "go on after the end-of-text token"},
    {.type = CLI_GROUP, .name = "Choice of the next token"},
    {.type = CLI_REAL,
     .name = "temp",
     .value = "T",
     .at = offsetof(args, temp),
     .min = 0,
     .max = 100,
     .help = "0 (default) = always the most likely token; 0.8 = lively; above 1 = wild",
     .also = "|temperature|"},
    {.type = CLI_UINT,
     .name = "top-k",
     .value = "K",
     .at = offsetof(args, top_k),
     .min = 0,
     .max = 4294967295.0,
     .help = "only among the K most likely (0 = all)"},
    {.type = CLI_REAL,
     .name = "top-p",
     .value = "P",
     .at = offsetof(args, top_p),
     .min = 0,
     .max = 1,
     .help = "then only the smallest set with probability P (0 or 1 = all)"},
    {.type = CLI_REAL,
     .name = "min-p",
     .value = "P",
     .at = offsetof(args, min_p),
     .min = 0,
     .max = 1,
     .help = "then only tokens with at least P times the best one's probability"},
    {.type = CLI_UINT,
     .name = "seed",
     .value = "S",
     .at = offsetof(args, seed),
     .min = 0,
     .max = 18446744073709549568.0, /* the largest double below 2^64 */
     .help = "the same seed, prompt and model give the same text (default 0)"},
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
    CLI_OPT_MAX_RAM(args),
    CLI_OPT_MEMORY(args),
    CLI_OPT_ISA(args),
    {.type = CLI_END}};

/* What a run has made so far. Ids from `base` on are not complete characters yet; `printed` bytes of them are out. */
typedef struct state {
    const args *a;
    lq_model *model;
    lq_session *session;
    lq_model_info info;
    lq_plan_info plan;
    int32_t *ids; /* the generated ones */
    size_t count, base, printed;
    char *text; /* scratch of the detokenizer */
    size_t text_cap;
    uint64_t dropped; /* by --overflow slide, and then evaluated again */
    uint64_t again;
    uint64_t max_ram;
    bool slide;
    char *all; /* with --json: the whole text */
    size_t all_bytes, all_cap;
    bool after_text; /* the prompt has more than BOS */
    const char *stop;
} state;

static int put(cli *c, state *s, const char *bytes, size_t n) {
    if (n == 0) return 0;
    if (!c->json) {
        if (fwrite(bytes, 1, n, stdout) != n || fflush(stdout) != 0) return cli_finish(c, 0);
        return 0;
    }
    if (s->all_bytes + n > s->all_cap) {
        char *more = realloc(s->all, (s->all_bytes + n) * 2);
        if (!more) return cli_nomem(c);
        s->all = more, s->all_cap = (s->all_bytes + n) * 2;
    }
    memcpy(s->all + s->all_bytes, bytes, n);
    s->all_bytes += n;
    return 0;
}

/* Detokenize the ids from `base` on into s->text; *n = the bytes. */
static int detokenize(cli *c, state *s, uint32_t flags, size_t *n) {
    if (s->after_text || s->base > 0) flags |= LQ_DETOKENIZE_MIDDLE;
    for (int attempt = 0;; attempt++) {
        *n = s->text_cap;
        const lq_status status = lq_detokenize(s->model, s->ids + s->base, s->count - s->base, flags, s->text, n);
        if (status == LQ_OK) return 0;
        if (attempt > 0 || *n <= s->text_cap) return cli_fail(c, status, NULL);
        char *more = realloc(s->text, *n * 2);
        if (!more) return cli_nomem(c);
        s->text = more, s->text_cap = *n * 2;
    }
}

/* Print what the newest id made known. With `last` also the bytes of a character that will not be completed. */
static int stream(cli *c, state *s, bool last) {
    size_t known, full;
    int code = detokenize(c, s, 0, &full);
    if (code == 0) code = detokenize(c, s, last ? 0 : LQ_DETOKENIZE_STREAM, &known);
    if (code != 0) return code;
    if (known > s->printed) code = put(c, s, s->text + s->printed, known - s->printed);
    s->printed = known > s->printed ? known : s->printed;
    if (known == full) s->base = s->count, s->printed = 0; /* nothing held back: begin anew here */
    return code;
}

/* What the last call dropped and evaluated again. */
static void note_dropped(state *s) {
    lq_seq_info now = {.size = sizeof now};
    if (lq_seq_info_get(s->session, 0, &now) != LQ_OK) return;
    s->dropped = now.dropped_in_all;
    s->again += now.again;
}

static int generate(cli *c, state *s, uint32_t context) {
    const args *a = s->a;
    const lq_sampler sampler = {.size = sizeof sampler,
                                .temperature = (float)a->temp,
                                .top_k = (uint32_t)a->top_k,
                                .top_p = (float)a->top_p,
                                .min_p = (float)a->min_p,
                                .seed = a->seed};
    int code = 0;
    s->stop = "length";
    while (s->count < a->n && code == 0) {
        int32_t id;
        lq_status status = lq_sample(s->session, 0, &sampler, &id);
        if (status != LQ_OK) return cli_fail(c, status, NULL);
        if (id == s->info.eos && !a->ignore_eos) {
            s->stop = "eos";
            break;
        }
        s->ids[s->count++] = id;
        code = stream(c, s, false);
        if (code != 0 || s->count == a->n) break;
        if (!s->slide && lq_seq_length(s->session, 0) >= context) {
            s->stop = "context";
            break;
        }
        status = cli_interrupted() ? LQ_E_CANCELLED : lq_decode(s->session, &(lq_item){.ids = &id, .count = 1}, 1);
        if (status != LQ_OK) code = cli_fail(c, status, NULL);
        else note_dropped(s);
    }
    if (code == 0 || cli_interrupted()) {
        const int more = stream(c, s, true);
        if (code == 0) code = more;
    }
    return code;
}

static void print_stats(const state *s, const lq_stats *t, size_t prompt_tokens, uint32_t context) {
    if (isatty(STDERR_FILENO)) fputc('\n', stderr);
    if (strcmp(s->stop, "eos") == 0) fputs("stopped: end of text\n", stderr);
    else if (strcmp(s->stop, "context") == 0) fprintf(stderr, "stopped: the context of %u tokens is full\n", context);
    if (s->dropped)
        fprintf(stderr, "dropped %llu tokens to make room in the context of %u, and evaluated %llu again\n",
                (unsigned long long)s->dropped, context, (unsigned long long)s->again);
    fprintf(stderr, "prompt %zu tokens", prompt_tokens);
    if (t->prefill_tokens && t->prefill_seconds > 0) fprintf(stderr, ", %.1f tokens/s", (double)t->prefill_tokens / t->prefill_seconds);
    fprintf(stderr, "; generated %zu tokens", s->count);
    if (t->decode_tokens && t->decode_seconds > 0) {
        fprintf(stderr, ", %.1f tokens/s, %.2f GB/s", (double)t->decode_tokens / t->decode_seconds,
                (double)t->decode_bytes / t->decode_seconds * 1e-9);
    }
    fprintf(stderr, "; logits %08x\n", t->last_logits_hash);
    cli_border_print(t);
}

static double rate(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

static int print_json(cli *c, const state *s, const lq_stats *t, size_t prompt_tokens) {
    json_t *o = json_object(), *ids = json_array(), *prefill = json_object(), *decode = json_object();
    char hash[16];
    snprintf(hash, sizeof hash, "%08x", t->last_logits_hash);
    for (size_t i = 0; i < s->count; i++) (void)json_array_append_new(ids, json_integer(s->ids[i]));
    cli_set_text(o, "model", s->a->model);
    cli_set(o, "text", cli_json_text(s->all ? s->all : "", s->all_bytes));
    cli_set(o, "ids", ids);
    cli_set_int(o, "prompt_tokens", prompt_tokens);
    cli_set_int(o, "tokens", s->count);
    cli_set_text(o, "stop", s->stop);
    cli_set_int(o, "dropped", s->dropped);
    cli_set_int(o, "evaluated_again", s->again);
    cli_set_int(prefill, "tokens", t->prefill_tokens);
    cli_set_real(prefill, "seconds", t->prefill_seconds);
    cli_set_real(prefill, "tokens_per_s", rate((double)t->prefill_tokens, t->prefill_seconds));
    cli_set_int(decode, "tokens", t->decode_tokens);
    cli_set_real(decode, "seconds", t->decode_seconds);
    cli_set_real(decode, "tokens_per_s", rate((double)t->decode_tokens, t->decode_seconds));
    cli_set_real(decode, "bytes_per_s", rate((double)t->decode_bytes, t->decode_seconds));
    cli_set(o, "prefill", prefill);
    cli_set(o, "decode", decode);
    if (s->plan.device[0]) cli_set(o, "device", cli_plan_json(&s->plan));
    cli_border_json(o, t);
    cli_set_text(o, "logits_hash", hash);
    return cli_json_print(c, o, CLI_OK);
}

/* The prompt is evaluated, then tokens are made. */
static int converse(cli *c, state *s, const int32_t *prompt, size_t n, uint32_t context) {
    lq_stats t = {.size = sizeof t};
    int code = 0;
    if (n == 0) return cli_error(c, LQ_E_ARG, "the prompt is empty and the model wants no token before a text");
    if (n > context && !s->slide)
        return cli_error(c, LQ_E_CONTEXT, "the prompt has %zu tokens, the context %u; see --ctx and --overflow", n,
                         context);
    s->after_text = n > 1 || prompt[0] != s->info.bos;
    const lq_status status = lq_decode(s->session, &(lq_item){.ids = prompt, .count = n, .logits_from = n - 1}, 1);
    if (status == LQ_E_NUMERIC) {
        return cli_fail(c, status, "`lq info MODEL --check-tensors` finds weights that are not finite.");
    }
    if (status != LQ_OK) return cli_fail(c, status, NULL);
    note_dropped(s);
    code = generate(c, s, context);
    if (code != 0 && !cli_interrupted()) return code;
    if (lq_session_stats(s->session, &t) == LQ_OK) {
        if (!c->json) print_stats(s, &t, n, context);
        else if (code == 0) code = print_json(c, s, &t, n);
    }
    return code;
}

static int with_model(cli *c, state *s, const char *text, size_t bytes) {
    const args *a = s->a;
    int32_t *prompt = NULL;
    size_t n = 0;
    lq_status status = lq_model_info_get(s->model, &s->info);
    if (status != LQ_OK) return cli_fail(c, status, NULL);
    lq_session_options so = {.size = sizeof so, .context = (uint32_t)a->ctx, .threads = (uint32_t)a->threads,
                                   .activations = a->activations, .threads_prefill = (uint32_t)a->threads_prefill,
                                   .overflow = s->slide ? "slide" : NULL, .overflow_keep = (uint32_t)a->keep,
                                   .max_bytes = s->max_ram};
    cli_kv_set(&a->kv, &so);
    int code = cli_tokenize(c, s->model, text, bytes, LQ_TOKENIZE_BOS | (a->special ? LQ_TOKENIZE_PARSE_SPECIAL : 0u),
                            &prompt, &n);
    if (code == 0) code = cli_plan_tell(c, s->model, &so, &s->plan);
    if (code == 0) code = cli_session(c, s->model, &so, &s->session);
    if (code == 0) {
        lq_session_info si = {.size = sizeof si};
        status = lq_session_info_get(s->session, &si);
        /* No more ids can be made than the context has room for, unless it slides. */
        const uint64_t room = s->slide || a->n < si.context ? a->n : si.context;
        cli_watch(&s->session, 1);
        if (status != LQ_OK) code = cli_fail(c, status, NULL);
        else if (!(s->ids = malloc((size_t)(room + 1) * sizeof *s->ids))) code = cli_nomem(c);
        else code = converse(c, s, prompt, n, si.context);
        cli_unwatch();
    }
    lq_session_close(s->session);
    free(s->ids);
    free(s->text);
    free(s->all);
    free(prompt);
    return code;
}

static int check_overflow(cli *c, state *s) {
    const args *a = s->a;
    s->slide = a->overflow && strcmp(a->overflow, "slide") == 0;
    if (a->overflow && !s->slide && strcmp(a->overflow, "stop") != 0)
        return cli_usage(c, "--overflow is 'stop' or 'slide', not '%s'", a->overflow);
    if (a->keep && !s->slide) return cli_usage(c, "--keep goes with --overflow slide");
    return 0;
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    state s = {.a = a, .info = {.size = sizeof s.info}};
    lq_ctx *ctx = NULL;
    char *text = NULL;
    size_t bytes = 0;
    const lq_model_options mo = cli_model_options(a->activations);
    int code = cli_check_activations(c, a->activations);
    if (code == 0) code = check_overflow(c, &s);
    if (code == 0) code = cli_ram(c, a->max_ram, &s.max_ram);
    if (code == 0 && strcmp(a->prompt, "-") == 0) code = cli_read(c, "-", &text, &bytes);
    if (code == 0) code = cli_open(c, a->threads, a->isa, &a->memory, &ctx);
    if (code == 0) {
        code = cli_model(c, ctx, a->model, &a->place, &mo, &s.model);
        if (code == 0) code = with_model(c, &s, text ? text : a->prompt, text ? bytes : strlen(a->prompt));
        lq_model_close(s.model);
        lq_close(ctx);
    }
    free(text);
    return code;
}

const cli_command cli_command_run = {
    .name = "run",
    .summary = "let a model continue a text",
    .about = "Prints the continuation on standard output as it is made, and nothing else there. Ends at the\n"
             "end-of-text token, after -n tokens, or when the context is full (see --overflow); Ctrl-C ends it at\n"
             "once. Afterwards standard error tells the speed, the memory bandwidth reached, and a hash of the\n"
             "last logits: equal hashes mean equal results to the last bit, for any number of threads. With\n"
             "--device it says first what runs where, and what memory that takes.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq run my-model.gguf -p 'Once upon a time'\n"
                "  lq run my-model.gguf -p 'Dear Sir,' -n 200 --temp 0.8 --top-p 0.95 --seed 7\n"
                "  lq run my-model.gguf -p - < notes.txt > continuation.txt\n"
                "  lq run my-model.gguf -p 'Once upon a time' --device vulkan:0 --gpu-layers 20\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
