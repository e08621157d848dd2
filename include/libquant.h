/* libquant.h: the public interface of libquant, an engine that quantizes large language models and runs them.
 *
 * Read it from top to bottom: status, context, formats, model, quantize, session, text, decode, sample, embed,
 * evaluate, calibrate.
 * A program that generates text needs nine functions: lq_open, lq_model_open, lq_session_open, lq_tokenize, lq_decode,
 * lq_step and three closes; tools/examples/generate.c is such a program.
 *
 * Rules that hold for every function here
 *   Errors     A function that can fail returns lq_status: 0 (LQ_OK) or a negative code. On failure every out-parameter
 *              is untouched, and lq_error_detail() says in one sentence which file, key, tensor or byte was at fault.
 *              After a code at or below LQ_FATAL the object may only be closed. Nothing aborts, exits, prints, raises
 *              or catches a signal, reads the environment, or changes the locale.
 *   Memory     Inputs belong to the caller and are read only during the call. Borrowed results say until when they
 *              live. Variable output takes `size_t *n`: in = capacity, out = needed; when the capacity is too small the
 *              call fails with LQ_E_ARG, writes nothing but *n, and can be repeated. Every close accepts NULL.
 *   Structs    Options and infos begin with `uint32_t size`, which the caller sets to sizeof of the struct; a NULL
 *              options pointer means defaults, and so does each zero field. Fields are only ever added at the end.
 *   Threads    lq_ctx is thread-safe once open. lq_model is immutable and shared freely. lq_session serves one thread
 *              at a time; several sessions run in parallel. lq_session_cancel may be called from any thread.
 *              Callbacks run on the thread that made the call.
 *   Text       UTF-8 in and out, with explicit lengths; invalid UTF-8 passes through tokenization unchanged.
 */
#ifndef LIBQUANT_H
#define LIBQUANT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define LQ_API __attribute__((visibility("default")))
#else
#define LQ_API
#endif

/* ------------------------------------------------------------------------------------------------ version, status */

#define LQ_VERSION_MAJOR 0
#define LQ_VERSION_MINOR 1
#define LQ_VERSION_PATCH 0

typedef int32_t lq_status;

enum {
    LQ_OK = 0,
    LQ_E_ARG = -1,          /* an argument is out of its documented range */
    LQ_E_IO = -2,           /* the operating system refused a read or write, or there is no space */
    LQ_E_TRUNCATED = -3,    /* a file ends before what it announces */
    LQ_E_FORMAT = -4,       /* a file breaks the rules of its format */
    LQ_E_LIMIT = -5,        /* a file or request exceeds a stated limit */
    LQ_E_UNSUPPORTED = -6,  /* valid, but not something this build can do */
    LQ_E_INCONSISTENT = -7, /* parts of a model contradict one another */
    LQ_E_NOMEM = -8,        /* not enough memory */
    LQ_E_CONTEXT = -9,      /* a sequence would exceed the context of its session */
    LQ_E_BUSY = -10,        /* another process or thread holds the object */
    LQ_E_CANCELLED = -11,   /* a callback or lq_session_cancel asked to stop */
    LQ_E_NUMERIC = -12,     /* logits or scales are not finite */
    LQ_FATAL = -100,        /* codes at or below: the object may only be closed */
    LQ_E_DEVICE = -101,     /* a device failed or vanished */
    LQ_E_INTERNAL = -102    /* a bug in libquant */
};

/* The library's version at run time as major * 10000 + minor * 100 + patch. */
LQ_API uint32_t lq_version(void);
/* The same as text, "0.1.0". Static storage. */
LQ_API const char *lq_version_string(void);
/* The name of a status code, "LQ_E_FORMAT"; "LQ_E_?" for a code this build does not know. Static storage. */
LQ_API const char *lq_status_name(lq_status status);
/* One sentence about the last failure on the calling thread; "" when none yet. Valid until this thread's next call. */
LQ_API const char *lq_error_detail(void);

/* ------------------------------------------------------------------------------------------------ context, devices */

typedef struct lq_ctx lq_ctx;
typedef struct lq_model lq_model;
typedef struct lq_session lq_session;

typedef enum { LQ_LOG_ERROR = 0, LQ_LOG_WARN = 1, LQ_LOG_INFO = 2, LQ_LOG_DEBUG = 3 } lq_log_level;

/* Memory hook. `alloc` returns `bytes` bytes aligned to `align` (a power of two) or NULL; `free` gets the same `bytes`
 * that were asked for. Both must be thread-safe. */
typedef struct lq_allocator {
    void *(*alloc)(void *user, size_t bytes, size_t align);
    void (*free)(void *user, void *ptr, size_t bytes);
    void *user;
} lq_allocator;

typedef struct lq_options {
    uint32_t size;
    uint32_t threads;              /* default for models and sessions; 0 = what affinity and cgroup quota allow */
    /* Instruction sets used: "avx2" is that one and what it stands on, "a+b" those of both. NULL = all present. On
     * processors with AMX, NULL and "amx" ask Linux to let this process use tile registers (arch_prctl): this holds for
     * all its threads, for good, and makes signal frames up to 8 KiB larger on threads that have used tiles. Where a
     * thread's alternate signal stack is too small for that Linux refuses, and "amx" is not among those present. */
    const char *isa;
    const lq_allocator *allocator; /* copied; NULL = the C library's */
    /* Called with each message; may come from any thread. NULL = silent. */
    void (*log)(void *user, lq_log_level level, const char *message);
    void *log_user;
    uint32_t threads_prefill;      /* default of lq_session_options.threads_prefill; 0 = as many as `threads` */
    /* How large blocks of the processor's memory lie: weights that are copied or packed, KV, activations. */
    const char *huge_pages;        /* "on": huge pages, LQ_E_UNSUPPORTED where the system gives none; "off": not asked for;
                                      "auto": where a short test of reading is faster with them (a tenth of a second); NULL:
                                      asked for where the system gives them. What the kernel then does is its own matter */
    const char *numa;              /* "interleave": pages in turn over all NUMA nodes that this process may use,
                                      LQ_E_UNSUPPORTED where the system refuses; "auto": where the test of reading is faster
                                      so; NULL or "off": where each page is first touched. With one node there is nothing
                                      to do. Weights of a mapped file stay where they are, and the log warns of it */
    uint32_t lock;                 /* 1 = these blocks, and the weights that are read from a mapped file, are locked in
                                      memory (mlock); LQ_E_NOMEM where the system does not let them: see RLIMIT_MEMLOCK */
} lq_options;

/* Open a context: the devices and the defaults that models and sessions share. Close it after them. */
LQ_API lq_status lq_open(const lq_options *options, lq_ctx **out);
LQ_API void lq_close(lq_ctx *ctx);

