/* engine.h: the objects behind the public handles, shared by the files of layer L3.
 *
 * ctx owns the processor; model owns the directory, the binding, the text object, the resolved weights and the other device
 * it runs on; session owns one plan with its KV pages. Only L3 and api.c include this. */
#ifndef Q_ENGINE_H
#define Q_ENGINE_H

#include <stdatomic.h>

#include "backend.h"
#include "bind.h"
#include "kv.h"
#include "recipe.h"
#include "text.h"
#include "threads.h"
#include "wide.h"

struct lq_ctx {
    q_alloc alloc;
    q_log log;
    uint32_t threads, threads_prefill;
    q_placing placing;        /* of large blocks */
    char placed[256];         /* the same in words */
    const q_backend *backend; /* the processor */
    q_device *device;
};
/* Fill both from the options; the allocator, the log and the number of threads are there. */
lq_status q_placing_choose(lq_ctx *ctx, const lq_options *options);

/* Where steps run and weights lie (place.c). */
typedef struct q_place {
    const q_backend *backend;
    q_device *device;
    char name[64]; /* "vulkan:0" */
} q_place;
enum { Q_PLACES = 2 };

/* Where a weight lies there: a block of the model's, and a byte of it. */
typedef struct q_spot {
    uint32_t block;
    uint64_t at;
} q_spot;

/* What a session takes of a place: KV pages, and all the rest. */
typedef struct q_session_need {
    uint64_t kv[Q_PLACES], rest[Q_PLACES];
    uint64_t locked; /* of the processor's */
} q_session_need;

typedef struct q_packing q_packing;

/* What adapters add to the product with a matrix: b (a x), in float32 (lora_run.c). */
typedef struct q_adapter {
    q_weight a, b; /* rank x inputs; outputs x rank, the scale in it. a.format NULL = nothing */
} q_adapter;

struct lq_model {
    lq_ctx *ctx;
    const q_alloc *alloc;
    q_directory *dir;
    q_binding *binding;
    q_text *text;
    q_weight *weights;   /* [binding->n_items]; vectors always as float32 */
    void **owned;        /* [n_items] memory behind weights that the file's bytes could not serve; NULL = the file's */
    uint8_t *packed;     /* weights in the processor's own layouts; NULL = none */
    q_packing *packing;  /* what is packed while sessions run, and how far (pack.c); NULL = nothing is */
    uint64_t packed_bytes; /* of that block; with plan_only, what it would be */
    uint64_t packed_data;  /* the layouts alone */
    uint64_t packed_from;  /* bytes of the mapped file that it stands for, whose pages were given back */
    uint64_t owned_bytes;
    uint64_t locked;     /* bytes of weights that are locked in memory; with plan_only, that would be */
    const q_format **as; /* [n_items] what a matrix is quantized to as the model opens, NULL = it is used as stored; NULL = all */
    q_place places[Q_PLACES]; /* [0] the context's processor, [1] the device that the options name */
    int32_t n_places;
    int32_t device_from;      /* layers from this one on, and the output, run on places[1]; 0 = the embedding too */
    bool plan_only;           /* nothing is written to places[1], and no session opens */
    q_buffer *blocks;         /* weights on places[1] */
    uint32_t n_blocks;
    q_spot *spots;            /* [n_items] while the model opens, and `marks`: on which places a step reads each */
    uint8_t *marks;
    uint64_t device_weights;  /* bytes of these blocks, as the device counts them */
    _Atomic uint64_t hash;    /* q_model_hash; 0 = nobody has asked yet */
    uint64_t bytes_per_token; /* weight bytes that one decoded token reads */
    q_adapter *adapters;      /* [n_items]; NULL = no item has any */
    float *adapter_data;      /* behind them */
    uint64_t adapter_bytes;
    q_buffer adapter_block;   /* the same on places[1] */
    q_arena names;       /* NUL-terminated copies of what files hold without a terminator */
    const char **meta_names, **tensor_names;
};

/* The loops of quantizing for its processor. */
static inline const q_wide *q_ctx_wide(const lq_ctx *ctx) { return q_wide_of(ctx->backend->wide(ctx->device)); }

