/* cmd_run.c: `lq run`: let a model continue a text.
 *
 * Standard output gets the bytes the model makes and nothing else, as they come; a character is printed when its last
 * byte is there, and what may begin a stop string when it does not. Everything about the run (why it stopped, speed, the
 * hash of the last logits) goes to standard error. */
#include "cli_sampling.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct args {
    cli_place place;
    cli_memory memory;
    const char *model, *prompt, *file, *isa, *activations, *overflow, *max_ram, *draft;
    cli_list stop;
    cli_kv kv;
    cli_rope rope;
    cli_sampling sampling;
    uint64_t ngram, draft_tokens, keep, n, ctx, threads, threads_prefill;
    uint32_t special, ignore_eos, stats;
} args;

static const args defaults = {.place = CLI_PLACE, .sampling = CLI_SAMPLING, .n = 128};

static const cli_operand operands[] = {{"MODEL", offsetof(args, model), 0, "a GGUF file or a Hugging Face folder"}, {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "Text"},
    {.type = CLI_TEXT,
     .letter = 'p',
     .name = "prompt",
     .value = "TEXT",
     .at = offsetof(args, prompt),
     .help = "the text to continue; - reads standard input. For one that begins with two\n"
             "dashes write --prompt=TEXT",
     .also = "|text|input|"},
    {.type = CLI_TEXT,
     .letter = 'f',
     .name = "file",
     .value = "FILE",
     .at = offsetof(args, file),
     .help = "or the text in a file",
     .also = "|prompt-file|"},
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
    {.type = CLI_LIST,
     .name = "stop",
     .value = "TEXT",
     .at = offsetof(args, stop),
     .help = "end before this text, wherever it comes; may be repeated. A line's end is $'\\n' in most\n"
             "shells. What may begin one is printed when it does not",
     .also = "|stop-string|reverse-prompt|antiprompt|"},
    CLI_OPT_SAMPLING(args),
    {.type = CLI_GROUP, .name = "Guessing ahead: the same text, sooner"},
    {.type = CLI_UINT,
     .name = "ngram",
     .value = "N",
     .at = offsetof(args, ngram),
     .min = 0,
     .max = 32,
     .help = "where the last N tokens, or at least 2, occurred before, guess what followed there: for\n"
             "texts that repeat themselves or their prompt (3 is good; default 0: do not)",
     .also = "|lookup|prompt-lookup|"},
    CLI_OPT_DRAFT(args),
    {.type = CLI_UINT,
     .name = "draft-tokens",
     .value = "N",
     .at = offsetof(args, draft_tokens),
     .min = 1,
     .max = 64,
     .help = "guess at most N tokens at a time (default 8; fewer while guesses are wrong)",
     .also = "|draft-max|n-draft|num-draft|"},
    {.type = CLI_GROUP, .name = "How"},
    {.type = CLI_FLAG,
     .name = "stats",
     .at = offsetof(args, stats),
     .help = "tell more at the end: tokens that were known, room that is left, guesses that were right",
     .also = "|verbose|timings|"},
    CLI_OPT_DEVICE(args),
    CLI_OPT_GPU_LAYERS(args),
    CLI_OPT_NO_PACK(args),
    CLI_OPT_PACK_AT_OPEN(args),
    CLI_OPT_LOAD_AS(args),
    CLI_OPT_RUN_LORA(args),
    CLI_OPT_KV(args),
    CLI_OPT_ROPE(args),
    CLI_OPT_ACTIVATIONS(args),
    CLI_OPT_THREADS(args),
    CLI_OPT_THREADS_PREFILL(args),
    CLI_OPT_MAX_RAM(args),
    CLI_OPT_MEMORY(args),
    CLI_OPT_ISA(args),
    {.type = CLI_END}};

