/* cmd_bench_quality.c: `lq bench quality`: what each quantization scheme costs in quality, and what it gives in size
 * and speed.
 *
 * Writes the model once per scheme, a file or a directory as the scheme has it, into a temporary folder (removed on
 * every way out), scores all of them and the finished models it was given against the FP16 one in a single sweep per
 * text, and times each. The tables on standard output are the product. */
#include "bench_speed.h"
#include "cli_gate.h"

#include <errno.h>
#include <ftw.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_SCHEMES = 64 /* candidates, and the reference */, MAX_TEXTS = 16 };
enum { SPEED_PREFILL = 256, SPEED_DECODE = 64, SPEED_REPEAT = 3 };
#define DEFAULT_TOKENS 34048 /* over all texts: half of them are scored */
#define REFERENCE "f16"

typedef struct args {
    cli_place place;
    const char *model, *schemes, *load_as, *importance, *keep, *activations;
    cli_kv kv;
    cli_list texts, candidates;
    uint64_t max_tokens, ctx, threads;
    cli_gate gate;
} args;

static const args defaults = {.place = CLI_PLACE};
static const cli_operand operands[] = {{0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "What to measure"},
    {.type = CLI_TEXT,
     .letter = 'm',
     .name = "model",
     .value = "SRC",
     .at = offsetof(args, model),
     .help = "the original: a Hugging Face folder or GGUF file (default: the bundled one)",
     .also = "|source|src|"},
    {.type = CLI_TEXT,
     .letter = 's',
     .name = "schemes",
     .value = "A,B,..",
     .at = offsetof(args, schemes),
     .help = "which schemes, with commas between them (default: all that make GGUF files);\n"
             "those of Hugging Face directories too: int8, nf4, gptq-4bit-g128, awq-4bit-g128",
     .also = "|scheme|types|bits|formats|",
     .values = CLI_SCHEMES},
    {.type = CLI_TEXT,
     .name = "load-as",
     .value = "A,B,..",
     .at = offsetof(args, load_as),
     .help = "also, or with no --schemes only, the FP16 file with its layers quantized to these\n"
             "formats while it opens: nf4, nf4_dq, int8, i4_g128, ...",
     .also = "|load-in-4bit|load-in-8bit|on-load|",
     .values = CLI_SCHEMES},
    {.type = CLI_LIST,
     .name = "candidate",
     .value = "MODEL",
     .at = offsetof(args, candidates),
     .help = "also, or with no --schemes only, a finished model with the vocabulary of SRC: a GGUF\n"
             "file or Hugging Face directory, whoever quantized it; give it several times for\n"
             "several. Its bytes are those of its tensors",
     .also = "|candidates|models|with|beside|against|compare|peer|"},
    CLI_OPT_IMPORTANCE(args),
    {.type = CLI_LIST,
     .letter = 'x',
     .name = "text",
     .value = "FILE",
     .at = offsetof(args, texts),
     .help = "a text to score on; give it several times for several domains (default:\n"
             "the bundled prose, technical, c and python)",
     .also = "|file|corpus|texts|"},
    {.type = CLI_UINT,
     .name = "max-tokens",
     .value = "N",
     .at = offsetof(args, max_tokens),
     .min = 4,
     .max = 1e15,
     .help = "use N tokens in all, divided among the texts; the second half of each window\n"
             "is scored (default 34048, which scores at least 16,000)",
     .also = "|tokens|limit|"},
    {.type = CLI_UINT,
     .letter = 'c',
     .name = "ctx",
     .value = "N",
     .at = offsetof(args, ctx),
     .min = 2,
     .max = 16777216,
     .help = "tokens per window (default 512, or the trained context where that is smaller)",
     .also = "|context|window|"},
    CLI_OPT_KV(args),
    CLI_OPT_ACTIVATIONS(args),
    CLI_OPT_GATE(args),
    {.type = CLI_GROUP, .name = "How"},
    CLI_OPT_DEVICE(args),
    CLI_OPT_GPU_LAYERS(args),
    CLI_OPT_THREADS(args),
    {.type = CLI_TEXT,
     .letter = 'k',
     .name = "keep",
     .value = "DIR",
     .at = offsetof(args, keep),
     .help = "write the quantized models to DIR and leave them there",
     .also = "|output|out|dir|"},
    {.type = CLI_END}};