lq_status q_ctx_open(const lq_options *options, lq_ctx **out);
void q_ctx_close(lq_ctx *ctx);

/* What tells a model from others: hyper-parameters; tensors by name, shape, format and samples of their bytes, and as
 * they are used; adapters. Read when it is first asked for, which may allocate for the length of the call. */
lq_status q_model_hash(lq_model *model, uint64_t *hash);
lq_status q_model_open(lq_ctx *ctx, const char *path, const lq_model_options *options, lq_model **out);
void q_model_close(lq_model *model);

uint32_t q_ctx_devices(const lq_ctx *ctx);
lq_status q_ctx_device_info(const lq_ctx *ctx, uint32_t index, lq_device_info *info);

/* The kinds of device that this build knows, "cpu, vulkan", into `text`. */
const char *q_place_kinds(char *text, size_t n);
/* Open the device of this name; places with the context's processor are not closed. */
lq_status q_place_device(lq_ctx *ctx, const char *name, q_place *out);
/* Choose the places of a model whose binding is there; undo. */
lq_status q_place_open(lq_model *m, const lq_model_options *o);
void q_place_close(lq_model *m);
/* Make room on the device; then, for each item in order, write the resolved weight there; then wait for all of it. A copy
 * that the processor does not need afterwards (`keeps` says so beforehand) is freed as soon as it is written. */
lq_status q_place_blocks(lq_model *m);
bool q_place_keeps(const lq_model *m, uint32_t i);
/* The processor multiplies with it, or reads it otherwise; before q_place_finish. */
bool q_place_reads(const lq_model *m, uint32_t i);
lq_status q_place_write(lq_model *m, uint32_t i);
lq_status q_place_finish(lq_model *m);
/* Adapters that the options name, of a model whose places are chosen and whose weights are not resolved yet; what an item has
 * (NULL: nothing). */
lq_status q_adapters_open(lq_model *m, const lq_model_options *o);
void q_adapters_close(lq_model *m);
/* Write them to places[1], all of them; what that takes of it. */
lq_status q_adapters_write(lq_model *m);
uint64_t q_adapters_device_bytes(const lq_model *m);
const q_adapter *q_adapter_of(const lq_model *m, const q_bind_item *item);
/* lq_model_options.load_as (load_as.c): choose what is quantized, NULL = nothing; how many bytes an item then takes, 0 = it
 * stays as it is stored; quantize a resolved weight (with plan_only only say so). */
lq_status q_load_as_choose(lq_model *m, const char *name);
uint64_t q_load_as_bytes(const lq_model *m, uint32_t i);
lq_status q_load_as_weight(lq_model *m, q_pool *pool, uint32_t i);
/* `each` item in order, with the pool that q_load_as_weight wants. */
lq_status q_load_as_all(lq_model *m, lq_status (*each)(lq_model *m, q_pool *pool, uint32_t i, bool check), bool check);
/* Bytes of an item's matrix as it is used. */
uint64_t q_item_bytes(const lq_model *m, uint32_t i);
/* Lay out anew what the processor's kernels read best so (pack.c): now, or as sessions run. The weights are resolved. */
lq_status q_pack_weights(lq_model *m, bool now);
/* What the list of weights to be packed takes while there is one (with plan_only, what tells of layouts too): as names, no
 * plan counts it. */
uint64_t q_pack_list_bytes(const lq_model *m);
/* Where so many bytes of memory are not enough for what is not packed yet, it never is, and the log says so. */
void q_pack_fits(lq_model *m, uint64_t memory);
/* The place of a layer; -1 = what comes before the first, n_layers = what comes after the last. */
int32_t q_place_of(const lq_model *m, int32_t layer);
/* The part of a plan that tells of the device. */
void q_place_plan(const lq_model *m, const q_session_need *need, lq_plan_info *info);
/* Bytes it can offer now. */
uint64_t q_place_memory(const q_place *p);
void q_model_info(const lq_model *model, lq_model_info *info);
lq_status q_model_meta(const lq_model *model, const char *key, uint32_t index, const char **name, char *text, size_t *n);
lq_status q_model_tensor_info(const lq_model *model, uint32_t index, lq_tensor_info *info);
lq_status q_model_tensor_row(const lq_model *model, uint32_t index, uint64_t row, float *out);

