/* cli.h: what the commands of `lq` share: the command record, options, errors and exit codes, JSON, progress, signals.
 *
 * A command is one file that exports one `const cli_command` plus one line in commands.def. The record's tables drive
 * the parser and the help text alike, so they cannot disagree. Commands see the library through libquant.h alone.
 * Results go to standard output, everything else to standard error. */
#ifndef CLI_H
#define CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdio.h>

#include "../include/libquant.h"

#if defined(__GNUC__)
#define CLI_PRINTF(fmt, args) __attribute__((format(printf, fmt, args)))
#else
#define CLI_PRINTF(fmt, args)
#endif
#define CLI_COUNT(a) (sizeof(a) / sizeof((a)[0]))

/* ------------------------------------------------------------------------------------------------ exit codes */

enum {
    CLI_OK = 0,
    CLI_CHECK_FAILED = 1,
    CLI_USAGE = 2,
    CLI_BAD_INPUT = 3,
    CLI_IO = 4,
    CLI_NOMEM = 5,
    CLI_UNSUPPORTED = 6,
    CLI_BUSY = 7,
    CLI_INTERNAL = 70
};

/* ------------------------------------------------------------------------------------------------ commands, options */

typedef enum {
    CLI_END = 0,
    CLI_GROUP, /* no option: a heading in the help text */
    CLI_FLAG,  /* uint32_t, set to 1 */
    CLI_UINT,  /* uint64_t within [min, max] */
    CLI_REAL,  /* double within [min, max] */
    CLI_TEXT,  /* const char * */
    CLI_LIST   /* cli_list: every use appends one value */
} cli_type;

typedef struct cli_list {
    const char **items; /* freed by the dispatcher */
    size_t count;
} cli_list;

typedef struct cli_option {
    cli_type type;
    char letter;       /* "-n"; 0 = none */
    uint32_t required;
    size_t at;         /* offsetof(struct of the command, field) */
    const char *name;  /* "threads"; for CLI_GROUP the heading */
    const char *value; /* what the help calls the value: "N". FILE, DIR, SRC, DST, REF, MODEL, STATS: completed as
                          paths; "A,B,..": as a list; in small letters ("f32"): as the only word there is */
    double min, max;
    const char *help;  /* each '\n' begins another line */
    const char *also;  /* words that people try for this: "|bits|type|" */
    const char *alias; /* another name that is accepted, for what is widely known by it */
    const char *values; /* words to complete with, "scalar avx2"; CLI_SCHEMES = the names of schemes and formats */
} cli_option;
#define CLI_SCHEMES "@schemes"

typedef struct cli_operand {
    const char *name; /* "MODEL", a path; or the words that it can be: "bash|zsh" */
    size_t at;        /* a const char * */
    uint32_t optional;
    const char *help;
} cli_operand;

typedef struct cli cli;

typedef struct cli_command {
    const char *name;    /* "bench quality": the words after lq */
    const char *summary; /* one line, no capital, no full stop */
    const char *about;   /* paragraphs; lines as they are printed */
    const cli_operand *operands;
    const cli_option *options;
    const char *examples;
    size_t args_size;
    const void *defaults; /* args_size bytes; NULL = zeros */
    int (*run)(cli *c, const void *args);
} cli_command;

/* One run of the program. */
struct cli {
    const cli_command *command; /* NULL before it is known */
    uint32_t json, help;
    bool failed; /* an error was reported */
};

/* Option rows that several commands have. Threads as the library allows. */
#define CLI_THREADS_MAX 1024
#define CLI_OPT_THREADS(T)                                                                                             \
    {.type = CLI_UINT,                                                                                                 \
     .letter = 't',                                                                                                    \
     .name = "threads",                                                                                                \
     .value = "N",                                                                                                     \
     .at = offsetof(T, threads),                                                                                       \
     .min = 1,                                                                                                         \
     .max = CLI_THREADS_MAX,                                                                                           \
     .help = "threads to use (default: the CPUs this process may use)",                                                \
     .also = "|jobs|cpus|cores|n-threads|"}