typedef enum {
    MADE,   /* by a scheme */
    LOADED, /* the reference's file, quantized as it opens */
    GIVEN   /* a finished model */
} origin;

/* One candidate through all the steps. entries[0] is the reference and may not be shown. */
typedef struct entry {
    char name[64];
    char path[4200];
    origin from;
    bool written, shown; /* written: a file or directory of ours lies at `path` */
    double bits_per_weight;
    uint64_t bytes;
    lq_model *model;
    lq_session *session;
    lq_eval_result total;
    lq_eval_result domain[MAX_TEXTS];
    bench_speed speed;
} entry;

typedef struct bench {
    const args *a;
    char model_path[4200], text_paths[MAX_TEXTS][4200], text_names[MAX_TEXTS][24], dir[4100];
    size_t texts;
    bool temporary;
    lq_ctx *ctx;
    entry *entries;
    size_t count;
    uint32_t window;
    cli_progress progress;
    uint64_t done, total; /* of all phases of one bar */
    char what[64];
    double start;
} bench;

/* ------------------------------------------------------------------------------------------------ what to do */

/* The bundled data: beside the build folder, installed, or in the current folder. */
static bool find_data(char *dir, size_t n) {
    static const char *const places[] = {"../bench/data", "../share/libquant"};
    char exe[4000];
    struct stat st;
    const ssize_t len = readlink("/proc/self/exe", exe, sizeof exe - 1);
    if (len > 0) {
        exe[len] = 0;
        *strrchr(exe, '/') = 0;
        for (size_t i = 0; i < CLI_COUNT(places); i++) {
            snprintf(dir, n, "%s/%s", exe, places[i]);
            char probe[4200];
            snprintf(probe, sizeof probe, "%s/pocket/config.json", dir);
            if (stat(probe, &st) == 0) return true;
        }
    }
    snprintf(dir, n, "bench/data");
    return stat("bench/data/pocket/config.json", &st) == 0;
}

static void name_text(bench *b, const char *path) {
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    char name[20]; /* leaves room for a number in text_names */
    snprintf(name, sizeof name, "%.19s", cli_safe(base).s);
    char *dot = strrchr(name, '.');
    if (dot && dot != name) *dot = 0;
    snprintf(b->text_names[b->texts], sizeof b->text_names[0], "%s", name);
    for (size_t i = 0; i < b->texts; i++) {
        /* The same name in two folders: the number keeps them apart. */
        if (strcmp(b->text_names[i], name) != 0) continue;
        snprintf(b->text_names[b->texts], sizeof b->text_names[0], "%s-%u", name, (unsigned)(b->texts + 1) % 100);
    }
    snprintf(b->text_paths[b->texts++], sizeof b->text_paths[0], "%s", path);
}

static int choose_inputs(cli *c, bench *b) {
    static const char *const bundled[] = {"prose", "technical", "c", "python"};
    char dir[4100];
    const args *a = b->a;
    if (a->texts.count > MAX_TEXTS) return cli_usage(c, "--text: at most %d texts", MAX_TEXTS);
    if ((!a->model || a->texts.count == 0) && !find_data(dir, sizeof dir)) {
        return cli_error(c, LQ_E_IO,
                         "the bundled model and texts were not found (../bench/data or ../share/libquant beside "
                         "the program, or bench/data here); name others with --model and --text");
    }
    if (a->model) snprintf(b->model_path, sizeof b->model_path, "%s", a->model);
    else snprintf(b->model_path, sizeof b->model_path, "%s/pocket", dir);
    for (size_t i = 0; i < a->texts.count; i++) name_text(b, a->texts.items[i]);
    for (size_t i = 0; i < CLI_COUNT(bundled) && a->texts.count == 0; i++) {
        char path[4200];
        snprintf(path, sizeof path, "%s/text/%s.txt", dir, bundled[i]);
        name_text(b, path);
    }
    return 0;
}

static int add_entry(cli *c, bench *b, origin from, const char *name, size_t n) {
    static const char *const said_by[] = {[MADE] = "--schemes", [LOADED] = "--load-as", [GIVEN] = "--candidate"};
    entry *e = &b->entries[b->count];
    if (n == 0) return 0;
    if (b->count == MAX_SCHEMES)
        return cli_usage(c, "%s: at most %d candidates in all", said_by[from], MAX_SCHEMES - 1);
    if (n >= sizeof e->name) return cli_usage(c, "%s: '%.*s...' is none", said_by[from], 40, name);
    snprintf(e->name, sizeof e->name, "%.*s", (int)n, name);
    e->from = from;
    e->shown = true;
    b->count++;
    return 0;
}