typedef enum { Q_OVERFLOW_ERROR, Q_OVERFLOW_STOP, Q_OVERFLOW_SLIDE } q_overflow;

/* Session options with every default filled in and every range checked. */
typedef struct q_session_shape {
    uint32_t context, batch, max_logits;
    q_overflow overflow;
    uint32_t overflow_keep; /* of slide: less than the context */
    uint32_t threads, threads_prefill; /* of short passes and of long ones */
    uint32_t seqs, checkpoints;
    uint64_t kv_tokens;
    bool reuse;
    bool f32_activations;
    const q_kv_kind *kv_k, *kv_v;
    bool embed;             /* hidden rows come out, and no logits */
    uint32_t drafts, ngram; /* most guesses of a step; how they are made (draft.c) */
    lq_model *draft;
    q_rope rope;
} q_session_shape;
/* Rows of logits that a session has room for. */
static inline uint32_t q_session_rows(const q_session_shape *s) {
    return s->embed ? 0 : s->max_logits + s->drafts;
}
lq_status q_session_shape_of(const lq_model *model, const lq_session_options *options, q_session_shape *out);
/* The same for options that are complete, and this context. */
lq_status q_session_shape_with(const lq_model *model, const lq_session_options *o, uint32_t context,
                               q_session_shape *out);
/* budget.c: the shape with the context that the options name or that fits, at most `trained`; LQ_E_NOMEM where it breaks
 * their cap. All weights and adapters, in bytes, as they are used. */
lq_status q_budget_shape(const lq_model *m, const lq_session_options *o, uint32_t trained, q_session_shape *out);
uint64_t q_weights_bytes(const lq_model *m);

/* A plan with its arrays in `arena`. */
lq_status q_plan_build(const lq_model *model, const q_session_shape *shape, q_arena *arena, q_plan **out);

/* What a call adds to one sequence, and how far it is. */
typedef struct q_share {
    uint32_t seq, old;   /* old: its length before, without what slid out of it */
    uint32_t end;        /* its length when all is done */
    uint32_t from;       /* logits are kept from this position on */
    uint32_t taken;      /* columns of the present pass */
    uint32_t keep;       /* length that it keeps if the call fails now */
    int32_t restore;     /* its q_kv_seq.restore before */
    uint32_t freqs;      /* table of ROPE's frequencies that it needs */
    uint32_t cut;        /* its text is made anew behind so many tokens; UINT32_MAX = it only grows */
    const int32_t *ids;  /* what comes behind its tokens */
    uint64_t count;
    uint64_t dropped, refused; /* as overflow.c decided */
} q_share;
/* Whose logits a row is: those that follow so many tokens of a sequence, those that it dropped among them. */
typedef struct q_row {
    uint32_t seq;
    uint64_t tokens;
} q_row;

/* The text that lq_step makes of a sequence (stop.c). It ends when another call changes the sequence. */
enum { Q_STOPS = 256, Q_STOP_BYTES = 512, Q_HELD = Q_STOP_BYTES + 4 };
typedef struct q_answer {
    uint64_t made, bytes; /* tokens; bytes that came out */
    uint32_t n_held;      /* and bytes that are not certain yet */
    bool begun;
    uint32_t ahead;       /* so many tokens are guessed next */
    uint32_t rest;        /* steps until then */
    bool starts;          /* the next token begins a text, where a leading space is dropped */
    uint8_t held[Q_HELD];
} q_answer;
/* LQ_E_ARG where the strings of a sampler are not such as q_answer_add takes. */
lq_status q_stops_check(const lq_sampler *o);
/* More bytes of it: text[*at ..] receives those that are certain now. The number of the stop string that ended it, -1 = none. */
int32_t q_answer_add(q_answer *a, const lq_sampler *o, const char *bytes, size_t n, char *text, size_t *at);
/* It ends: what is held comes out. */
void q_answer_end(q_answer *a, char *text, size_t *at);
enum { Q_TRANSFER_BYTES = 1 << 20 };