typedef struct lq_device_info {
    uint32_t size;
    uint32_t threads;     /* CPU: threads a session uses by default */
    char name[64];        /* "cpu:0" */
    char description[96]; /* "AMD EPYC, avx2" */
    char isa[32];         /* the instruction sets in use, as lq_options.isa takes them */
    uint64_t memory;      /* bytes of memory the device can offer now, cgroup and RLIMIT_AS counted */
    char placing[256];    /* CPU: how large blocks are placed, "huge pages on; NUMA off"; what "auto" found */
} lq_device_info;

LQ_API uint32_t lq_device_count(const lq_ctx *ctx);
LQ_API lq_status lq_device_info_get(const lq_ctx *ctx, uint32_t index, lq_device_info *info);

/* ------------------------------------------------------------------------------------------------ formats, schemes */

typedef struct lq_format_info {
    uint32_t size;
    uint32_t block_weights; /* weights per block along a row */
    uint32_t block_bytes;
    int32_t gguf_id;        /* its tensor type in GGUF files; -1 = none */
    const char *name;       /* "q4_k"; static storage */
    double bits_per_weight;
} lq_format_info;

/* Tensor formats, by index below lq_format_count or by name. A name is the only stable key. */
LQ_API uint32_t lq_format_count(void);
LQ_API lq_status lq_format_info_get(uint32_t index, lq_format_info *info);
LQ_API lq_status lq_format_find(const char *name, uint32_t *index);

/* Quantization schemes ("q4_k_m") are recipes that give each tensor a format. Index below lq_scheme_count; names and
 * one-line descriptions are static storage. Returns NULL past the end. */
LQ_API uint32_t lq_scheme_count(void);
LQ_API const char *lq_scheme_name(uint32_t index, const char **description);

/* ------------------------------------------------------------------------------------------------ model */

typedef struct lq_model_options {
    uint32_t size;
    uint32_t check_tensors; /* 1 = read every weight and refuse non-finite values with LQ_E_INCONSISTENT */
    uint32_t no_mmap;       /* 1 = read the file into memory. The default maps it, which is unsafe for a file that
                               another program truncates while the model is open (the system then raises SIGBUS) */
    const char *device;     /* where it runs, by the name in lq_device_info: "vulkan:0"; NULL = the processor */
    uint32_t gpu_layers;    /* how many layers `device` runs: the last ones, with the output; the processor runs the
                               others. 0, or at least as many as there are = all, and the embedding too */
    uint32_t plan_only;     /* 1 = nothing is packed or written to `device`: for lq_model_plan; no session can be opened */
    uint32_t no_pack;       /* 1 = the processor reads weights as they lie in the file, shared with other processes that
                               map it: no time or memory for packing, slower kernels. The results are the same */
    const char *load_as;    /* quantize while opening, NULL = nothing: a format ("nf4", "nf4_dq", "i8_row" or "int8",
                               "i4_g128", "q4_k", ...) or a scheme ("q4_k_m"). The matrices of the layers that are stored
                               in F32, F16 or BF16 are rounded to nearest, into memory of their own; the embedding, the
                               output matrix, norms and biases stay as stored. LQ_E_ARG names a matrix that is already
                               quantized. lq_model_plan counts the new bytes, with plan_only before anything is done */
    uint32_t pack_at_open;  /* 1 = all weights are packed when lq_model_open returns. The default is that sessions pack
                               them bit by bit between their first passes, on their threads: the first token comes
                               sooner, the next ones later. Before a long pass all of them are packed. The results are
                               the same. Where memory is locked (lq_options.lock) they are packed at open in any case */
    /* Adapters of low rank (LoRA), as in lq_quantize_options, that the model runs with unmerged: beside each of their matrices
     * two small products in float32, which are not rounded. For matrices of the layers: LQ_E_UNSUPPORTED for an output matrix;
     * lq_calibrate wants them merged. With `device` all of A and B is there too */
    const char *const *loras;
    const float *lora_scales; /* [n_loras]; NULL = all 1. With 0 nothing is added */
    uint32_t n_loras;
} lq_model_options;

/* Open a model: a GGUF file (any shard of a split set), or a Hugging Face directory with config.json and safetensors.
 * Everything is validated before it is used; names, shapes and formats are bound here. The files stay open until the
 * model is closed. With a device its layers' weights are copied there. LQ_E_ARG: no such device in this build;
 * LQ_E_UNSUPPORTED: it is not present here, or lacks what every kernel needs; LQ_E_NOMEM: they do not fit, with the
 * bytes needed and free. No layer runs elsewhere than was asked for. */
LQ_API lq_status lq_model_open(lq_ctx *ctx, const char *path, const lq_model_options *options, lq_model **out);
LQ_API void lq_model_close(lq_model *model);

typedef struct lq_model_info {
    uint32_t size;
    char architecture[32];  /* "llama" */
    char name[64];
    char container[32];     /* "gguf v3", "huggingface" */
    char file_scheme[32];   /* the scheme the file says it was made with, "q4_k_m"; "" = unknown */
    uint32_t layers, heads, heads_kv, head_dim, embedding, feed_forward, vocabulary;
    uint32_t context;       /* trained context in tokens */
    uint64_t parameters;
    uint64_t weight_bytes;  /* bytes of all tensors as stored */
    uint64_t bytes_per_token; /* weight bytes read to decode one token: adapters too, of the embedding table one row */
    double bits_per_weight;
    uint32_t tensors;
    int32_t bos, eos;       /* token ids, -1 = none */
    uint32_t add_bos;       /* 1 = the model expects a BOS token first */
    /* How its file stretches RoPE beyond the original training: "none", "linear", "dynamic", "yarn", "llama3", "longrope" */
    const char *rope_scaling; /* static storage */
    double rope_factor;     /* 1 = not stretched; of "llama3" as GGUF files have it, a tensor of factors: the largest */
    uint32_t rope_original; /* context of that training; 0 = the file does not say */
    uint32_t longest_context; /* that a session may have without a rope_scaling of its own: `context`, or more by the factor */
} lq_model_info;

LQ_API lq_status lq_model_info_get(const lq_model *model, lq_model_info *info);

/* A metadata value as text (numbers printed, strings copied with a terminating NUL, arrays as "[n values]"), by key, or
 * by index with key = NULL. `name` (may be NULL) receives the key, borrowed until the model is closed.
 * LQ_E_ARG when there is no such key or index. */
LQ_API lq_status lq_model_meta(const lq_model *model, const char *key, uint32_t index, const char **name, char *text,
                               size_t *n);