static int add_list(cli *c, bench *b, origin from, const char *list) {
    int code = 0;
    for (size_t n; list && *list && code == 0; list += n + (list[n] == ',')) {
        n = strcspn(list, ",");
        code = add_entry(c, b, from, list, n);
    }
    return code;
}

/* A finished model is called by the last part of its path, with a number where another candidate is so too. */
static int add_given(cli *c, bench *b, const char *path) {
    enum { LONGEST = 40 };
    char part[LONGEST + 1], name[sizeof b->entries->name - 8];
    size_t end = strlen(path), begin;
    if (end == 0 || end >= sizeof b->entries->path) return cli_usage(c, "--candidate: '%.40s' is no path", path);
    while (end > 0 && path[end - 1] == '/') end--;
    if (end == 0) return cli_usage(c, "--candidate: '%.40s' is no path of a model", path);
    for (begin = end; begin > 0 && path[begin - 1] != '/';) begin--;
    if (end - begin > LONGEST) begin = end - LONGEST; /* its end tells more */
    while (begin + 1 < end && ((unsigned char)path[begin] & 0xC0) == 0x80) begin++;
    snprintf(part, sizeof part, "%.*s", (int)(end - begin), path + begin);
    snprintf(name, sizeof name, "%.*s", (int)sizeof name - 1, cli_safe(part).s);
    bool again = false;
    for (size_t i = 1; i < b->count; i++) again |= strcmp(b->entries[i].name, name) == 0;
    char numbered[sizeof b->entries->name];
    snprintf(numbered, sizeof numbered, again ? "%s-%zu" : "%s", name, b->count);
    const int code = add_entry(c, b, GIVEN, numbered, strlen(numbered));
    if (code == 0) snprintf(b->entries[b->count - 1].path, sizeof b->entries->path, "%s", path);
    return code;
}

/* Was it said which? Otherwise all schemes of GGUF files are meant. */
static bool chosen(const args *a) { return a->schemes || a->load_as || a->candidates.count; }

/* entries[0] = the reference, then the candidates in the order asked for. */
static int choose_candidates(cli *c, bench *b) {
    const args *a = b->a;
    int code = add_entry(c, b, MADE, REFERENCE, strlen(REFERENCE));
    b->entries[0].shown = false;
    for (size_t i = 0; i < lq_scheme_count() && !chosen(a) && code == 0; i++) {
        const char *name = lq_scheme_name((uint32_t)i, NULL);
        if (!cli_scheme_is_directory(name)) code = add_entry(c, b, MADE, name, strlen(name));
    }
    if (code == 0) code = add_list(c, b, MADE, a->schemes);
    if (code == 0) code = add_list(c, b, LOADED, a->load_as);
    for (size_t i = 0; i < a->candidates.count && code == 0; i++) code = add_given(c, b, a->candidates.items[i]);
    if (code == 0 && b->count == 1) return cli_usage(c, "--schemes names none");
    return code;
}

