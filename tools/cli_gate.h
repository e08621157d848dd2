/* cli_gate.h: how far a model may be from its reference, for commands that measure it: three limits, each of which a
 * text of its own must keep, since damage is uneven. What is missed is told by name, and ends a command with
 * CLI_CHECK_FAILED after its report. */
#ifndef CLI_GATE_H
#define CLI_GATE_H

#include "cli.h"

typedef struct cli_gate {
    double max_kld, max_ppl_ratio, min_same_top; /* 0 = no limit; the last in percent */
} cli_gate;

#define CLI_OPT_GATE(T)                                                                                                \
    {.type = CLI_GROUP, .name = "What must be reached (exit 1 where a text misses it)"},                               \
    {.type = CLI_REAL,                                                                                                 \
     .name = "max-kld",                                                                                                \
     .value = "X",                                                                                                     \
     .at = offsetof(T, gate.max_kld),                                                                                  \
     .min = 1e-12,                                                                                                     \
     .max = 1e6,                                                                                                       \
     .help = "a mean KL divergence of at most X, such as 0.01",                                                        \
     .also = "|kld|kl|max-kl|"},                                                                                       \
    {.type = CLI_REAL,                                                                                                 \
     .name = "max-ppl-ratio",                                                                                          \
     .value = "X",                                                                                                     \
     .at = offsetof(T, gate.max_ppl_ratio),                                                                            \
     .min = 1e-6,                                                                                                      \
     .max = 1e6,                                                                                                       \
     .help = "a perplexity of at most X times the reference's, such as 1.01",                                          \
     .also = "|max-ratio|ppl-ratio|"},                                                                                 \
    {.type = CLI_REAL,                                                                                                 \
     .name = "min-same-top",                                                                                           \
     .value = "P",                                                                                                     \
     .at = offsetof(T, gate.min_same_top),                                                                             \
     .min = 1e-6,                                                                                                      \
     .max = 100,                                                                                                       \
     .help = "the same most likely token in at least P percent of the places",                                         \
     .also = "|same-top|top1|"}

static inline bool cli_gate_set(const cli_gate *g) {
    return g->max_kld > 0 || g->max_ppl_ratio > 0 || g->min_same_top > 0;
}

/* How many limits a result misses; each is told on standard error, and put into the array `missed` (may be NULL) as
 * {"model", "text", "what", "value", "limit"}. */
size_t cli_gate_check(const cli_gate *g, const char *model, const char *text, const lq_eval_result *r, json_t *missed);

#endif