typedef struct lq_tensor_info {
    uint32_t size;
    uint32_t rank;
    uint64_t shape[8];      /* shape[0] is the contiguous dimension: the inputs of a matrix */
    uint64_t bytes;
    const char *name;       /* as in the file; borrowed until the model is closed */
    const char *role;       /* the class of the tensor, "ffn_down"; "" when the architecture does not use it */
    const char *format;     /* static storage */
} lq_tensor_info;

/* The tensor at an index below lq_model_info.tensors, in file order. */
LQ_API lq_status lq_model_tensor(const lq_model *model, uint32_t index, lq_tensor_info *info);

/* Decode row `row` (rows counted over all dimensions but the first) of a tensor to shape[0] floats. */
LQ_API lq_status lq_model_tensor_row(const lq_model *model, uint32_t index, uint64_t row, float *out);

/* ------------------------------------------------------------------------------------------------ quantize */

/* Progress of a long call: `done` of `total` units. Return non-zero to cancel: the call then ends with LQ_E_CANCELLED
 * and leaves nothing behind. */
typedef int (*lq_progress)(void *user, uint64_t done, uint64_t total, const char *what);

typedef struct lq_tensor_report {
    uint32_t size;
    const char *name, *from, *to; /* valid during the callback */
    const char *wanted;           /* what the scheme asked for: differs from `to` on a fall-back */
    uint64_t weights, bytes;
    double rel_error;             /* ||W - Q|| / ||W|| (Frobenius), 0 when copied */
    uint32_t importance;          /* 1 = the importance file said how much each input's errors count */
    const char *quantizer;        /* what chose the bits: "search"; "" when copied; static storage */
    double weighted_error;        /* as rel_error, each input's part counted by its importance; without it, rel_error */
    double bits_per_weight;
    uint32_t adapters;            /* so many adapters were merged into it */
    const char *transform;        /* whose factors were folded into it, or whose limits clipped it: "awq"; "" = none; static storage */
} lq_tensor_report;

typedef struct lq_quantize_options {
    uint32_t size;
    const char *scheme;     /* required unless `recipe` is given: a name of lq_scheme_name, or a format name for
                               "everything that format". "q4_k_m:gptq": the layers' matrices by that quantizer ("rtn",
                               "search", "gptq"); "awq+q4_k_m": with the factors of that transform ("awq", "smooth") that
                               `importance` has; "q4_k_m+imatrix": LQ_E_ARG without `importance` */
    uint32_t threads;
    uint32_t force;         /* 1 = replace an existing destination */
    uint32_t requantize;    /* 1 = accept a source that is already quantized */
    uint32_t dry_run;       /* 1 = report what would be written, write nothing */
    lq_progress progress;   /* counts weights; may be NULL */
    void (*report)(void *user, const lq_tensor_report *tensor); /* after each tensor; may be NULL */
    void *user;
    const char *importance; /* path of an importance file (lq_calibrate; another engine's imatrix.gguf or imatrix.dat);
                               NULL = every input counts alike */
    const char *recipe;     /* instead of `scheme`, path of a recipe: a text that gives each tensor a format and a quantizer
                               (recipes of the schemes: libquant/recipes/; the language: libquant/recipe.h).
                               LQ_E_FORMAT names the line */
    /* Adapters of low rank (LoRA) that are merged before anything is rounded, in this order: each a directory that PEFT writes
     * (adapter_config.json, adapter_model.safetensors) or a GGUF file of general.type "adapter". To each matrix they add
     * scale * (alpha / rank) * B A, in float32. At most 64 */
    const char *const *loras;
    const float *lora_scales; /* [n_loras]; NULL = all 1. With 0 nothing is added */
    uint32_t n_loras;
} lq_quantize_options;

typedef struct lq_quantize_result {
    uint32_t size;
    uint32_t tensors, fallbacks;
    uint64_t weights, bytes;      /* bytes of the whole file */
    double bits_per_weight, seconds;
    uint32_t with_importance;     /* tensors in blocks of bits whose errors were weighted by the importance file */
    uint32_t without_importance;  /* and those that it has no entry for: quantized as without a file */
    uint32_t adapted;             /* tensors that adapters were merged into */
} lq_quantize_result;

/* Write the model at `src` (GGUF or Hugging Face directory) to `dst`: a GGUF file, or with a scheme of that kind ("nf4",
 * "nf4-dq", "int8", "gptq-4bit-g128", ...; f16, bf16 and f32 where dst ends in '/' or is a directory) a Hugging Face
 * directory. Streams tensor by tensor. What is written appears under its name only when it is complete and was read back; on
 * any failure nothing is left behind, and a directory that `force` replaces stays as it was. LQ_E_UNSUPPORTED: a scheme of
 * directories with a dst that ends in ".gguf" (names the nearest GGUF scheme) or from a GGUF file; RoPE scaling that GGUF has no
 * form for. (config.json's goes into keys and tensors of factors, as other engines read them; "dynamic", which has none but does
 * nothing up to the trained context, is left out, and the log says so.)
 * LQ_E_ARG: dst is src, or exists without `force`, or src is quantized without `requantize`; LQ_E_IO: too little space;
 * LQ_E_BUSY: another process writes dst. `result` may be NULL.
 * An importance file is validated whole before anything is written. LQ_E_INCONSISTENT: an entry has another number of
 * inputs than its tensor, or no entry belongs to any tensor. With one, schemes may choose other formats ("importance" in
 * a recipe).
 * A scheme with a transform: LQ_E_ARG without `importance`, or with a file that has no factors or those of another transform;
 * LQ_E_INCONSISTENT: factors or limits that are not about this model, or that nobody can take back.
 * Adapters too are validated whole. LQ_E_INCONSISTENT: a target that the model lacks, another shape or architecture, ranks that
 * disagree, a rank or alpha of 0, values that are not finite, another base than the key libquant.base.hash says (PEFT's name of
 * a base is not looked at); LQ_E_UNSUPPORTED: what would add anything else than this sum (DoRA, biases, whole modules,
 * embeddings, use of a field that is not known), by name. A GGUF file says what was merged: libquant.lora.N.name and .scale. */
LQ_API lq_status lq_quantize(lq_ctx *ctx, const char *src, const char *dst, const lq_quantize_options *options,
                             lq_quantize_result *result);

/* ------------------------------------------------------------------------------------------------ session */

