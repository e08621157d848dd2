/* cli_sampling.h: the options of commands that make text: how each token is chosen (lq_sampler), and what its
 * probability was. A command's arguments have a cli_sampling `sampling`, its defaults CLI_SAMPLING, its options
 * CLI_OPT_SAMPLING. */
#ifndef CLI_SAMPLING_H
#define CLI_SAMPLING_H

#include "cli.h"

#include <stddef.h>

typedef struct cli_sampling {
    double temp, top_p, min_p, typical, xtc, xtc_threshold, repeat, frequency, presence, dry, dry_base;
    double mirostat, mirostat_eta;
    uint64_t top_k, seed, penalty_last_n, dry_length, dry_last_n, logprobs;
    cli_list dry_breakers, bias;
} cli_sampling;
#define CLI_NO_LOGPROBS UINT64_MAX
#define CLI_SAMPLING {.logprobs = CLI_NO_LOGPROBS}

#define CLI_SAMPLING_REAL(T, name_, value_, field, least, most, help_, also_, alias_)                                  \
    {.type = CLI_REAL, .name = name_, .value = value_, .at = offsetof(T, sampling.field), .min = least, .max = most,   \
     .help = help_, .also = also_, .alias = alias_}
#define CLI_SAMPLING_UINT(T, name_, value_, field, least, most, help_, also_, alias_)                                  \
    {.type = CLI_UINT, .name = name_, .value = value_, .at = offsetof(T, sampling.field), .min = least, .max = most,   \
     .help = help_, .also = also_, .alias = alias_}
