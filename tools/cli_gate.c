/* cli_gate.c: see cli_gate.h. A value that is no number misses every limit. */
#include "cli_gate.h"

static size_t miss(const char *model, const char *text, const char *what, double value, double limit, bool most,
                   json_t *missed) {
    if (limit <= 0 || (most ? value <= limit : value >= limit)) return 0;
    fprintf(stderr, "missed: %s on %s: %s is %.6g, must be at %s %.6g\n", cli_safe(model).s, cli_safe(text).s, what,
            value, most ? "most" : "least", limit);
    if (missed) {
        json_t *o = json_object();
        cli_set_text(o, "model", model);
        cli_set_text(o, "text", text);
        cli_set_text(o, "what", what);
        cli_set_real(o, "value", value);
        cli_set_real(o, "limit", limit);
        (void)json_array_append_new(missed, o);
    }
    return 1;
}

size_t cli_gate_check(const cli_gate *g, const char *model, const char *text, const lq_eval_result *r, json_t *missed) {
    return miss(model, text, "mean KL divergence", r->kld_mean, g->max_kld, true, missed) +
           miss(model, text, "perplexity to the reference's", r->ppl_ratio, g->max_ppl_ratio, true, missed) +
           miss(model, text, "same top token in percent", r->same_top * 100, g->min_same_top, false, missed);
}