typedef struct lq_session_options {
    uint32_t size;
    uint32_t context;        /* tokens per sequence; 0 = the trained context where it fits into memory, else the largest power
                                of two that does, at least min(4096, trained): where three quarters of what is left beside
                                the weights hold the session (control groups and RLIMIT_AS counted; the device's memory
                                too), and max_bytes does. lq_model_plan tells it */
    uint32_t batch;          /* most tokens evaluated in one pass over the weights; 0 = 512; longer input is split */
    uint32_t max_logits;     /* most rows of logits one lq_decode may ask for, such as one for each sequence; 0 = 1 */
    uint32_t threads;        /* 0 = the context's */
    const char *activations; /* "f32" = FP32 activations everywhere; NULL = what the fastest kernels want: 8 bits, or
                                BF16 with weights in BF16 */
    uint32_t threads_prefill; /* of passes over more than 8 tokens: arithmetic bounds them, so they may profit from
                                threads that memory leaves idle in decode, which has `threads`. 0 = `threads` where that is
                                set, else the context's. Results are the same for any number */
    uint32_t sequences;      /* that the session keeps side by side, numbered from 0; 0 = 1, at most 4096 */
    uint32_t no_reuse;       /* 1 = every token is evaluated. The default is that keys and values of texts that begin in the
                                same way are shared, and found again as long as their room is not needed: the results
                                are the same to the last bit on the processor, and only time is saved */
    uint64_t kv_tokens;      /* tokens for which keys and values are kept, over all sequences: at least `context`; sequences
                                that share a beginning need it once. 0 = as many as all sequences can have */
    uint32_t checkpoints;    /* recurrent models: states kept for reuse, besides each sequence's own; 0 = 4 */
    /* What happens when a sequence is to become longer than the context:
     *   "error"  NULL too: lq_decode and lq_sync end with LQ_E_CONTEXT, and nothing is evaluated.
     *   "stop"   they evaluate the tokens that fit, keep the logits of these that were asked for, and then end with
     *            LQ_E_CONTEXT; lq_seq_info.refused says how many were not taken. Other sequences of the call get all of theirs.
     *   "slide"  a token that finds the context full drops half of the tokens behind the first overflow_keep ones (half of
     *            context - overflow_keep, rounded up; the oldest), and what is behind the gap moves there. Many tokens at once
     *            come to the same text as one by one. What moved is evaluated again, since keys depend on positions: the logits
     *            are those of the text that is left, to the last bit. lq_seq_info says how many were dropped, and evaluated
     *            again. Logits cannot be asked for of tokens before the last drop of a call (LQ_E_CONTEXT).
     * None concerns kv_tokens: what all together have no room for is LQ_E_CONTEXT, and nothing is changed. */
    const char *overflow;
    uint32_t overflow_keep;  /* of "slide": less than the context; 0 = 1 where the model wants a BOS token first, else none */
    const char *kv_k;        /* format that keys are kept in: "f16", "bf16", "f32", "q8_0" (8.5 bits a number), "q5_1" (6) or
                                "q4_0" (4.5, turned by a Hadamard transform first). NULL = f16, or f32 with activations f32 */
    const char *kv_v;        /* that of values; NULL = as kv_k. libquant/README.md says what each costs in quality */
    uint64_t max_bytes;      /* never more than so many bytes of keys and values, activations, logits and tables, on all devices
                                together: LQ_E_NOMEM names what is needed and the longest context that fits. 0 = no limit */
    /* Speculation: lq_step may guess tokens ahead, evaluate them together, and keep those that the sampler then chooses.
     * Every token is drawn by (seed, position) from the model's own logits, so the text is the same, token by token, greedy
     * or not. (On a device as far as its logits are the same for few columns and for one.) Not for recurrent models */
    uint32_t ngram;          /* guess what followed the last N tokens where they occurred in the sequence before, N at most
                                this and at least 2 (or 1, where this is 1); 0 = do not, at most 32 */
    lq_model *draft;         /* else ask this model, on the processor or where the model is. LQ_E_INCONSISTENT where its
                                vocabulary is another one. It stays open until the session is closed. The session keeps its
                                keys and values too, which the plan counts; its weights are its own plan's */
    uint32_t draft_tokens;   /* with either: at most so many guesses in one lq_step, shared by its items; 0 = 8, at most 64 */
    uint32_t embed;          /* 1 = a session for lq_embed: hidden rows come out of it, and no logits (max_logits counts for
                                nothing, lq_step, lq_evaluate and lq_compare refuse it) */
    /* Contexts beyond those of training take an explicit stretching of the rotations that mark positions: the model's own, or
     * this one, which replaces it. A context longer than rope_factor * rope_original is LQ_E_CONTEXT.
     *   "none"     the model's own is switched off
     *   "linear"   all frequencies are divided by the factor
     *   "ntk"      the base times factor^(d / (d - 2)): high frequencies stay nearly as they are, the lowest is divided by the factor
     *   "dynamic"  the same by the factor that this session's whole context needs (as other libraries do at that length)
     *   "yarn"     high ones stay, low ones are divided, a ramp between; cosines and sines times 0.1 ln(factor) + 1
     *   "llama3"   likewise, by wavelengths of a quarter and of all of rope_original
     * LQ_E_ARG for other names and for "longrope", whose factors only a model has (two sets: a sequence that crosses the original
     * context is evaluated again, and lq_seq_info.why_again says so). NULL = as the model says, with the fields below 0. */
    const char *rope_scaling;
    double rope_factor;      /* 1 to 1e5; 0 = context / rope_original */
    double rope_attention;   /* "yarn": the factor of cosines and sines; 0 = as above */
    double rope_beta_fast, rope_beta_slow; /* "yarn": rotations within rope_original at the ends of the ramp; 0 = 32 and 1 */
    uint32_t rope_original;  /* context of the training; 0 = what the model says it was, else its trained context */
} lq_session_options;

/* A session keeps sequences over a model: their tokens, keys and values, and logits. All its memory is allocated here. */
LQ_API lq_status lq_session_open(lq_model *model, const lq_session_options *options, lq_session **out);
LQ_API void lq_session_close(lq_session *session);

/* Make the running lq_decode, lq_sync, lq_step, lq_embed, lq_evaluate, lq_compare, lq_calibrate, lq_seq_save or lq_seq_load of
 * this session return LQ_E_CANCELLED: on the processor within a part of a layer's step; on a device within a layer, or 100 ms
 * where that is longer, but a pass over at most 8 tokens ends first. From any thread or a signal handler. Without a running call,
 * or too late for it, the next of these calls returns it at once. Sequences keep the tokens of finished passes. */
LQ_API void lq_session_cancel(lq_session *session);