#define CLI_OPT_SAMPLING(T)                                                                                            \
    {.type = CLI_GROUP, .name = "Choice of the next token (steps in this order; each is off without its option)"},     \
    {.type = CLI_LIST,                                                                                                 \
     .name = "logit-bias",                                                                                             \
     .value = "TOKEN=B",                                                                                               \
     .at = offsetof(T, sampling.bias),                                                                                 \
     .help = "add B to the logit of a token, an id or a spelling: 1 makes it about 2.7 times\n"                        \
             "as likely, -inf impossible; may be given again",                                                         \
     .also = "|bias|ban|"},                                                                                            \
    CLI_SAMPLING_REAL(T, "repeat-penalty", "R", repeat, 0, 1e9,                                                        \
                      "tokens that were there: divide positive logits by R, multiply others; 1.1 is\n"                 \
                      "mild. The prompt counts too", "|repetition-penalty|repeat|", NULL),                             \
    CLI_SAMPLING_REAL(T, "frequency-penalty", "F", frequency, -1e9, 1e9,                                               \
                      "subtract F from a token's logit for each time that it was there", NULL, NULL),                  \
    CLI_SAMPLING_REAL(T, "presence-penalty", "F", presence, -1e9, 1e9,                                                 \
                      "subtract F once where a token was there at all", NULL, NULL),                                   \
    CLI_SAMPLING_UINT(T, "penalty-last-n", "N", penalty_last_n, 0, 4294967295.0,                                       \
                      "what was there: the last N tokens (default 0 = all)", NULL, "repeat-last-n"),                   \
    CLI_SAMPLING_REAL(T, "dry", "M", dry, 0, 1e9,                                                                      \
                      "against loops: where the last n tokens were there before, subtract M * BASE^(n -\n"             \
                      "LENGTH) from the token that followed; 0.8 is usual", NULL, "dry-multiplier"),                   \
    CLI_SAMPLING_REAL(T, "dry-base", "BASE", dry_base, 1, 1e9, "(default 1.75)", NULL, NULL),                          \
    CLI_SAMPLING_UINT(T, "dry-length", "LENGTH", dry_length, 1, 4294967295.0,                                          \
                      "repetitions of fewer tokens are let be (default 2)", NULL, "dry-allowed-length"),               \
    CLI_SAMPLING_UINT(T, "dry-last-n", "N", dry_last_n, 0, 4294967295.0,                                               \
                      "look for them in the last N tokens (default 0 = all)", NULL, "dry-penalty-last-n"),             \
    {.type = CLI_LIST,                                                                                                 \
     .name = "dry-breaker",                                                                                            \
     .value = "TEXT",                                                                                                  \
     .at = offsetof(T, sampling.dry_breakers),                                                                         \
     .help = "no repetition reaches across TEXT, in which \\n is a new line; may be given again\n"                     \
             "(default: \\n : \" *; none = none)",                                                                     \
     .alias = "dry-sequence-breaker"},                                                                                 \
    CLI_SAMPLING_UINT(T, "top-k", "K", top_k, 0, 4294967295.0, "only the K most likely", NULL, NULL),                  \
    CLI_SAMPLING_REAL(T, "typical-p", "P", typical, 0, 1,                                                              \
                      "only tokens about as surprising as is to be expected, with probability P in all", NULL,         \
                      "typical"),                                                                                      \
    CLI_SAMPLING_REAL(T, "top-p", "P", top_p, 0, 1, "only the most likely, with probability P in all", "|nucleus|",    \
                      NULL),                                                                                           \
    CLI_SAMPLING_REAL(T, "min-p", "P", min_p, 0, 1, "only tokens with at least P times the best one's probability",    \
                      NULL, NULL),                                                                                     \
    CLI_SAMPLING_REAL(T, "xtc", "P", xtc, 0, 1,                                                                        \
                      "with probability P drop all good choices but the least likely of them", NULL,                   \
                      "xtc-probability"),                                                                              \
    CLI_SAMPLING_REAL(T, "xtc-threshold", "P", xtc_threshold, 0, 0.5,                                                  \
                      "good ones have at least this probability (default 0.1)", NULL, NULL),                           \
    CLI_SAMPLING_REAL(T, "temp", "T", temp, 0, 100,                                                                    \
                      "0 (default) = always the most likely token; 0.8 = lively; above 1 = wild", "|temperature|",     \
                      NULL),                                                                                           \
    CLI_SAMPLING_REAL(T, "mirostat", "TAU", mirostat, 0, 1000,                                                         \
                      "instead of --top-k to --xtc: keep the text's surprise near TAU bits a token;\n"                 \
                      "5 is usual; wants --temp", "|mirostat-ent|mirostat-tau|", NULL),                                \
    CLI_SAMPLING_REAL(T, "mirostat-eta", "E", mirostat_eta, 0, 100, "how fast it adapts (default 0.1)", NULL,          \
                      "mirostat-lr"),                                                                                  \
    CLI_SAMPLING_UINT(T, "seed", "S", seed, 0, 18446744073709549568.0, /* the largest double below 2^64 */             \
                      "the same seed, prompt and model give the same text (default 0)", NULL, NULL),                   \
    CLI_SAMPLING_UINT(T, "logprobs", "N", logprobs, 0, 1000,                                                           \
                      "with --json: the logarithm of each token's probability by the model alone, and\n"               \
                      "the N most likely tokens at its place", "|log-probs|top-logprobs|", NULL)

/* Refuse options that do nothing without another, before a model is opened. Returns an exit code. */
int cli_sampling_check(cli *c, const cli_sampling *s);

/* A sampler as the options have it. */
typedef struct cli_sampler {
    lq_sampler sampler;
    float mu;
    lq_logit_bias *bias;
    char **breakers;
} cli_sampler;
/* Returns an exit code; free in either case. Tokens are spelled as the model has them. Do not move it afterwards. */
int cli_sampler_open(cli *c, const cli_sampling *s, const lq_model *model, cli_sampler *out);
void cli_sampler_free(cli_sampler *s);

/* With --logprobs: append what row `row` gives to the token `id` to `list`. Returns an exit code. */
int cli_logprobs_add(cli *c, const cli_sampling *s, const lq_model *model, lq_session *session, uint32_t row,
                     int32_t id, json_t *list);

#endif