static int choose_folder(cli *c, bench *b) {
    if (b->a->keep) {
        snprintf(b->dir, sizeof b->dir, "%s", b->a->keep);
        if (mkdir(b->dir, 0777) != 0 && errno != EEXIST) {
            return cli_error(c, LQ_E_IO, "--keep %s: %s", b->dir, strerror(errno));
        }
        return 0;
    }
    const char *tmp = getenv("TMPDIR");
    snprintf(b->dir, sizeof b->dir, "%s/lq-bench.XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(b->dir)) return cli_error(c, LQ_E_IO, "%s: %s", b->dir, strerror(errno));
    b->temporary = true;
    return 0;
}

/* ------------------------------------------------------------------------------------------------ steps */

/* A bar over all the calls of one phase: each call counts from zero. */
static int on_step(void *user, uint64_t done, uint64_t total, const char *what) {
    bench *b = user;
    (void)what;
    const uint64_t at = total ? (uint64_t)((double)done / (double)total * 1000) : 0;
    return cli_progress_update(&b->progress, b->done * 1000 + at, b->total * 1000, b->what);
}

/* The same scheme twice in the list, or f16 as reference and as candidate, is one file. */
static entry *twin(const bench *b, size_t i) {
    for (size_t k = 0; k < i; k++) {
        if (b->entries[k].from == b->entries[i].from && strcmp(b->entries[k].name, b->entries[i].name) == 0)
            return &b->entries[k];
    }
    return NULL;
}

static int quantize_all(cli *c, bench *b) {
    cli_progress_begin(&b->progress, "quantize");
    b->total = b->count;
    for (size_t i = 0; i < b->count; i++) {
        entry *e = &b->entries[i];
        const entry *same = twin(b, i);
        lq_quantize_result r = {.size = sizeof r};
        const lq_quantize_options o = {.size = sizeof o,
                                       .scheme = e->name,
                                       .threads = (uint32_t)b->a->threads,
                                       .progress = on_step,
                                       .user = b,
                                       .importance = b->a->importance};
        b->done = i;
        snprintf(b->what, sizeof b->what, "%s", e->name);
        if (e->from == GIVEN) continue;
        snprintf(e->path, sizeof e->path, "%s/%s%s", b->dir, e->from == LOADED ? REFERENCE : e->name,
                 e->from == MADE && cli_scheme_is_directory(e->name) ? "" : ".gguf");
        if (e->from == LOADED) continue;
        if (same) {
            e->bits_per_weight = same->bits_per_weight;
            e->bytes = same->bytes;
            continue;
        }
        const lq_status s = lq_quantize(b->ctx, b->model_path, e->path, &o, &r);
        if (s != LQ_OK) {
            cli_progress_clear(&b->progress);
            return cli_fail(c, s, NULL);
        }
        e->written = true;
        e->bits_per_weight = r.bits_per_weight;
        e->bytes = r.bytes;
    }
    cli_progress_clear(&b->progress);
    return 0;
}

static int by_size(const void *a, const void *b) {
    const double x = ((const entry *)a)->bits_per_weight, y = ((const entry *)b)->bits_per_weight;
    return x != y ? (x < y) - (x > y) : strcmp(((const entry *)a)->name, ((const entry *)b)->name);
}

static int open_all(cli *c, bench *b) {
    /* All schemes are shown from the largest to the smallest; chosen ones in the order of the choice. */
    if (!chosen(b->a)) qsort(b->entries + 1, b->count - 1, sizeof *b->entries, by_size);
    for (size_t i = 0; i < b->count; i++) {
        entry *e = &b->entries[i];
        lq_model_info m = {.size = sizeof m};
        const lq_model_options mo = cli_model_options(b->a->activations);
        cli_place place = b->a->place;
        place.pack_at_open = 1; /* the speed that is shown is what lasts */
        lq_plan_info plan;
        if (e->from == LOADED) place.load_as = e->name;
        int code = cli_model(c, b->ctx, e->path, &place, &mo, &e->model);
        if (code != 0) return code;
        lq_status s = lq_model_info_get(e->model, &m);
        if (s == LQ_OK && e->from == LOADED && (s = cli_plan(e->model, NULL, true, &plan)) == LQ_OK) {
            e->bytes = plan.weights;
            e->bits_per_weight = m.parameters ? 8.0 * (double)plan.weights / (double)m.parameters : 0;
        }
        if (e->from == GIVEN) {
            e->bytes = m.weight_bytes;
            e->bits_per_weight = m.bits_per_weight;
        }
        if (s != LQ_OK) return cli_fail(c, s, NULL);
        if (i == 0) b->window = b->a->ctx ? (uint32_t)b->a->ctx : m.context < 512 ? m.context : 512;
        if (b->window > m.context) {
            return cli_usage(c, "--ctx %u: the model was trained with a context of %u tokens", b->window, m.context);
        }
        lq_session_options so = {.size = sizeof so,
                                       .context = b->window,
                                       .max_logits = (b->window + 1) / 2,
                                       .threads = (uint32_t)b->a->threads,
                                       .activations = b->a->activations};
        if (i > 0) cli_kv_set(&b->a->kv, &so); /* the reference keeps what it would */
        code = cli_session(c, e->model, &so, &e->session);
        if (code != 0) return code;
    }
    return 0;
}

/* Add one text's result to the whole: means weighted by tokens, errors as of independent samples. */
static void add_result(lq_eval_result *t, const lq_eval_result *r) {
    const double n = (double)t->tokens, m = (double)r->tokens, all = n + m;
    const double a = t->ppl > 0 ? t->ppl_se / t->ppl * n : 0, z = r->ppl > 0 ? r->ppl_se / r->ppl * m : 0;
    if (all <= 0) return;
    t->nll = (t->nll * n + r->nll * m) / all;
    t->ppl = exp(t->nll);
    t->ppl_se = t->ppl * sqrt(a * a + z * z) / all;
    t->kld_se = sqrt(t->kld_se * t->kld_se * n * n + r->kld_se * r->kld_se * m * m) / all;
    t->kld_mean = (t->kld_mean * n + r->kld_mean * m) / all;
    t->same_top = (t->same_top * n + r->same_top * m) / all;
    t->tokens += r->tokens;
    t->evaluated += r->evaluated;
}

static int score_text(cli *c, bench *b, size_t text, uint64_t tokens) {
    lq_session *sessions[MAX_SCHEMES];
    lq_eval_result results[MAX_SCHEMES];
    int32_t *ids;
    size_t count;
    int code = cli_corpus(c, b->entries[0].model, b->text_paths[text], b->window, &ids, &count);
    if (code != 0) return code;
    for (size_t i = 0; i < b->count; i++) {
        sessions[i] = b->entries[i].session;
        results[i] = (lq_eval_result){.size = sizeof *results};
    }
    const lq_eval_options o = {
        .size = sizeof o, .window = b->window, .max_tokens = tokens, .progress = on_step, .user = b};
    const lq_status s = lq_compare(sessions[0], sessions + 1, b->count - 1, ids, count, &o, &results[0], results + 1);
    free(ids);
    if (s != LQ_OK) {
        cli_progress_clear(&b->progress);
        return cli_fail(c, s, NULL);
    }
    for (size_t i = 0; i < b->count; i++) {
        b->entries[i].domain[text] = results[i];
        add_result(&b->entries[i].total, &results[i]);
    }
    return 0;
}

static int score_all(cli *c, bench *b) {
    lq_session *sessions[MAX_SCHEMES];
    uint64_t tokens = (b->a->max_tokens ? b->a->max_tokens : DEFAULT_TOKENS) / b->texts;
    int code = 0;
    tokens -= tokens % b->window; /* whole windows */
    if (tokens == 0) tokens = b->window;
    for (size_t i = 0; i < b->count; i++) sessions[i] = b->entries[i].session;
    cli_progress_begin(&b->progress, "evaluate");
    b->total = b->texts;
    cli_watch(sessions, b->count);
    for (size_t t = 0; t < b->texts && code == 0; t++) {
        b->done = t;
        snprintf(b->what, sizeof b->what, "%s", b->text_names[t]);
        code = score_text(c, b, t, tokens);
    }
    cli_unwatch();
    cli_progress_clear(&b->progress);
    for (size_t i = 1; i < b->count; i++) {
        entry *e = &b->entries[i];
        e->total.ppl_ratio = exp(e->total.nll - b->entries[0].total.nll);
    }
    return code;
}

static int time_all(cli *c, bench *b) {
    const bench_speed_options o = {.prefill = SPEED_PREFILL, .decode = SPEED_DECODE, .threads = (uint32_t)b->a->threads,
                                   .repeat = SPEED_REPEAT};
    int code = 0;
    cli_progress_begin(&b->progress, "time");
    b->total = b->count;
    for (size_t i = 1; i < b->count && code == 0; i++) {
        b->done = i;
        snprintf(b->what, sizeof b->what, "%s", b->entries[i].name);
        if (on_step(b, 0, 1, NULL)) code = cli_error(c, LQ_E_CANCELLED, "interrupted");
        else code = bench_speed_run(c, &b->entries[i].model, 1, &o, &b->entries[i].speed);
    }
    cli_progress_clear(&b->progress);
    return code;
}

/* ------------------------------------------------------------------------------------------------ results */

static void print_tables(const bench *b) {
    const lq_eval_result *ref = &b->entries[0].total;
    int wide = 8; /* the first column */
    for (size_t i = 1; i < b->count; i++) {
        const int n = (int)strlen(b->entries[i].name);
        if (n > wide) wide = n;
    }
    printf("%s: %llu tokens of %zu text%s scored per scheme, in windows of %u; original (%s) perplexity %.4f\n\n",
           cli_safe(b->model_path).s, (unsigned long long)ref->tokens, b->texts, b->texts == 1 ? "" : "s", b->window,
           REFERENCE, ref->ppl);
    printf("%-*s %7s %12s   %-20s %9s  %10s  %8s  %10s  %9s\n", wide, "scheme", "bits/w", "bytes", "perplexity",
           "to " REFERENCE, "mean KLD", "same top", "prefill", "decode");
    printf("%-*s %7s %12s   %-20s %9s  %10s  %8s  %10s  %9s\n", wide, "", "", "", "", "", "", "", "tokens/s",
           "tokens/s");
    for (size_t i = 1; i < b->count; i++) {
        const entry *e = &b->entries[i];
        char ppl[48];
        snprintf(ppl, sizeof ppl, "%9.4f +- %.4f", e->total.ppl, e->total.ppl_se);
        printf("%-*s %7.3f %12llu   %-20s %9.5f  %10.6f  %6.2f %%  %10.1f  %9.1f\n", wide, e->name,
               e->bits_per_weight, (unsigned long long)e->bytes, ppl, e->total.ppl_ratio, e->total.kld_mean,
               e->total.same_top * 100, e->speed.prefill_per_s, e->speed.decode_per_s);
    }
    printf("\nmean KL divergence per text\n%-*s", wide, "scheme");
    for (size_t t = 0; t < b->texts; t++) printf(" %12.12s", b->text_names[t]);
    putchar('\n');
    for (size_t i = 1; i < b->count; i++) {
        printf("%-*s", wide, b->entries[i].name);
        for (size_t t = 0; t < b->texts; t++) printf(" %12.6f", b->entries[i].domain[t].kld_mean);
        putchar('\n');
    }
}

static json_t *entry_json(const bench *b, const entry *e) {
    json_t *o = json_object(), *prefill = json_object(), *decode = json_object(), *domains = json_object();
    cli_set_text(o, "scheme", e->name);
    if (e->from == GIVEN) cli_set_text(o, "path", e->path);
    cli_set_real(o, "bits_per_weight", e->bits_per_weight);
    cli_set_int(o, "bytes", e->bytes);
    cli_set_int(o, "tokens", e->total.tokens);
    cli_set_real(o, "nll", e->total.nll);
    cli_set_real(o, "ppl", e->total.ppl);
    cli_set_real(o, "ppl_se", e->total.ppl_se);
    cli_set_real(o, "ppl_ratio", e->total.ppl_ratio);
    cli_set_real(o, "kld_mean", e->total.kld_mean);
    cli_set_real(o, "kld_se", e->total.kld_se);
    cli_set_real(o, "same_top", e->total.same_top);
    cli_set_int(prefill, "tokens", e->speed.prefill_tokens);
    cli_set_real(prefill, "tokens_per_s", e->speed.prefill_per_s);
    cli_set_int(decode, "tokens", e->speed.decode_tokens);
    cli_set_real(decode, "tokens_per_s", e->speed.decode_per_s);
    cli_set_real(decode, "bytes_per_s", e->speed.decode_bytes_per_s);
    cli_set(o, "prefill", prefill);
    cli_set(o, "decode", decode);
    for (size_t t = 0; t < b->texts; t++) {
        json_t *d = json_object();
        cli_set_int(d, "tokens", e->domain[t].tokens);
        cli_set_real(d, "ppl", e->domain[t].ppl);
        cli_set_real(d, "ppl_ratio", e->domain[t].ppl_ratio);
        cli_set_real(d, "kld_mean", e->domain[t].kld_mean);
        cli_set_real(d, "kld_p99", e->domain[t].kld_p99);
        cli_set_real(d, "same_top", e->domain[t].same_top);
        cli_set(domains, b->text_names[t], d);
    }
    cli_set(o, "texts", domains);
    if (e->speed.plan.device[0]) cli_set(o, "device", cli_plan_json(&e->speed.plan));
    return o;
}

static int print_json(cli *c, const bench *b, int code, json_t *missed) {
    json_t *o = json_object(), *ref = json_object(), *list = json_array();
    cli_set_text(o, "model", b->model_path);
    if (b->a->importance) cli_set_text(o, "importance", b->a->importance);
    cli_set_int(o, "window", b->window);
    cli_set_int(o, "tokens", b->entries[0].total.tokens);
    cli_set_text(ref, "scheme", REFERENCE);
    cli_set_real(ref, "nll", b->entries[0].total.nll);
    cli_set_real(ref, "ppl", b->entries[0].total.ppl);
    cli_set_real(ref, "ppl_se", b->entries[0].total.ppl_se);
    cli_set(o, "reference", ref);
    for (size_t i = 1; i < b->count; i++) (void)json_array_append_new(list, entry_json(b, &b->entries[i]));
    cli_set(o, "schemes", list);
    if (cli_gate_set(&b->a->gate)) cli_set(o, "missed", json_incref(missed));
    cli_set_real(o, "seconds", cli_clock() - b->start);
    return cli_json_print(c, o, code);
}

/* The tables, and what of them misses the limits, text by text. */
static int report(cli *c, const bench *b) {
    json_t *missed = json_array();
    size_t n = 0;
    if (!c->json) print_tables(b);
    fflush(stdout);
    for (size_t i = 1; i < b->count; i++)
        for (size_t t = 0; t < b->texts; t++)
            n += cli_gate_check(&b->a->gate, b->entries[i].name, b->text_names[t], &b->entries[i].domain[t], missed);
    int code = n ? CLI_CHECK_FAILED : CLI_OK;
    if (c->json) code = print_json(c, b, code, missed);
    json_decref(missed);
    return code;
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *at) {
    (void)st, (void)at;
    return type == FTW_DP ? rmdir(path) : unlink(path);
}

/* Everything a run leaves: sessions and models, then the files and directories, then the folder. */
static void clean_up(bench *b) {
    for (size_t i = 0; i < b->count; i++) {
        lq_session_close(b->entries[i].session);
        lq_model_close(b->entries[i].model);
        if (b->temporary && b->entries[i].written) nftw(b->entries[i].path, remove_one, 8, FTW_DEPTH | FTW_PHYS);
    }
    if (b->temporary) rmdir(b->dir);
    lq_close(b->ctx);
}

static int run(cli *c, const void *arguments) {
    const args *a = arguments;
    bench *b = calloc(1, sizeof *b);
    entry *entries = calloc(MAX_SCHEMES, sizeof *entries);
    int code = 0;
    if (!b || !entries) {
        code = cli_nomem(c);
    } else {
        *b = (bench){.a = a, .entries = entries, .start = cli_clock()};
        code = cli_check_activations(c, a->activations);
        if (code == 0) code = choose_candidates(c, b);
        if (code == 0) code = choose_inputs(c, b);
        if (code == 0) code = cli_open(c, a->threads, NULL, NULL, &b->ctx);
        if (code == 0) code = choose_folder(c, b);
        if (code == 0) code = quantize_all(c, b);
        if (code == 0) code = open_all(c, b);
        if (code == 0) code = score_all(c, b);
        if (code == 0) code = time_all(c, b);
        const bool measured = code == 0;
        if (measured) code = report(c, b);
        if (measured && !c->json) {
            cli_plan_print(stderr, &b->entries[1].speed.plan);
            fprintf(stderr, "%.0f s\n", cli_clock() - b->start);
        }
        clean_up(b);
    }
    free(entries);
    free(b);
    return code;
}

const cli_command cli_command_bench_quality = {
    .name = "bench quality",
    .summary = "what every scheme costs in quality, and its size and speed",
    .about = "Quantizes a model with each scheme, then scores all of them, and finished models (--candidate), on\n"
             "the same texts against the FP16 original. Bits per weight and bytes say what a scheme saves;\n"
             "perplexity, and more sharply the mean KL divergence, say what it costs (0 = predictions as of the\n"
             "original). The second table has the divergence per text: the damage is not the same everywhere.\n\n"
             "With limits (--max-kld and others) what a scheme misses on any of the texts is told after the tables,\n"
             "and the exit code is 1.\n\n"
             "Schemes that want statistics (gptq-4bit-g128, awq+q4_k_m) take them from --importance. Each wants\n"
             "its own, as `lq calibrate --for` makes them: quantize with each, then score the results together.\n\n"
             "Needs room for all the files in $TMPDIR (or /tmp), and memory for all models at once; they are\n"
             "mapped, so for large models choose few schemes.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq bench quality\n"
                "  lq bench quality --schemes q8_0,q4_k_m,iq4_xs --text mine.txt --json\n"
                "  lq bench quality --schemes q2_k,q4_0 --importance stats.gguf\n"
                "  lq bench quality --schemes nf4,int8 --candidate my-model-awq/ --candidate theirs.gguf\n"
                "  lq bench quality --model my-model/ --schemes q4_k_m,q4_0 --max-tokens 100000 --keep out/\n",
    .args_size = sizeof(args),
    .defaults = &defaults,
    .run = run,
};
