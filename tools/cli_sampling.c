/* cli_sampling.c: what the options of cli_sampling.h mean: a sampler of the library, and log-probabilities as JSON. */
#include "cli_sampling.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int cli_sampling_check(cli *c, const cli_sampling *s) {
    if (s->mirostat > 0 && s->temp == 0) return cli_usage(c, "--mirostat wants --temp: without it there is no choice");
    if (s->mirostat > 0 && (s->top_k || s->typical > 0 || s->top_p > 0 || s->min_p > 0 || s->xtc > 0)) {
        return cli_usage(c, "--mirostat stands in the place of --top-k, --typical-p, --top-p, --min-p and --xtc");
    }
    if (s->dry == 0 && (s->dry_base > 0 || s->dry_length || s->dry_last_n || s->dry_breakers.count)) {
        return cli_usage(c, "the other options of --dry do nothing without it");
    }
    if (s->xtc == 0 && s->xtc_threshold > 0) return cli_usage(c, "--xtc-threshold does nothing without --xtc");
    if (s->dry_breakers.count > 64) return cli_usage(c, "--dry-breaker: at most 64");
    if (s->logprobs != CLI_NO_LOGPROBS && !c->json) return cli_usage(c, "--logprobs is part of what --json prints");
    return 0;
}

/* One TOKEN=B. */
static int bias_of(cli *c, const lq_model *model, const char *text, lq_logit_bias *out) {
    const char *equals = strrchr(text, '=');
    char *end = NULL, token[256];
    if (!equals || equals == text || (size_t)(equals - text) >= sizeof token) {
        return cli_usage(c, "--logit-bias %s: TOKEN=B is needed, such as 42=-1.5 or </s>=-inf", text);
    }
    memcpy(token, text, (size_t)(equals - text));
    token[equals - text] = 0;
    const double bias = strtod(equals + 1, &end);
    if (end == equals + 1 || *end != 0 || isnan(bias) || bias > 1e9 || (bias < -1e9 && !isinf(bias))) {
        return cli_usage(c, "--logit-bias %s: %s is neither a number from -1e9 to 1e9 nor -inf", text, equals + 1);
    }
    out->bias = (float)bias;
    if (strspn(token, "0123456789") == strlen(token)) {
        const unsigned long id = strtoul(token, NULL, 10);
        out->id = id > INT32_MAX ? INT32_MAX : (int32_t)id; /* beyond any vocabulary, which the library says */
        return 0;
    }
    out->id = lq_token_find(model, token);
    if (out->id >= 0) return 0;
    return cli_usage(c, "--logit-bias %s: the model has no token that is spelled %s; an id is a number", text, token);
}

static int biases(cli *c, const cli_sampling *s, const lq_model *model, cli_sampler *out) {
    if (s->bias.count == 0) return 0;
    if (!(out->bias = calloc(s->bias.count, sizeof *out->bias))) return cli_nomem(c);
    for (size_t i = 0; i < s->bias.count; i++) {
        const int code = bias_of(c, model, s->bias.items[i], &out->bias[i]);
        if (code != 0) return code;
    }
    out->sampler.logit_bias = out->bias;
    out->sampler.n_logit_bias = (uint32_t)s->bias.count;
    return 0;
}

/* A copy in which \n, \t and \\ are what they stand for. */
static char *plain(const char *text) {
    char *copy = malloc(strlen(text) + 1), *to = copy;
    if (!copy) return NULL;
    for (const char *p = text; *p; p++) {
        const char next = *p == '\\' ? p[1] : 0;
        *to++ = next == 'n' ? '\n' : next == 't' ? '\t' : *p;
        if (next == 'n' || next == 't' || next == '\\') p++;
    }
    *to = 0;
    return copy;
}