struct lq_session {
    lq_model *model;
    const q_alloc *alloc;
    q_session_shape shape;
    q_arena arena;        /* the plan and batch arrays */
    q_plan *plan;
    q_buffer *kv;         /* [plan->n_kv] */
    q_buffer *states;     /* [plan->n_segments] recurrent state, on the segment's device */
    q_program **programs; /* [plan->n_segments] */
    q_kv kv_book;         /* whose pages are whose, and the tokens of sequences */
    void *kv_block;       /* behind it */
    q_session_need need;  /* as q_session_measure: what the session holds */
    uint8_t *transfer;    /* [Q_TRANSFER_BYTES] of seq_file.c; NULL where all pages are in the process's memory */
    float *border;        /* [batch][width of slot 1]: hidden rows between two segments; NULL with one */
    float *logits;        /* [max_logits][vocab] */
    int32_t *ids, *pos, *seq, *out; /* [batch] of a pass */
    q_seq_ref *refs;      /* [seqs] of a pass */
    q_share *shares;      /* [seqs] of a call: what it adds to each */
    uint32_t *of, *count, *cut; /* [seqs] the same, for q_kv_room */
    q_row *rows;          /* [max_logits] whose logits are kept */
    void *sample_scratch;
    q_answer *answers;    /* [seqs] */
    char *text;           /* what a step makes certain of all its texts */
    uint32_t n_logits;    /* rows kept by the last decode */
    atomic_int cancel;
    atomic_int *cancelled; /* the request that passes obey: its own, or that of the session whose draft it is */
    lq_session *draft;     /* that guesses tokens; NULL = nobody does */
    bool stepping;         /* the pass is a step's */
    lq_item *items;        /* [seqs] with shape.embed: those of a call; and sums over their tokens, [seqs][width of slot 1] */
    double *sums;
    uint32_t pooling;      /* of that call */
    /* Shown the inputs of products while it is set (q_batch); calibrate.c sets it for the length of a call. */
    void (*tap)(void *user, const q_inst *s, const float *x, int32_t n, int32_t stride);
    void *tap_user;
    uint64_t barriers;    /* of all passes so far */
    uint64_t passes;      /* begun */
    uint32_t packed;      /* weights that were packed when the last pass ended (pack.c) */
    lq_stats stats;
};
lq_status q_session_open(lq_model *model, const lq_session_options *options, lq_session **out);
void q_session_close(lq_session *session);
lq_status q_session_measure(const lq_model *model, const q_session_shape *shape, q_session_need *need);
/* Around a pass of so many tokens (pack.c): pack some of the weights that are not; give back pages behind those that are. */
void q_pack_before(lq_session *s, uint32_t tokens);
void q_pack_after(lq_session *s);
/* decode.c. `fresh`: nothing is taken from the tree of prefixes, so that every token passes through the model. */
lq_status q_session_decode(lq_session *s, const lq_item *items, size_t n, bool fresh);
/* Evaluate what the first n of s->shares say, whose tokens are in their sequences' ids behind their lengths, s->of and
 * s->count being the sequences and those tokens. Where there is no room or a pass fails, sequences are cut to their `keep`. */