/* Where memory lies: `memory` is a cli_memory in the arguments. */
typedef struct cli_memory {
    const char *huge_pages, *numa;
    uint32_t lock;
} cli_memory;
#define CLI_OPT_MEMORY(T)                                                                                              \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "huge-pages",                                                                                             \
     .value = "MODE",                                                                                                  \
     .at = offsetof(T, memory.huge_pages),                                                                             \
     .help = "on, off, or auto: where a short test of reading is faster with them (default: on\n"                      \
             "where the system gives them)",                                                                           \
     .also = "|hugepages|thp|large-pages|",                                                                            \
     .values = "on off auto"},                                                                                         \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "numa",                                                                                                   \
     .value = "MODE",                                                                                                  \
     .at = offsetof(T, memory.numa),                                                                                   \
     .help = "off, interleave: memory in turn over all nodes, or auto: where that reads faster\n"                      \
             "(default: off)",                                                                                         \
     .also = "|nodes|interleave|",                                                                                     \
     .values = "off interleave auto"},                                                                                 \
    {.type = CLI_FLAG,                                                                                                 \
     .name = "mlock",                                                                                                  \
     .at = offsetof(T, memory.lock),                                                                                   \
     .help = "keep weights, KV cache and activations in memory; the limit is ulimit -l",                               \
     .also = "|lock|pin|no-swap|"}
#define CLI_OPT_THREADS_PREFILL(T)                                                                                     \
    {.type = CLI_UINT,                                                                                                 \
     .name = "threads-prefill",                                                                                        \
     .value = "N",                                                                                                     \
     .at = offsetof(T, threads_prefill),                                                                               \
     .min = 1,                                                                                                         \
     .max = CLI_THREADS_MAX,                                                                                           \
     .help = "threads for passes over more than 8 tokens, such as a prompt's (default: as --threads)",                 \
     .also = "|threads-batch|tb|prefill-threads|batch-threads|"}
#define CLI_OPT_IMPORTANCE(T)                                                                                          \
    {.type = CLI_TEXT,                                                                                                 \
     .letter = 'i',                                                                                                    \
     .name = "importance",                                                                                             \
     .alias = "imatrix",                                                                                               \
     .value = "STATS",                                                                                                 \
     .at = offsetof(T, importance),                                                                                    \
     .help = "an importance file, so that errors go where they hurt least: made by\n"                                  \
             "`lq calibrate` or another engine (imatrix.gguf, imatrix.dat). --imatrix is the same",                    \
     .also = "|stats|calibration|importance-matrix|"}
#define CLI_OPT_LORA(field_at, what)                                                                                   \
    {.type = CLI_LIST,                                                                                                 \
     .name = "lora",                                                                                                   \
     .value = "DIR",                                                                                                   \
     .at = field_at,                                                                                                   \
     .help = what "a directory that PEFT writes, or a GGUF file;\n"                                                    \
             "DIR:0.5 halves what it adds. May be given several times, they add up",                                   \
     .also = "|adapter|adapters|lora-scaled|peft|"}
#define CLI_OPT_CTX(T)                                                                                                 \
    {.type = CLI_UINT,                                                                                                 \
     .letter = 'c',                                                                                                    \
     .name = "ctx",                                                                                                    \
     .value = "N",                                                                                                     \
     .at = offsetof(T, ctx),                                                                                           \
     .min = 2,                                                                                                         \
     .max = 16777216,                                                                                                  \
     .help = "tokens per window (default 512, or the trained context where that is smaller)",                          \
     .also = "|context|window|ctx-size|n-ctx|"}
#define CLI_OPT_MAX_TOKENS(T)                                                                                          \
    {.type = CLI_UINT,                                                                                                 \
     .letter = 'm',                                                                                                    \
     .name = "max-tokens",                                                                                             \
     .value = "N",                                                                                                     \
     .at = offsetof(T, max_tokens),                                                                                    \
     .min = 2,                                                                                                         \
     .max = 1e15,                                                                                                      \
     .help = "use the first N tokens of the text (default: all)",                                                      \
     .also = "|tokens|limit|chunks|"}
