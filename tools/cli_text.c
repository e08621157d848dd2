/* cli_text.c: files, texts and models as the commands of `lq` need them.
 *
 * Owns: reading a whole file, judging whether it is a text, tokenizing, opening contexts and sessions with errors that
 * say what to do. Refuses: binary files as a corpus, files above 1 GiB as a text. */
#include "cli.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define MAX_TEXT ((size_t)1 << 30)

static int read_stream(cli *c, const char *shown, FILE *f, char **text, size_t *bytes) {
    size_t cap = 65536, n = 0;
    char *buf = malloc(cap);
    if (!buf) return cli_nomem(c);
    for (;;) {
        errno = 0;
        n += fread(buf + n, 1, cap - 1 - n, f);
        const int error = ferror(f) ? errno : 0;
        if (cli_interrupted() || (error && error != EINTR)) {
            free(buf);
            if (cli_interrupted()) return cli_error(c, LQ_E_CANCELLED, "interrupted");
            return cli_error(c, LQ_E_IO, "%s: %s", shown, strerror(error));
        }
        clearerr(f);
        if (error) continue;
        if (n < cap - 1) break;
        if (cap >= MAX_TEXT) {
            free(buf);
            return cli_error(c, LQ_E_LIMIT, "%s: more than 1 GiB; a text is needed", shown);
        }
        char *more = realloc(buf, cap *= 2);
        if (!more) {
            free(buf);
            return cli_nomem(c);
        }
        buf = more;
    }
    buf[n] = 0;
    *text = buf;
    *bytes = n;
    return 0;
}

int cli_read(cli *c, const char *path, char **text, size_t *bytes) {
    if (strcmp(path, "-") == 0) return read_stream(c, "standard input", stdin, text, bytes);
    FILE *f;
    do f = fopen(path, "rb");
    while (!f && errno == EINTR && !cli_interrupted());
    if (!f) return cli_error(c, LQ_E_IO, "%s: %s", path, strerror(errno));
    const int code = read_stream(c, path, f, text, bytes);
    fclose(f);
    return code;
}

int cli_tokenize(cli *c, const lq_model *model, const char *text, size_t bytes, uint32_t flags, int32_t **ids,
                 size_t *count) {
    size_t cap = bytes + 16; /* a token is at least one byte; BOS and a leading space besides */
    for (int attempt = 0;; attempt++) {
        int32_t *list = malloc(cap * sizeof *list);
        if (!list) return cli_nomem(c);
        size_t n = cap;
        const lq_status s = lq_tokenize(model, text, bytes, flags, list, &n);
        if (s == LQ_OK) {
            *ids = list;
            *count = n;
            return 0;
        }
        free(list);
        if (attempt > 0 || n <= cap) return cli_fail(c, s, NULL);
        cap = n;
    }
}

/* More than a tenth of the bytes above ASCII stand where UTF-8 has none, or there is a NUL: not a text. */
static bool is_binary(const char *text, size_t bytes) {
    size_t bad = 0;
    int follow = 0;
    if (memchr(text, 0, bytes)) return true;
    for (size_t i = 0; i < bytes; i++) {
        const unsigned char ch = (unsigned char)text[i];
        if ((ch & 0xC0) == 0x80) {
            if (follow > 0) follow--;
            else bad++;
        } else {
            bad += follow > 0;
            follow = ch < 0xC0 ? 0 : ch < 0xE0 ? 1 : ch < 0xF0 ? 2 : 3;
            bad += ch > 0xF4 || (ch < 32 && !strchr("\t\n\r\f\v\b\033", ch));
        }
    }
    return bad > bytes / 10;
}

int cli_corpus(cli *c, const lq_model *model, const char *path, uint64_t required, int32_t **ids, size_t *count) {
    const unsigned long long need = required;
    const char *shown = strcmp(path, "-") == 0 ? "standard input" : path;
    char *text = NULL;
    size_t bytes = 0;
    int code = cli_read(c, path, &text, &bytes);
    if (code != 0) return code;
    if (bytes == 0) {
        code = cli_error(c, LQ_E_FORMAT, "%s is empty; a text of at least %llu tokens is needed", shown, need);
    } else if (is_binary(text, bytes)) {
        code = cli_error(c, LQ_E_FORMAT, "%s is a binary file; a text in UTF-8 of at least %llu tokens is needed",
                         shown, need);
    } else {
        code = cli_tokenize(c, model, text, bytes, LQ_TOKENIZE_BOS, ids, count);
        if (code == 0 && *count < required) {
            code = cli_error(c, LQ_E_FORMAT, "%s has %zu tokens; at least %llu are needed", shown, *count, need);
            free(*ids);
        }
    }
    free(text);
    return code;
}

/* ------------------------------------------------------------------------------------------------ the library */

static void on_log(void *user, lq_log_level level, const char *message) {
    (void)user;
    if (level <= LQ_LOG_WARN) cli_warn("%s", message);
}

int cli_open(cli *c, uint64_t threads, const char *isa, const cli_memory *memory, lq_ctx **ctx) {
    lq_options options = {.size = sizeof options, .threads = (uint32_t)threads, .isa = isa, .log = on_log};
    if (memory) options.huge_pages = memory->huge_pages, options.numa = memory->numa, options.lock = memory->lock;
    const lq_status s = lq_open(&options, ctx);
    return s == LQ_OK ? 0 : cli_fail(c, s, isa ? "`lq info --devices` lists the instruction sets." : NULL);
}

int cli_check_activations(cli *c, const char *name) {
    if (!name || strcmp(name, "f32") == 0) return 0;
    return cli_usage(c, "--activations %s: only f32 can be asked for", name);
}

void cli_rope_set(const cli_rope *rope, lq_session_options *options) {
    options->rope_scaling = rope->type;
    options->rope_factor = rope->factor;
    options->rope_original = (uint32_t)rope->original;
}

void cli_kv_set(const cli_kv *kv, lq_session_options *options) {
    options->kv_k = kv->both;
    options->kv_v = kv->v;
}

cli_str cli_kv_text(const lq_plan_info *plan) {
    cli_str r;
    if (strcmp(plan->kv_k, plan->kv_v) == 0) snprintf(r.s, sizeof r.s, "%s", plan->kv_k);
    else snprintf(r.s, sizeof r.s, "%s and %s", plan->kv_k, plan->kv_v);
    return r;
}

int cli_session(cli *c, lq_model *model, const lq_session_options *options, lq_session **session) {
    const lq_status s = lq_session_open(model, options, session);
    lq_plan_info plan;
    char detail[512];
    if (s == LQ_OK) return 0;
    if (s != LQ_E_NOMEM) return cli_fail(c, s, NULL);
    snprintf(detail, sizeof detail, "%s", lq_error_detail());
    if (cli_plan(model, options, true, &plan) != LQ_OK) return cli_error(c, s, "%s", detail);
    if (plan.device[0] && strstr(detail, plan.device)) {
        const int code = cli_error(c, s, "%s", detail);
        fputs("--gpu-layers N leaves the first layers to the processor; --ctx N asks for a shorter context.\n", stderr);
        return code;
    }
    return cli_error(c, s, "%s; the plan needs %s: weights %s, KV cache %s for %u tokens, activations %s", detail,
                     cli_bytes(plan.total).s, cli_bytes(plan.weights).s, cli_bytes(plan.kv).s, plan.context,
                     cli_bytes(plan.activations).s);
}