lq_status q_session_add(lq_session *s, uint32_t n);
/* A request to cancel that no call has obeyed yet: it is obeyed now. */
lq_status q_session_check_cancel(lq_session *s);
/* A sequence is no longer what rows of logits and the text that lq_step makes of it say. */
void q_session_changed(lq_session *s, uint32_t seq);
/* lq_stats.last_logits_hash becomes that of this row. */
void q_session_hash(lq_session *s, uint32_t row);
lq_status q_session_step(lq_session *s, lq_step_item *items, size_t n);
/* embed.c: what options ask is possible; rows of a pass, before it is settled; lq_embed. */
lq_status q_embed_shape(const lq_session_options *o, const q_session_shape *s);
lq_status q_embed_rows(lq_session *s, uint32_t n_shares, const float *rows);
lq_status q_session_embed(lq_session *s, const lq_item *items, size_t n, const lq_embed_options *options, float *out);
/* draft.c: guesses at the next tokens of a sequence, behind its last in its ids; their number, at most `most`. */
lq_status q_draft_guess(lq_session *s, uint32_t seq, const lq_sampler *o, uint32_t most, uint32_t *count);
uint32_t q_draft_lookup(const int32_t *ids, uint32_t n, uint32_t longest, uint32_t most, int32_t *out);
/* What options say of it, checked; what the draft model's session takes of each place is added; open it. */
lq_status q_draft_shape(const lq_model *m, const lq_session_options *o, q_session_shape *s);
lq_status q_draft_measure(const q_plan *p, const q_session_shape *s, q_session_need *need);
lq_status q_draft_open(lq_session *s);
lq_session_options q_draft_options(const q_session_shape *s);
/* Sequence 0 becomes these tokens, all evaluated. */
lq_status q_session_run(lq_session *s, const int32_t *ids, size_t count, size_t logits_from);
lq_status q_session_sync(lq_session *s, uint32_t seq, const int32_t *ids, size_t count, size_t logits_from);
lq_status q_session_truncate(lq_session *s, uint32_t seq, uint32_t length);
lq_status q_session_fork(lq_session *s, uint32_t from, uint32_t to);
/* seq_file.c */
lq_status q_session_save(lq_session *s, uint32_t seq, lq_write_bytes write, void *user);
lq_status q_session_load(lq_session *s, uint32_t seq, lq_read_bytes read, void *user);
lq_status q_session_has_seq(const lq_session *s, uint32_t seq);
/* The table of RoPE's frequencies that a sequence of so many tokens needs. */
uint32_t q_session_freqs(const lq_session *s, uint32_t length);
/* overflow.c: the policy that options name, of a shape that has its context. */
lq_status q_overflow_choose(const lq_model *m, const lq_session_options *o, q_session_shape *s);
const char *q_overflow_name(q_overflow policy);
/* What of an item comes to a sequence of `length` tokens, into a zeroed share: all of it; the first `count`; or all, and
 * `dropped` tokens make room behind the first ones that are kept. `end` and `from` count what is left. */
lq_status q_overflow_fit(const q_session_shape *s, uint32_t length, const lq_item *t, q_share *h);
/* How many tokens at the beginning of such a sequence stay where they are; how many of its own are left. */
uint32_t q_overflow_same(const q_session_shape *s, uint32_t length);
uint32_t q_overflow_left(const q_session_shape *s, uint32_t length, uint64_t dropped);
/* ids[0, length) and those of the share become what is left of them; h->ids may lie behind. */
void q_overflow_join(const q_session_shape *s, int32_t *ids, uint32_t length, const q_share *h);
/* LQ_E_CONTEXT where a share was stopped. */
lq_status q_overflow_told(const q_session_shape *s, const q_share *shares, uint32_t n);
void q_session_seq_info(const lq_session *s, uint32_t seq, lq_seq_info *info);
lq_status q_session_sample(lq_session *s, uint32_t row, const lq_sampler *sampler, int32_t *id);
lq_status q_sample_logits(const lq_model *model, const float *logits, size_t n, const lq_sampler *sampler,
                          const int32_t *ids, size_t count, uint64_t position, int32_t *id);
lq_status q_session_logprobs(lq_session *s, uint32_t row, int32_t id, float *logprob, lq_logprob *top, size_t n);

/* Score `n` candidates and a reference (NULL: none, n = 1) over one text in one sweep. */
lq_status q_evaluate(lq_session *reference, lq_session *const *candidates, size_t n, const int32_t *ids, size_t count,
                     const lq_eval_options *options, lq_eval_result *reference_result, lq_eval_result *results);

/* Run the model over a text and write the mean square of every product's inputs as an importance file. */
lq_status q_calibrate(lq_session *s, const int32_t *ids, size_t count, const char *dst, const lq_calibrate_options *options,
                      lq_calibrate_result *result);

/* A caller's info or options struct of `size` bytes may be older or newer than ours: copy what both have. The caller's
 * `size` field keeps its value. */
void q_struct_out(void *theirs, const void *ours, size_t our_size);
/* Fills `ours` (zeroed, our_size bytes) from theirs (may be NULL); LQ_E_ARG when its size is absurd or bytes that we do
 * not know are not zero. */
lq_status q_struct_in(const void *theirs, void *ours, size_t our_size, const char *what);

#endif