/* What a run has made so far. */
typedef struct state {
    const args *a;
    lq_model *model, *draft;
    lq_session *session;
    lq_model_info info;
    lq_plan_info plan;
    int32_t *ids; /* the generated ones */
    size_t count, room;
    uint64_t cached; /* tokens of the prompt that were known */
    uint64_t dropped; /* by --overflow slide, and then evaluated again */
    uint64_t again;
    uint64_t max_ram;
    bool slide;
    char *all; /* with --json: the whole text */
    size_t all_bytes, all_cap;
    const char *stop, *stop_text;
    cli_sampler how;
    json_t *logprobs; /* with --logprobs: of the generated ids */
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

/* What the last call dropped and evaluated again. */
static void note_dropped(state *s) {
    lq_seq_info now = {.size = sizeof now};
    if (lq_seq_info_get(s->session, 0, &now) != LQ_OK) return;
    s->dropped = now.dropped_in_all;
    s->again += now.again;
}

/* What a step made. */
static int take(cli *c, state *s, const lq_step_item *t) {
    static const char *const why[] = {"", "eos", "stop", "length", "context"};
    if (s->count + t->n > s->room) {
        int32_t *more = realloc(s->ids, (s->room = 2 * (s->count + t->n)) * sizeof *more);
        if (!more) return cli_nomem(c);
        s->ids = more;
    }
    memcpy(s->ids + s->count, t->ids, t->n * sizeof *t->ids);
    s->count += t->n;
    if (t->end) s->stop = t->end < CLI_COUNT(why) ? why[t->end] : "?";
    if (t->end == LQ_END_STOP) s->stop_text = s->a->stop.items[t->stop];
    return put(c, s, t->text, t->bytes);
}

/* Of a text that was interrupted: what was held back, since a stop string could begin so. */
static void finish_text(cli *c, state *s, lq_step_item *t) {
    lq_sampler o = *t->sampler;
    if (t->made == 0 || t->made > UINT32_MAX) return;
    o.max_tokens = (uint32_t)t->made;
    t->sampler = &o;
    lq_status status = lq_step(s->session, t, 1);
    if (status == LQ_E_CANCELLED) status = lq_step(s->session, t, 1); /* a request that came between two steps */
    if (status == LQ_OK) (void)take(c, s, t);
}

static int generate(cli *c, state *s) {
    const args *a = s->a;
    lq_sampler *o = &s->how.sampler;
    o->stop = a->stop.items, o->n_stop = (uint32_t)a->stop.count;
    o->max_tokens = (uint32_t)a->n;
    o->ignore_eos = a->ignore_eos;
    lq_step_item t = {.size = sizeof t, .sampler = o};
    int code = 0;
    s->stop = "length";
    while (code == 0 && a->n > 0 && !t.end) {
        const lq_status status = cli_interrupted() ? LQ_E_CANCELLED : lq_step(s->session, &t, 1);
        if (status != LQ_OK) {
            code = cli_fail(c, status, NULL);
            if (status == LQ_E_CANCELLED) finish_text(c, s, &t);
            return code;
        }
        note_dropped(s);
        for (uint32_t i = 0; i < t.n && code == 0; i++)
            code = cli_logprobs_add(c, &a->sampling, s->model, s->session, t.row + i, t.ids[i], s->logprobs);
        if (code == 0) code = take(c, s, &t);
    }
    return code;
}

/* --stats: what the line that always comes does not tell. */
static void print_more(const state *s, const lq_stats *t, size_t prompt_tokens) {
    lq_session_info si = {.size = sizeof si};
    const uint32_t used = lq_seq_length(s->session, 0);
    if (lq_session_info_get(s->session, &si) != LQ_OK) return;
    fprintf(stderr, "prefill: %llu tokens in %.3f s; %llu of %zu of the prompt were known\n",
            (unsigned long long)t->prefill_tokens, t->prefill_seconds, (unsigned long long)s->cached, prompt_tokens);
    fprintf(stderr, "decode: %llu tokens in %.3f s\n", (unsigned long long)t->decode_tokens, t->decode_seconds);
    fprintf(stderr, "context: %u of %u tokens used, %u left; the model was trained for %u\n", used, si.context,
            si.context - used, si.trained_context);
    if (s->a->ngram || s->a->draft)
        fprintf(stderr, "guesses: %llu tokens, %llu right (%.0f %%)\n", (unsigned long long)t->drafted,
                (unsigned long long)t->accepted, t->drafted ? 100.0 * (double)t->accepted / (double)t->drafted : 0.0);
    fprintf(stderr, "memory: %.1f MiB of keys and values, %.1f MiB of activations\n",
            (double)(si.kv_bytes + si.device_kv_bytes) / 1048576.0,
            (double)(si.activation_bytes + si.device_activation_bytes) / 1048576.0);
}

static void print_stats(const state *s, const lq_stats *t, size_t prompt_tokens, uint32_t context) {
    if (isatty(STDERR_FILENO)) fputc('\n', stderr);
    if (strcmp(s->stop, "eos") == 0) fputs("stopped: end of text\n", stderr);
    else if (s->stop_text) fprintf(stderr, "stopped: before '%s'\n", cli_safe(s->stop_text).s);
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
    if (s->a->stats) print_more(s, t, prompt_tokens);
}

static double rate(double amount, double seconds) { return seconds > 0 ? amount / seconds : 0; }

static int print_json(cli *c, const state *s, const lq_stats *t, size_t prompt_tokens, uint32_t context) {
    json_t *o = json_object(), *ids = json_array(), *prefill = json_object(), *decode = json_object();
    char hash[16];
    snprintf(hash, sizeof hash, "%08x", t->last_logits_hash);
    for (size_t i = 0; i < s->count; i++) (void)json_array_append_new(ids, json_integer(s->ids[i]));
    cli_set_text(o, "model", s->a->model);
    cli_set(o, "text", cli_json_text(s->all ? s->all : "", s->all_bytes));
    cli_set(o, "ids", ids);
    if (s->a->sampling.logprobs != CLI_NO_LOGPROBS) cli_set(o, "logprobs", json_incref(s->logprobs));
    cli_set_int(o, "prompt_tokens", prompt_tokens);
    cli_set_int(o, "tokens", s->count);
    cli_set_text(o, "stop", s->stop);
    if (s->stop_text) cli_set_text(o, "stop_string", s->stop_text);
    cli_set_int(o, "cached", s->cached);
    cli_set_int(o, "context", context);
    cli_set_int(o, "context_left", context - lq_seq_length(s->session, 0));
    cli_set_int(o, "drafted", t->drafted);
    cli_set_int(o, "accepted", t->accepted);
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
    const lq_status status = lq_decode(s->session, &(lq_item){.ids = prompt, .count = n, .logits_from = n - 1}, 1);
    if (status == LQ_E_NUMERIC) {
        return cli_fail(c, status, "`lq info MODEL --check-tensors` finds weights that are not finite.");
    }
    if (status != LQ_OK) return cli_fail(c, status, NULL);
    note_dropped(s);
    lq_seq_info seq = {.size = sizeof seq};
    if (lq_seq_info_get(s->session, 0, &seq) == LQ_OK) s->cached = seq.cached;
    code = generate(c, s);
    if (code != 0 && !cli_interrupted()) return code;
    if (lq_session_stats(s->session, &t) == LQ_OK) {
        if (!c->json) print_stats(s, &t, n, context);
        else if (code == 0) code = print_json(c, s, &t, n, context);
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
                             .ngram = (uint32_t)a->ngram, .draft = s->draft,
                             .draft_tokens = (uint32_t)a->draft_tokens, .max_bytes = s->max_ram};
    cli_kv_set(&a->kv, &so);
    cli_rope_set(&a->rope, &so);
    int code = cli_sampler_open(c, &a->sampling, s->model, &s->how);
    const uint32_t flags = LQ_TOKENIZE_BOS | (a->special ? LQ_TOKENIZE_PARSE_SPECIAL : 0u);
    if (code == 0 && !(s->logprobs = json_array())) code = cli_nomem(c);
    if (code == 0) code = cli_tokenize(c, s->model, text, bytes, flags, &prompt, &n);
    if (code == 0) code = cli_plan_tell(c, s->model, &so, &s->plan);
    if (code == 0) code = cli_session(c, s->model, &so, &s->session);
    if (code == 0) {
        lq_session_info si = {.size = sizeof si};
        status = lq_session_info_get(s->session, &si);
        cli_watch(&s->session, 1);
        if (status != LQ_OK) code = cli_fail(c, status, NULL);
        else code = converse(c, s, prompt, n, si.context);
        cli_unwatch();
    }
    lq_session_close(s->session);
    cli_sampler_free(&s->how);
    json_decref(s->logprobs);
    free(s->ids);
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

static int check_text(cli *c, const args *a) {
    if (!a->prompt && !a->file) return cli_usage(c, "a text to continue is missing: --prompt TEXT or --file FILE");
    if (a->prompt && a->file) return cli_usage(c, "the text is that of --prompt or that of --file, not both");
    if (a->draft_tokens && !a->ngram && !a->draft) return cli_usage(c, "--draft-tokens goes with --ngram or --draft");
    for (size_t i = 0; i < a->stop.count; i++)
        if (!a->stop.items[i][0]) return cli_usage(c, "--stop: an empty text would end before anything");
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
    if (code == 0) code = check_text(c, a);
    if (code == 0) code = cli_sampling_check(c, &a->sampling);
    if (code == 0 && a->file) code = cli_read(c, a->file, &text, &bytes);
    else if (code == 0 && strcmp(a->prompt, "-") == 0) code = cli_read(c, "-", &text, &bytes);
    if (code == 0) code = cli_open(c, a->threads, a->isa, &a->memory, &ctx);
    if (code == 0) {
        code = cli_model(c, ctx, a->model, &a->place, &mo, &s.model);
        if (code == 0) code = cli_draft(c, ctx, a->draft, &a->place, &mo, &s.draft);
        if (code == 0) code = with_model(c, &s, text ? text : a->prompt, text ? bytes : strlen(a->prompt));
        lq_model_close(s.draft);
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
             "end-of-text token, before a text that --stop names, after -n tokens, or when the context is full\n"
             "(see --overflow); Ctrl-C ends it at once.\n"
             "Afterwards standard error tells the speed, the memory bandwidth reached, and a hash of the last\n"
             "logits: equal hashes mean equal results to the last bit, for any number of threads. With --device\n"
             "it says first what runs where, and what memory that takes.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq run my-model.gguf -p 'Once upon a time'\n"
                "  lq run my-model.gguf -p 'Dear Sir,' -n 200 --temp 0.8 --top-p 0.95 --seed 7\n"
                "  lq run my-model.gguf -f notes.txt --stop $'\\n\\n' > continuation.txt\n"
                "  lq run my-model.gguf -p - --ngram 3 --stats < program.c\n"
                "  lq run my-model.gguf -p 'Dear Sir,' --draft my-small-model.gguf\n"
                "  lq run my-model.gguf -p 'Once upon a time' --device vulkan:0 --gpu-layers 20\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