typedef struct lq_plan_info {
    uint32_t size;
    uint32_t context, batch, threads;
    uint64_t weights;       /* bytes of weights, mapped from the file unless no_mmap, and of adapters, in memory */
    uint64_t kv;            /* bytes of the KV cache */
    uint64_t activations;   /* bytes of activations, logits and scratch */
    uint64_t total;         /* the most that opening and running add to resident memory (libquant/README.md: what counts) */
    /* Of the model's device, in its own memory; 0 and "" without one. The fields above are of the processor's memory. */
    char device[64];            /* "vulkan:0" */
    uint32_t layers;            /* of the model */
    uint32_t device_layers;     /* the last so many of them, and the output, run there */
    uint32_t device_embedding;  /* 1 = the embedding too: ids go in, logits come out */
    uint64_t device_weights, device_kv, device_activations, device_total;
    uint64_t device_memory;     /* what it can offer now; the weights (but with plan_only) and device_own are taken */
    uint64_t border_bytes;      /* hidden values that pass from the processor to the device, per token */
    uint64_t device_staging;    /* bytes of the processor's memory through which the device is reached; part of total */
    uint64_t device_own;        /* bytes of its memory that the open device holds for itself; part of device_total */
    uint64_t packed;            /* bytes of the processor's memory for weights in the layout of its kernels. Of a mapped
                                   file the weights behind them leave memory, and `total` counts them once */
    uint32_t threads_prefill;   /* of passes over more than 8 tokens */
    uint64_t locked;            /* bytes that lq_options.lock keeps in memory, whole pages; part of total */
    uint32_t sequences;
    const char *kv_k, *kv_v;    /* formats of keys and values; static storage */
} lq_plan_info;

/* The bytes that a session with these options needs, without opening it, and the context that it would have. */
LQ_API lq_status lq_model_plan(const lq_model *model, const lq_session_options *options, lq_plan_info *info);

typedef struct lq_session_info {
    uint32_t size;
    uint32_t context, batch, max_logits, threads;
    uint32_t trained_context;
    uint64_t kv_bytes, activation_bytes; /* of the processor's memory */
    uint64_t device_kv_bytes, device_activation_bytes;
    uint32_t threads_prefill;
    uint32_t sequences;
    uint64_t kv_tokens, kv_free; /* tokens that layers without a window can keep, and for how many of these there is room now:
                                    what is only kept for reuse counts as free */
    const char *overflow;        /* "error", "stop" or "slide"; static storage */
    uint32_t overflow_keep;
    const char *kv_k, *kv_v;     /* formats of keys and values; static storage */
    const char *rope_scaling;    /* "none", "yarn", ...; static storage */
    double rope_factor;
    uint32_t rope_original;      /* 0 = not known */
} lq_session_info;
LQ_API lq_status lq_session_info_get(const lq_session *session, lq_session_info *info);

/* Tokens in a sequence; 0 where there is no such sequence. */
LQ_API uint32_t lq_seq_length(const lq_session *session, uint32_t sequence);

/* Shorten a sequence to its first `length` tokens; 0 empties it. What was cut stays known for reuse. Where what the remaining
 * tokens need is gone (a sliding window had moved on, a recurrent state was not kept), the next lq_decode evaluates some of
 * them again, and lq_seq_info says how many. */
LQ_API lq_status lq_seq_truncate(lq_session *session, uint32_t sequence, uint32_t length);

/* Make sequence `to` the same as `from`, whatever it was. Keys and values are shared, and nothing is copied but a recurrent
 * state; the first token that one of them adds copies the page that is not full. */
LQ_API lq_status lq_seq_fork(lq_session *session, uint32_t from, uint32_t to);

/* Write a sequence, with its keys, values and state, by one or more calls of `write`, which returns 0, or anything else to end
 * with LQ_E_IO; and read it again, into the place of what `sequence` was, by calls of `read`, which fills all n bytes and
 * returns 0, or anything else where it cannot (LQ_E_TRUNCATED). The next tokens then give the logits that they would
 * have given. The bytes are checked by a sum before they count, and no length is believed: LQ_E_FORMAT for other bytes or a
 * newer version, LQ_E_INCONSISTENT for another model (by names, shapes and samples of its tensors), other adapters or another
 * way of keeping keys and values, LQ_E_CONTEXT for a text that is too long. After a failure the sequence is empty. What was
 * loaded is shared with forks, but never found by other texts. Little-endian. */
typedef int (*lq_write_bytes)(void *user, const void *data, size_t n);
typedef int (*lq_read_bytes)(void *user, void *data, size_t n);
LQ_API lq_status lq_seq_save(lq_session *session, uint32_t sequence, lq_write_bytes write, void *user);
LQ_API lq_status lq_seq_load(lq_session *session, uint32_t sequence, lq_read_bytes read, void *user);

typedef struct lq_seq_info {
    uint32_t size;
    uint32_t length;  /* tokens */
    uint32_t pending; /* of them, at the end, those that the next lq_decode or lq_step evaluates first */
    uint32_t cached;  /* tokens of the last lq_decode or lq_sync that were not evaluated, because they were known */
    uint32_t again;   /* tokens that it evaluated again or at last: behind a cut (lq_seq_truncate), because they moved (`dropped`;
                         where lq_step dropped tokens, the next call does that), or because they were pending */
    const char *miss; /* why no more tokens were known than were, "" = all were; static storage */
    /* lq_session_options.overflow: */
    uint64_t dropped; /* tokens that the last lq_decode, lq_sync or lq_step dropped to make room; of those left `again` were evaluated anew */
    uint64_t dropped_in_all; /* of this text so far; draws count them as tokens before */
    uint64_t refused; /* tokens of the last call that had no room and were not taken */
    const char *why_again; /* why `again` were: a cut, a slide, or other factors of RoPE; "" = none were; static storage */
} lq_seq_info;
LQ_API lq_status lq_seq_info_get(const lq_session *session, uint32_t sequence, lq_seq_info *info);

typedef struct lq_stats {
    uint32_t size;
    uint32_t last_logits_hash;       /* FNV-1a of the last row of logits: equal hashes = equal bits */
    uint64_t prefill_tokens, decode_tokens; /* decode = passes over one token of each sequence */
    double prefill_seconds, decode_seconds; /* with what was packed before each pass (lq_model_options.pack_at_open) */
    uint64_t decode_bytes;           /* weight and KV bytes read by the decode passes */
    uint64_t border_bytes;           /* hidden values that passed from one device to the next: once out, once in */
    double border_seconds;           /* and the time that copying them took */
    uint64_t decode_barriers;        /* points of the decode passes at which the processor's threads waited for one another */
    uint64_t drafted, accepted;      /* tokens that lq_step guessed ahead, and those of them that it kept. Passes over guesses
                                        are decode passes, and decode_tokens counts what was kept; decode_seconds has the
                                        draft model's time */
} lq_stats;
LQ_API lq_status lq_session_stats(const lq_session *session, lq_stats *stats);

/* ------------------------------------------------------------------------------------------------ text */

enum {
    LQ_TOKENIZE_BOS = 1,          /* put BOS first where the model wants it (never twice) */
    LQ_TOKENIZE_PARSE_SPECIAL = 2 /* text that spells a special token becomes that token; without it, plain text */
};