static int breakers(cli *c, const cli_sampling *s, cli_sampler *out) {
    static const char *const usual[] = {"\n", ":", "\"", "*"};
    const size_t n = s->dry_breakers.count;
    if (n == 0) {
        out->sampler.dry_breakers = usual;
        out->sampler.n_dry_breakers = CLI_COUNT(usual);
        return 0;
    }
    if (n == 1 && strcmp(s->dry_breakers.items[0], "none") == 0) return 0;
    if (!(out->breakers = calloc(n + 1, sizeof *out->breakers))) return cli_nomem(c);
    for (size_t i = 0; i < n; i++) {
        const char *text = s->dry_breakers.items[i];
        if (!*text || strlen(text) > 64) return cli_usage(c, "--dry-breaker '%s': 1 to 64 bytes are needed", text);
        if (!(out->breakers[i] = plain(text))) return cli_nomem(c);
    }
    out->sampler.dry_breakers = (const char *const *)out->breakers;
    out->sampler.n_dry_breakers = (uint32_t)n;
    return 0;
}

int cli_sampler_open(cli *c, const cli_sampling *s, const lq_model *model, cli_sampler *out) {
    *out = (cli_sampler){.mu = 2 * (float)s->mirostat};
    lq_sampler *o = &out->sampler;
    *o = (lq_sampler){.size = sizeof *o,
                      .temperature = (float)s->temp,
                      .top_k = (uint32_t)s->top_k,
                      .top_p = (float)s->top_p,
                      .min_p = (float)s->min_p,
                      .seed = s->seed,
                      .typical_p = (float)s->typical,
                      .xtc_probability = (float)s->xtc,
                      .xtc_threshold = (float)s->xtc_threshold,
                      .repeat_penalty = (float)s->repeat,
                      .frequency_penalty = (float)s->frequency,
                      .presence_penalty = (float)s->presence,
                      .penalty_last_n = (uint32_t)s->penalty_last_n,
                      .dry_multiplier = (float)s->dry,
                      .dry_base = (float)s->dry_base,
                      .dry_allowed_length = (uint32_t)s->dry_length,
                      .dry_last_n = (uint32_t)s->dry_last_n,
                      .mirostat_tau = (float)s->mirostat,
                      .mirostat_eta = (float)s->mirostat_eta,
                      .mirostat_mu = &out->mu};
    int code = biases(c, s, model, out);
    if (code == 0 && s->dry > 0) code = breakers(c, s, out);
    return code;
}

void cli_sampler_free(cli_sampler *s) {
    for (char **b = s->breakers; b && *b; b++) free(*b);
    free(s->breakers);
    free(s->bias);
}

/* ------------------------------------------------------------------------------------------------ probabilities */

static json_t *logprob_json(const lq_model *model, const lq_logprob *p) {
    char text[512];
    size_t n = sizeof text;
    json_t *o = json_object();
    const lq_status status = lq_detokenize(model, &p->id, 1, LQ_DETOKENIZE_SPECIAL | LQ_DETOKENIZE_MIDDLE, text, &n);
    cli_set(o, "id", json_integer(p->id));
    cli_set(o, "text", status == LQ_OK ? cli_json_text(text, n) : json_null());
    cli_set_real(o, "logprob", (double)p->logprob);
    return o;
}

int cli_logprobs_add(cli *c, const cli_sampling *s, const lq_model *model, lq_session *session, uint32_t row,
                     int32_t id, json_t *list) {
    lq_logprob own = {.id = id}, *top = NULL;
    lq_model_info info = {.size = sizeof info};
    if (s->logprobs == CLI_NO_LOGPROBS) return 0;
    lq_status status = lq_model_info_get(model, &info);
    const size_t n = s->logprobs < info.vocabulary ? (size_t)s->logprobs : info.vocabulary;
    if (n && !(top = calloc(n, sizeof *top))) return cli_nomem(c);
    if (status == LQ_OK) status = lq_logprobs(session, row, id, &own.logprob, top, n);
    if (status == LQ_OK) {
        json_t *o = logprob_json(model, &own), *best = json_array();
        for (size_t i = 0; i < n; i++) (void)json_array_append_new(best, logprob_json(model, &top[i]));
        cli_set(o, "top", best);
        (void)json_array_append_new(list, o);
    }
    free(top);
    return status == LQ_OK ? 0 : cli_fail(c, status, NULL);
}