#define CLI_OPT_SCHEME(T)                                                                                              \
    {.type = CLI_TEXT,                                                                                                 \
     .letter = 's',                                                                                                    \
     .required = 1,                                                                                                    \
     .name = "scheme",                                                                                                 \
     .value = "NAME",                                                                                                  \
     .at = offsetof(T, scheme),                                                                                        \
     .help = "which format each tensor gets, such as q4_k_m; `lq info --schemes` lists all.\n"                         \
             "A format's name (`lq info --formats`) gives every tensor that format",                                   \
     .also = "|bits|type|quant|method|format|",                                                                        \
     .values = CLI_SCHEMES}
/* Where a model runs; an `args` that has one begins with CLI_PLACE in its defaults. */
typedef struct cli_place {
    const char *device; /* "vulkan:0"; NULL = the processor */
    uint64_t layers;    /* how many of the last layers run there; CLI_ALL_LAYERS = nothing was said */
    uint32_t no_pack, pack_at_open;
    const char *load_as; /* quantize while opening; NULL = as stored */
    cli_list lora;       /* adapters to run with */
} cli_place;
#define CLI_ALL_LAYERS UINT64_MAX
#define CLI_PLACE {.device = NULL, .layers = CLI_ALL_LAYERS}
#define CLI_OPT_DEVICE(T)                                                                                              \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "device",                                                                                                 \
     .value = "NAME",                                                                                                  \
     .at = offsetof(T, place.device),                                                                                  \
     .help = "where the model runs (default: cpu); vulkan:0 is the first GPU that Vulkan finds,\n"                     \
             "`lq info --devices` lists what is here",                                                                 \
     .also = "|dev|gpu|backend|main-gpu|vulkan|where|",                                                                \
     .values = "cpu vulkan:0"}
#define CLI_OPT_NO_PACK(T)                                                                                             \
    {.type = CLI_FLAG,                                                                                                 \
     .name = "no-pack",                                                                                                \
     .at = offsetof(T, place.no_pack),                                                                                 \
     .help = "read weights as they lie in the mapped file, instead of copies in the order that\n"                      \
             "is fastest: less memory that other processes cannot share, slower; same results",                        \
     .also = "|no-repack|repack|pack|mmap|"}
#define CLI_OPT_PACK_AT_OPEN(T)                                                                                        \
    {.type = CLI_FLAG,                                                                                                 \
     .name = "pack-at-open",                                                                                           \
     .at = offsetof(T, place.pack_at_open),                                                                            \
     .help = "copy weights into the order that is fastest before the first token, not between\n"                       \
             "the first tokens: the first comes later, the others at full speed; same results",                        \
     .also = "|pack|repack|warmup|first-token|latency|"}
#define CLI_OPT_LOAD_AS(T)                                                                                             \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "load-as",                                                                                                \
     .value = "NAME",                                                                                                  \
     .at = offsetof(T, place.load_as),                                                                                 \
     .help = "quantize the matrices of the layers while the model opens: nf4, nf4_dq, int8,\n"                         \
             "i4_g128, q4_k_m, any format or scheme; embedding, output and norms stay as stored",                      \
     .also = "|load-in-4bit|load-in-8bit|quantize|bits|on-load|",                                                      \
     .values = CLI_SCHEMES}
#define CLI_OPT_RUN_LORA(T)                                                                                            \
    CLI_OPT_LORA(offsetof(T, place.lora), "run with an adapter (LoRA), unmerged and unrounded:\n")
#define CLI_OPT_DRAFT(T)                                                                                               \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "draft",                                                                                                  \
     .value = "MODEL",                                                                                                 \
     .at = offsetof(T, draft),                                                                                         \
     .help = "let this smaller model of the same vocabulary guess tokens (speculative decoding);\n"                    \
             "where --ngram is given too, what that does not find",                                                    \
     .also = "|draft-model|model-draft|speculative|"}
#define CLI_OPT_GPU_LAYERS(T)                                                                                          \
    {.type = CLI_UINT,                                                                                                 \
     .name = "gpu-layers",                                                                                             \
     .value = "N",                                                                                                     \
     .at = offsetof(T, place.layers),                                                                                  \
     .min = 0,                                                                                                         \
     .max = 1000000,                                                                                                   \
     .help = "how many layers --device runs: the last N, and the output; the processor runs\n"                         \
             "the others (default: all of them, and the embedding)",                                                   \
     .also = "|ngl|n-gpu-layers|ngpu-layers|layers|offload|device-layers|"}