/* Tokenize `bytes` bytes of text (any bytes, NUL included). */
LQ_API lq_status lq_tokenize(const lq_model *model, const char *text, size_t bytes, uint32_t flags, int32_t *ids,
                             size_t *n);

enum {
    LQ_DETOKENIZE_SPECIAL = 1, /* spell out special tokens; without it they are empty */
    LQ_DETOKENIZE_MIDDLE = 2,  /* the ids follow others: keep the leading space that the start of a text drops */
    LQ_DETOKENIZE_STREAM = 4   /* stop before a UTF-8 character whose last bytes may still come; see lq_detokenize */
};

/* The bytes of `count` tokens; no terminating NUL. LQ_E_ARG names the first id outside the vocabulary.
 * With LQ_DETOKENIZE_STREAM an incomplete UTF-8 character at the end is held back: a streaming caller detokenizes all
 * ids since the last complete point and prints what is new. */
LQ_API lq_status lq_detokenize(const lq_model *model, const int32_t *ids, size_t count, uint32_t flags, char *text,
                               size_t *n);

/* The id of a token by its exact spelling ("</s>"), special or not; -1 when there is none. */
LQ_API int32_t lq_token_find(const lq_model *model, const char *piece);

/* ------------------------------------------------------------------------------------------------ decode, sample */

/* Tokens for one sequence. Arrays of it are passed by address: its layout is final. */
typedef struct lq_item {
    uint32_t sequence;  /* below lq_session_options.sequences */
    const int32_t *ids;
    size_t count;       /* tokens to append, at least 1 */
    size_t logits_from; /* logits are kept for the tokens from this index on: count - 1 = the last alone, 0 = all, count = none */
} lq_item;

/* Append tokens to sequences and evaluate them: of each item's sequence, which may not be that of another one. Long and short
 * items may be mixed; they go through the model together, `batch` tokens at a time. Rows of logits lie item after item, at
 * most max_logits. Tokens before logits_from that continue a sequence as another one went on, or an earlier text, are not
 * evaluated again (no_reuse). While weights of the model are not packed yet a call may pack some, and last longer for it;
 * sessions of one model may do so on several threads.
 * LQ_E_CONTEXT: a sequence would exceed the context, or all together kv_tokens; nothing is evaluated (but see
 * lq_session_options.overflow). LQ_E_NUMERIC: logits are not finite. After LQ_E_CANCELLED or another failure sequences keep the tokens of the passes that were finished. */
LQ_API lq_status lq_decode(lq_session *session, const lq_item *items, size_t n_items);

/* Make a sequence these `count` tokens, and evaluate no more than it takes: what it has in common with them stays, the rest is
 * as in lq_decode. Logits as there; tokens from logits_from on are always evaluated. lq_seq_info says how many were not. */
LQ_API lq_status lq_sync(lq_session *session, uint32_t sequence, const int32_t *ids, size_t count, size_t logits_from);

/* Row `row` of the logits that the last lq_decode or lq_sync kept: `vocabulary` floats, borrowed until the next call on the
 * session. LQ_E_ARG when there is no such row. */
LQ_API lq_status lq_logits(const lq_session *session, uint32_t row, const float **out);

/* Added to the logit of a token; minus infinity = never that token. Arrays of it are passed by address: its layout is final. */
typedef struct lq_logit_bias {
    int32_t id;
    float bias;
} lq_logit_bias;

/* Called by lq_sample with the `n` logits of a row, biases added, and the `count` tokens before it, on the thread that called:
 * a grammar, say, sets the logits of what may not come to minus infinity. Any other number that is not NaN or plus infinity may
 * be written too. It may not keep the pointers, nor call anything with the same session. What it does should follow from
 * (ids, count) alone: a text that is tried ahead may be asked about more than once, and again with fewer tokens. Return 0, or
 * anything else to end the call with LQ_E_CANCELLED. */
typedef int (*lq_mask)(void *user, float *logits, size_t n, const int32_t *ids, size_t count);

/* How a token is chosen: what follows is done in this order, each step only where its first field is not 0 or NULL.
 *   1. logit_bias, then mask
 *   2. repeat, frequency and presence penalties     5. typical        8. xtc
 *   3. dry                                          6. top_p          9. temperature, or mirostat in the place of 4 to 8
 *   4. top_k                                        7. min_p         10. one draw
 * What the model thinks impossible is taken out before the temperature evens probabilities out: so a high temperature varies
 * among good tokens and lets no bad ones in, and top_p 0.9 means 0.9 of the model's own probability at any temperature. (This
 * is the usual order of programs for local models; libraries for training often have the temperature first.) Each step sees
 * what the one before left, its probabilities divided by their sum. */
typedef struct lq_sampler {
    uint32_t size;
    float temperature; /* divides the logits; 0 = greedy: of what is left the largest logit, of several the lowest id */
    uint32_t top_k;    /* keep the k most likely; of several with one logit the lowest ids. 0 = all */
    float top_p;       /* keep the most likely, as few as have this much probability (Holtzman et al., 2020); 0 or 1 = all */
    float min_p;       /* keep those with at least this fraction of the best one's probability (Nguyen et al., 2024); 0 = all */
    uint64_t seed;     /* draws come from a counter-based generator: the same seed and text always give the same token */
    float typical_p;   /* keep those whose -ln p is nearest to its mean, as few as have this much probability (Meister et al.,
                          2022): what is too obvious may go as well; 0 or 1 = all */
    /* With this probability drop all tokens of at least that probability but the least likely of them: exclude top choices.
     * Threshold 0 = 0.1, at most 0.5: above it there are never two. */
    float xtc_probability, xtc_threshold;
    /* Of tokens among the last penalty_last_n of the sequence, prompt included (0 = all): a positive logit is divided by
     * repeat_penalty, another multiplied by it (Keskar et al., 2019; 0 or 1 = off; below 1 repetition is liked); then
     * frequency_penalty is subtracted for each time that the token is there, and presence_penalty once. */
    float repeat_penalty, frequency_penalty, presence_penalty;
    uint32_t penalty_last_n;
    /* "Don't repeat yourself": where the last tokens, n of them, were in the text before (its last dry_last_n tokens; 0 = all),
     * and n is at least dry_allowed_length (0 = 2), dry_multiplier * dry_base ^ (n - dry_allowed_length) (base 0 = 1.75, at
     * least 1) is subtracted from the logit of the token that followed there. Of several places the largest n counts. */
    float dry_multiplier, dry_base;
    uint32_t dry_allowed_length, dry_last_n;
    /* Texts that no repetition reaches across, UTF-8, wherever tokens end; a token that has one in it is not penalized. At most
     * 64 of at most 64 bytes; NULL = none. Usual are "\n" ":" "\"" "*". */
    const char *const *dry_breakers;
    uint32_t n_dry_breakers;
    /* Mirostat 2 (Basu et al., 2021): after the temperature, which must not be 0, drop tokens whose surprise -log2 p exceeds
     * *mirostat_mu, but not the best one; when one is chosen, eta times what its surprise was above tau is taken from
     * *mirostat_mu. mu is the caller's, 2 * tau at the start of a text, so that a text can be forked and gone back on.
     * tau 0 = off, usual 5; eta 0 = 0.1. LQ_E_ARG together with top_k, top_p, min_p, typical_p or xtc, or without mu. */
    float mirostat_tau, mirostat_eta;
    uint32_t n_logit_bias;
    float *mirostat_mu;
    const lq_logit_bias *logit_bias; /* [n_logit_bias] */
    lq_mask mask;
    void *mask_user;
    /* Of lq_step alone: where a text ends. */
    const char *const *stop; /* [n_stop] byte strings that end it, each of 1 to 512 bytes and a NUL */
    uint32_t n_stop;         /* at most 256 */
    uint32_t max_tokens;     /* after so many tokens; 0 = there is no limit */
    uint32_t ignore_eos;     /* 1 = the end-of-text token is a token like any other */
} lq_sampler;