/* How RoPE is stretched; NULL and 0 = nothing was said. */
typedef struct cli_rope {
    const char *type;
    double factor;
    uint64_t original;
} cli_rope;
#define CLI_OPT_ROPE(T)                                                                                                \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "rope-scaling",                                                                                           \
     .value = "TYPE",                                                                                                  \
     .at = offsetof(T, rope.type),                                                                                     \
     .help = "contexts beyond the trained one, by none, linear, ntk, dynamic, yarn or llama3\n"                        \
             "(default: what the model says of itself)",                                                               \
     .also = "|rope|",                                                                                                 \
     .values = "none linear ntk dynamic yarn llama3"},                                                                 \
    {.type = CLI_REAL,                                                                                                 \
     .name = "rope-factor",                                                                                            \
     .value = "F",                                                                                                     \
     .at = offsetof(T, rope.factor),                                                                                   \
     .min = 1,                                                                                                         \
     .max = 1e5,                                                                                                       \
     .help = "how many times the original context (default: the context over it)",                                     \
     .also = "|rope-scale|rope-freq-scale|"},                                                                          \
    {.type = CLI_UINT,                                                                                                 \
     .name = "rope-original",                                                                                          \
     .value = "N",                                                                                                     \
     .at = offsetof(T, rope.original),                                                                                 \
     .min = 1,                                                                                                         \
     .max = 268435456,                                                                                                 \
     .help = "the context that the model was trained for at first (default: as it says)",                             \
     .also = "|yarn-orig-ctx|rope-orig|"}
void cli_rope_set(const cli_rope *rope, lq_session_options *options);
/* In which formats keys and values are kept; NULL = nothing was said. */
typedef struct cli_kv {
    const char *both, *v;
} cli_kv;
#define CLI_KV_FORMS "f16 bf16 f32 q8_0 q5_1 q4_0"
#define CLI_OPT_KV(T)                                                                                                  \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "kv",                                                                                                     \
     .value = "FORMAT",                                                                                                \
     .at = offsetof(T, kv.both),                                                                                       \
     .help = "how keys and values are kept: f16, bf16, f32, q8_0 (half of f16's memory, hardly any\n"                  \
             "loss), q5_1 or q4_0 (about a quarter) (default: f16)",                                                   \
     .also = "|cache-type-k|ctk|kv-type|cache-type|type-k|kv-cache|kv-k|",                                             \
     .values = CLI_KV_FORMS},                                                                                          \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "kv-v",                                                                                                   \
     .value = "FORMAT",                                                                                                \
     .at = offsetof(T, kv.v),                                                                                          \
     .help = "values by themselves: they bear fewer bits than keys (default: as --kv)",                                \
     .also = "|cache-type-v|ctv|type-v|",                                                                              \
     .values = CLI_KV_FORMS}
void cli_kv_set(const cli_kv *kv, lq_session_options *options);
#define CLI_OPT_MAX_RAM(T)                                                                                             \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "max-ram",                                                                                                \
     .value = "BYTES",                                                                                                 \
     .at = offsetof(T, max_ram),                                                                                       \
     .help = "KV cache, activations and tables take at most so much memory (8G, 500M) beside the\n"                    \
             "weights. The default context keeps to it; a longer --ctx is refused, and the longest\n"                  \
             "that fits is told",                                                                                      \
     .also = "|memory|ram|"}
#define CLI_OPT_ACTIVATIONS(T)                                                                                         \
    {.type = CLI_TEXT,                                                                                                 \
     .name = "activations",                                                                                            \
     .value = "f32",                                                                                                   \
     .at = offsetof(T, activations),                                                                                   \
     .help = "compute with FP32 activations, to measure the weights alone (default: what the\n"                        \
             "fastest kernels want: 8 bits; BF16 with weights in BF16)"}
#define CLI_OPT_ISA(T)                                                                                                 \
    {                                                                                                                  \
        .type = CLI_TEXT, .name = "isa", .value = "NAME", .at = offsetof(T, isa),                                      \
        .help = "instruction sets to use, such as scalar or avx2: NAME and what it stands on; several are\n"           \
                "joined by +, as `lq info --devices` has this machine's (default: all of them)",                       \
        .also = "|cpu|arch|simd|",                                                                                     \
        .values = "scalar avx2 avxvnni avx512 avx512vnni avx512bf16 amx neon neon_dotprod neon_i8mm"                   \
    }

/* What --lora said: paths without their scales, for lq_quantize_options and lq_model_options. */
typedef struct cli_loras {
    char **paths;
    float *scales;
    uint32_t n;
    char *text; /* where paths lie */
} cli_loras;
/* 0, or the exit code; free in either case. */
int cli_loras_open(cli *c, const cli_list *list, cli_loras *out);
void cli_loras_free(cli_loras *l);

/* Is `word` one of the words of a scheme: int8 of "smooth+int8:rtn"? */
bool cli_scheme_has(const char *scheme, const char *word);
/* Does it write a Hugging Face directory, and never a GGUF file? False for a word that is no scheme. */
bool cli_scheme_is_directory(const char *scheme);

/* The commands in the order of the help text; NULL past the end. */
const cli_command *cli_command_at(size_t i);
size_t cli_command_count(void);
/* The options that every command has; `at` points into the cli. Ends with CLI_END. */
extern const cli_option cli_common_options[];
/* What the exit codes mean, in ascending order; ends with text NULL. */
typedef struct cli_exit {
    int code;
    const char *text;
} cli_exit;
extern const cli_exit cli_exits[];
/* What to try first, as lines of the help text. */
extern const char cli_first_steps[];

/* Parse argv[0..argc) into `args`. 0 to go on, else the exit code (already reported). */
int cli_parse(cli *c, int argc, char **argv, void *args);
void cli_args_free(const cli_command *command, void *args);
void cli_help(FILE *f, const cli_command *command);
/* The manual page of a command in roff; of `lq` itself for NULL. */
void cli_man(FILE *f, const cli_command *command);
/* Which of `names` (count, by a getter) is most like `word`; NULL when there is none. */
const char *cli_nearest(const char *word, const char *(*name)(size_t i), size_t count);

/* ------------------------------------------------------------------------------------------------ errors */

/* Report a failed library call: its sentence, then `hint` (may be NULL) on the next line. Returns the exit code. */
int cli_fail(cli *c, lq_status status, const char *hint);
/* Report an error of our own with the meaning of `status`. Returns the exit code. */
int cli_error(cli *c, lq_status status, const char *fmt, ...) CLI_PRINTF(3, 4);
/* The same for wrong usage; points to the help text. Returns CLI_USAGE. */
int cli_usage(cli *c, const char *fmt, ...) CLI_PRINTF(2, 3);
int cli_nomem(cli *c);
void cli_warn(const char *fmt, ...) CLI_PRINTF(1, 2);
int cli_exit_code(lq_status status);
/* Flush standard output; an exit code of 0 becomes CLI_IO when something did not arrive. */
int cli_finish(cli *c, int code);

/* ------------------------------------------------------------------------------------------------ JSON */

/* Strings that are not UTF-8 get U+FFFD, numbers that are not finite become null. */
json_t *cli_json_text(const char *text, size_t bytes);
void cli_set(json_t *object, const char *key, json_t *value);
void cli_set_text(json_t *object, const char *key, const char *text);
void cli_set_int(json_t *object, const char *key, uint64_t value);
void cli_set_real(json_t *object, const char *key, double value);
void cli_set_bool(json_t *object, const char *key, bool value);
/* Print and release. Returns `code`, or the exit code of a failure to print. */
int cli_json_print(cli *c, json_t *value, int code);

/* ------------------------------------------------------------------------------------------------ progress */

typedef struct cli_progress {
    const char *label;
    double start, last; /* seconds; last = 0: nothing shown yet */
    bool terminal, color, shown;
} cli_progress;