enum { LQ_ROW_LAST = -1 }; /* as a row: the last one */

/* Choose a token from row `row` of the logits that the last lq_decode kept (LQ_ROW_LAST: the last one): as lq_sampler says
 * (NULL: the most likely one), with the tokens of the sequence up to the row's, whose number also keys the draws. It follows
 * from logits, sampler and tokens alone, mirostat_mu and the mask apart. LQ_E_ARG names a field out of its range, and with
 * penalties, DRY or a mask says that the row's sequence has become another text since (a fork, a cut); LQ_E_NUMERIC: a mask
 * left nothing to choose from, or wrote NaN or plus infinity. After a failure *id and *mirostat_mu are untouched. */
LQ_API lq_status lq_sample(lq_session *session, uint32_t row, const lq_sampler *sampler, int32_t *id);

/* The same from any row of `n` logits, after the `count` tokens `ids` (NULL, 0: none), with `position` in the place of the
 * sequence's length. The texts for dry_breakers are the model's, which may be NULL without them. Memory for the work is
 * allocated for the length of the call. */
LQ_API lq_status lq_sample_logits(const lq_model *model, const float *logits, size_t n, const lq_sampler *sampler,
                                  const int32_t *ids, size_t count, uint64_t position, int32_t *id);

/* Arrays of it are passed by address: its layout is final. */
typedef struct lq_logprob {
    int32_t id;
    float logprob; /* natural logarithm of the probability */
} lq_logprob;

/* Probabilities that the model gives to what comes next, whatever a sampler makes of them: the softmax of a row of logits, as
 * lq_logits has it. `logprob` receives that of the token `id` (NULL: not wanted), `top` the `n` most likely in descending
 * order, of several with one logit the lowest ids first. LQ_E_ARG: no such row or token, or n exceeds the vocabulary. */
LQ_API lq_status lq_logprobs(lq_session *session, uint32_t row, int32_t id, float *logprob, lq_logprob *top, size_t n);

/* Why a text ended. */
enum {
    LQ_END_NONE = 0, /* it goes on */
    LQ_END_EOS,      /* the end-of-text token was chosen; it is not appended */
    LQ_END_STOP,     /* a string of lq_sampler.stop is complete */
    LQ_END_LIMIT,    /* lq_sampler.max_tokens */
    LQ_END_CONTEXT   /* the sequence is as long as the context */
};

/* A sequence that goes on, and what lq_step says of it. In an array the `size` of the first holds for all. */
typedef struct lq_step_item {
    uint32_t size;
    uint32_t sequence;
    const lq_sampler *sampler; /* NULL = greedy, until the end-of-text token */
    /* From here on results. What they point to is the session's until the next call on it. */
    uint32_t end;              /* LQ_END_NONE or why the text ended */
    uint32_t stop;             /* with LQ_END_STOP: the index of the string */
    const int32_t *ids;        /* [n] the tokens that were appended: at least one where the text goes on */
    size_t n;
    const char *text;          /* [bytes] what they made certain of the text; no NUL at its end */
    size_t bytes;
    uint64_t made;             /* tokens of this text so far, these counted */
    uint64_t made_bytes;       /* bytes of it so far, these counted; with LQ_END_STOP, those before the string */
    uint32_t row;              /* ids[i] was chosen from row + i of the logits */
} lq_step_item;

/* Let sequences go on by a token each, or by several: choose, append. With `stop` unset and one item this is a program's
 * whole loop, behind lq_decode or lq_sync of a prompt:
 *     do status = lq_step(session, &item, 1), fwrite(item.text, 1, item.bytes, stdout);
 *     while (status == LQ_OK && !item.end);
 * A token is chosen from the logits of its sequence's last token where the last call kept them. Else that token is evaluated
 * first, in one pass for all items: so the token that one call appends is evaluated by the next (lq_seq_info.pending), and
 * never if there is none. The items' sequences differ, none may be empty, and there are at most max_logits items.
 * A text begins with the first lq_step behind any other call that changes its sequence, or behind its end. Its bytes come
 * out as soon as they are certain: a UTF-8 character when its last byte is there, and what could be the beginning of a stop
 * string when it is not. Stop strings are looked for in these bytes, one by one, whatever tokens they come from; the first
 * one that is complete ends the text before it (of several that end there the longest), and what its token has behind it is
 * dropped. At any other end everything that was held back comes out: also of a text that is not to go on, by a call whose
 * max_tokens is what it has made, which evaluates nothing. Special tokens have no text.
 * LQ_E_ARG: no tokens, twice the same sequence, a stop string that is empty or too long. LQ_E_CONTEXT: no room is left among
 * kv_tokens. Errors of lq_decode and lq_sample. After an error of evaluation sequences are as before; where choosing fails
 * (a mask that leaves nothing), items before that one have gone on, and their results say so. */
LQ_API lq_status lq_step(lq_session *session, lq_step_item *items, size_t n_items);

/* ------------------------------------------------------------------------------------------------ embed */

/* What stands for a text, of the hidden rows behind the final norm. */
enum {
    LQ_POOL_MEAN = 0, /* their mean */
    LQ_POOL_LAST,     /* that of the last token, which in a causal model has seen all others */
    LQ_POOL_FIRST     /* that of the first: "cls" of models that look both ways */
};

typedef struct lq_embed_options {
    uint32_t size;
    uint32_t pooling;      /* LQ_POOL_*; 0 = mean */
    uint32_t no_normalize; /* 1 = as it comes; the default is length 1 (L2) */
} lq_embed_options;

/* Embed texts, an item each: out[i] of [n_items][embedding] floats stands for item i's tokens (tokenized with
 * LQ_TOKENIZE_BOS; an item's logits_from counts for nothing), and its sequence becomes them. The session was opened with
 * `embed`; it has a sequence for each item, whose contexts bound the texts (LQ_E_CONTEXT). Tokens go through the model
 * together, `batch` at a time. Sums over tokens are in double, in ascending order of positions, so that the result is
 * the same for any batch, company and number of threads (on a device as far as its hidden rows are). With LQ_POOL_LAST
 * what is known of earlier texts is not evaluated again. LQ_E_NUMERIC: hidden values are not finite. */
LQ_API lq_status lq_embed(lq_session *session, const lq_item *items, size_t n_items, const lq_embed_options *options,
                          float *out);

/* ------------------------------------------------------------------------------------------------ evaluate */

typedef struct lq_eval_options {
    uint32_t size;
    uint32_t window;       /* tokens per chunk; 0 = 512 where the trained context allows, else the trained context */
    uint64_t max_tokens;   /* use at most this many tokens of the text; 0 = all */
    uint32_t score_all;    /* 0 = score the second half of each chunk; 1 = every position ("the papers' way") */
    lq_progress progress;  /* counts tokens evaluated */
    void *user;
} lq_eval_options;

typedef struct lq_eval_result {
    uint32_t size;
    uint32_t window;
    uint64_t tokens;       /* tokens scored */
    uint64_t evaluated;    /* tokens run through the model */
    double nll, ppl, ppl_se; /* mean negative log-likelihood in nats, exp of it, its standard error */
    /* against the reference; zero from lq_evaluate */
    double ppl_ratio, kld_mean, kld_se, kld_median, kld_p90, kld_p95, kld_p99, kld_p999, kld_max;
    double same_top;       /* fraction of positions whose most likely token agrees */
    double dp_mean, dp_rms; /* difference of the right token's probability: mean, root mean square */
} lq_eval_result;

/* Perplexity of `count` tokens of a text (tokenized once with LQ_TOKENIZE_BOS): non-overlapping chunks of `window`
 * tokens, the first of each replaced by BOS where the model wants one, an empty KV cache per chunk. The session needs
 * a context of at least `window` and max_logits of at least window / 2 (score_all: window); its sequence 0 is replaced.
 * LQ_E_ARG names the tokens required when the text is too short for one chunk. */
LQ_API lq_status lq_evaluate(lq_session *session, const int32_t *ids, size_t count, const lq_eval_options *options,
                             lq_eval_result *result);

/* Score `sessions` candidates against a reference over the same text in one sweep: results[i] gets perplexity and the
 * KL divergence D(reference || candidate). All vocabularies must be equal (LQ_E_INCONSISTENT). `reference_result` may
 * be NULL. */
LQ_API lq_status lq_compare(lq_session *reference, lq_session *const *candidates, size_t n_candidates,
                            const int32_t *ids, size_t count, const lq_eval_options *options,
                            lq_eval_result *reference_result, lq_eval_result *results);

/* ------------------------------------------------------------------------------------------------ calibrate */

typedef struct lq_calibrate_options {
    uint32_t size;
    uint32_t window;       /* tokens per chunk; 0 = 512 where the trained context allows, else the trained context */
    uint64_t max_tokens;   /* use at most this many tokens of the text; 0 = all */
    uint32_t force;        /* 1 = replace an existing destination */
    const char *dataset;   /* what the file calls the text; NULL = nothing */
    lq_progress progress;  /* counts tokens evaluated; with Hessians or a transform, arithmetic */
    void *user;
    uint32_t hessians;     /* 1 = also the Hessian of each input, for the quantizer gptq: see lq_calibrate */
    const char *scheme;    /* with hessians or a transform (awq+q4_k_m): measure each matrix's inputs in the model whose
                              earlier matrices were quantized by this scheme; NULL = in the model as it is */
    uint64_t max_ram;      /* with either: never ask the allocator for more bytes than these at a time, those of the session
                              counted and those of the model not; where more would be needed, what the text's tokens carry
                              from layer to layer lies in a file beside dst. LQ_E_NOMEM names the smallest number that
                              suffices. Stacks of threads, OpenBLAS's buffers and what reading a quantized directory keeps
                              (GPTQ, AWQ, bitsandbytes: some 40 MiB) come on top. 0 = no limit */
    const char *recipe;    /* instead of `scheme`: path of a recipe (lq_quantize_options.recipe) */
} lq_calibrate_options;

typedef struct lq_calibrate_result {
    uint32_t size;
    uint32_t window, chunks;
    uint32_t entries;      /* matrices whose inputs were measured */
    uint64_t tokens;       /* tokens run through the model */
    uint64_t bytes;        /* of the file */
    double seconds;
} lq_calibrate_result;

/* Run `count` tokens of a text (tokenized once with LQ_TOKENIZE_BOS) through the model and write the sum of squares of
 * each input of each matrix to the importance file `dst`: GGUF, as other engines read and write it, for
 * lq_quantize_options.importance. Chunks are those of lq_evaluate; tokens that do not fill one are left out. The session
 * needs a context of at least `window`; its sequence 0 is replaced. Activations in "f32" give the statistics of the model
 * itself. They do not depend on the number of threads. The embedding and the output matrix are not measured.
 * The file appears under its name only when it is complete and was read back; on any failure nothing is left behind.
 * LQ_E_ARG: the text is too short for one chunk, dst exists without `force` or is a file of the model, a scheme
 * that has no transform without `hessians`; LQ_E_INCONSISTENT: a weight of the model is not finite, which is looked for first;
 * LQ_E_NUMERIC: inputs are not finite. `result` may be NULL.
 * With `hessians` the text goes through the model layer by layer, and the file also has, once for matrices that share their
 * inputs, 2/n times the sum of x x' over all n; needs OpenBLAS at run time (LQ_E_UNSUPPORTED names the package). So it goes
 * with a scheme that has a transform, for the transform's factors and clips. Such runs may take long: each finished layer is
 * kept beside `dst`, in files whose names begin with its own and tell model, text and options apart. After an interruption,
 * of whatever kind, the same call goes on behind it, and ends with the same bytes; then these files go, and others' of dst.
 * One that was killed after dst had its name and before they were gone leaves them there: the same call with `force` ends it. */
LQ_API lq_status lq_calibrate(lq_session *session, const int32_t *ids, size_t count, const char *dst,
                              const lq_calibrate_options *options, lq_calibrate_result *result);

#ifdef __cplusplus
}
#endif
#endif