void cli_progress_begin(cli_progress *p, const char *label);
/* An lq_progress with the cli_progress as `user`: shows, and cancels when interrupted. */
int cli_progress_update(void *user, uint64_t done, uint64_t total, const char *what);
/* Remove the bar, so that a line can be printed; the next update draws it again. */
void cli_progress_clear(cli_progress *p);

/* ------------------------------------------------------------------------------------------------ signals */

/* From here on SIGINT and SIGTERM ask to stop once; the second one kills. SIGPIPE and SIGXFSZ are ignored. */
void cli_signals(void);
/* The signal that asked to stop, 0 = none. */
int cli_interrupted(void);
/* A signal cancels these sessions until cli_unwatch; call that before closing them. */
void cli_watch(lq_session *const *sessions, size_t count);
void cli_unwatch(void);

/* ---------------------------------------------------------------------------------------------- files, text, models */

double cli_clock(void);
/* Read a whole file ("-" = standard input) with a NUL after it; the caller frees. Returns an exit code. */
int cli_read(cli *c, const char *path, char **text, size_t *bytes);
/* Read and tokenize a corpus and refuse one that is empty, binary, or under `required` tokens. Returns an exit code. */
int cli_corpus(cli *c, const lq_model *model, const char *path, uint64_t required, int32_t **ids, size_t *count);
/* Tokenize; the caller frees. */
int cli_tokenize(cli *c, const lq_model *model, const char *text, size_t bytes, uint32_t flags, int32_t **ids,
                 size_t *count);
/* `memory` may be NULL. */
int cli_open(cli *c, uint64_t threads, const char *isa, const cli_memory *memory, lq_ctx **ctx);
/* Refuse a value of --activations (NULL = none) before anything is loaded. */
int cli_check_activations(cli *c, const char *name);
/* What a model is opened with for sessions with these activations: those in float32 read no packed weights. */
lq_model_options cli_model_options(const char *activations);
/* Open a model where `place` says; `o` (may be NULL) has the other options. A failure says what to try next. */
int cli_model(cli *c, lq_ctx *ctx, const char *path, const cli_place *place, const lq_model_options *o,
              lq_model **model);
/* The draft model of one where `place` says: on the same device, with all its layers; path NULL = none. */
int cli_draft(cli *c, lq_ctx *ctx, const char *path, const cli_place *place, const lq_model_options *o,
              lq_model **draft);
/* Open a session; out of memory reports what the plan needs. */
int cli_session(cli *c, lq_model *model, const lq_session_options *options, lq_session **session);

/* ------------------------------------------------------------------------------------------------ devices */

/* The plan of a session; device_memory counts what the weights take, whether they are there yet (`loaded`) or not. */
/* "8G", a number and what it counts, as --max-ram has it; NULL = 0. */
int cli_ram(cli *c, const char *text, uint64_t *out);
lq_status cli_plan(const lq_model *model, const lq_session_options *options, bool loaded, lq_plan_info *plan);
/* The plan's division of labour in words, as one line on `f`; nothing when the processor runs it all. */
void cli_plan_print(FILE *f, const lq_plan_info *plan);
/* The same as an object; NULL when the processor runs it all. */
json_t *cli_plan_json(const lq_plan_info *plan);
/* Before a session is opened: the plan into *plan, and in words on standard error unless there is JSON to come. */
int cli_plan_tell(cli *c, const lq_model *model, const lq_session_options *options, lq_plan_info *plan);
/* What crossed between the processor and the device: a line on standard error, or the object "border"; nothing when
 * nothing did. */
void cli_border_print(const lq_stats *stats);
void cli_border_json(json_t *object, const lq_stats *stats);

/* ------------------------------------------------------------------------------------------------ short texts */

/* A short text by value: use `.s` within the same expression. */
typedef struct cli_str {
    char s[256];
} cli_str;
/* "f16"; "q8_0 and q4_0" of keys and values. */
cli_str cli_kv_text(const lq_plan_info *plan);
/* A string safe for a terminal and a table: control bytes become '?', what is too long is cut. */
cli_str cli_safe(const char *text);
/* "3.41 MiB" */
cli_str cli_bytes(uint64_t bytes);

#endif
