/* op.h: the operations: their meaning, their order of summation, their error bound, and what a kernel of one is given.
 *
 * Operations are coarse, so that a model's table states intent (GLU, attention, experts) and no backend has to guess it
 * back from small pieces. kernels/ref/ defines each one in scalar C; every other kernel is checked against that.
 *
 * Notation: c = column (one token of the batch), y, x, z, v, u = operand views, w = weight matrix [rows, k].
 * All activations are float32. "dot" below is the float dot product with this stated order, which makes results
 * independent of thread count, batch and chunk:
 *
 *   dot(a, b, k): 16 lanes; lane l takes i = l, l+16, l+32, ... in ascending order with one fused multiply-add each,
 *                 starting from 0; then lanes are added pairwise: l and l+8, then l and l+4, l+2, l+1.
 *
 * Sums of squares and plain sums of a row (NORM, HEADNORM) use the same lanes; every other sum states its order below.
 * "fma from 0" is one fused multiply-add per term, in ascending order. A scale or mscale of 0 counts as 1.
 * With 8-bit activations (a kernel row's choice, see q_act):
 *
 *   idot: within one activation block integers are exact: I = sum of sc*q*a, M = sum of mn*a over the block (int32);
 *         then in ascending block order acc = fma(d[0]*da, (float)I, acc), and where the format has minima
 *         acc = fma(-(d[1]*da), (float)M, acc); acc starts from 0. A format block longer than the activation block
 *         is split by it; a shorter one is applied once per format block. "Format block" is the format's span: the
 *         weights that share d (format.h). Either block may be the whole row; where both are, one sum of integers spans
 *         the row, and 2^17 * 128 * 127 < 2^31 bounds it. A weight whose k is not a multiple of the activation block,
 *         or above Q_ACT_ROW_MOST where that is the row, or whose format has no split, uses dot on float32. A split
 *         that rounds levels (format.h: split_nmse) makes this product another one than decode's, by that much.
 *
 * A weight with an `order` has its columns permuted: column i of the matrix belongs to value order[i] of the input.
 * Products (MATMUL, HEAD, MOE_GLU, MOE_DOWN) read the input in that order, before it is quantized; an adapter reads it
 * as it is.
 *
 * With activations in bfloat16 (a_bf16), in which the weights are rounded as the activations are:
 *
 *   bdot: 16 lanes; lane l takes the pairs (2l, 2l + 1) of each 32 values in ascending order, and of a pair the odd
 *         value first, with one fused multiply-add each, starting from 0; then lanes are added as those of dot. Factors
 *         and sums of a lane that are below 2^-126 count as zeros of their sign. (It is what vdpbf16ps does. Whether a
 *         sum is below that before or after it is rounded is left open, which the bound covers.)
 *
 * Operation   Meaning; `kind` from q_kind; parallel unit
 *   EMBED     y = w[id] * scale + w2[position] + w3[0] (w2 learned positions, w3 token types; each optional), added
 *             in this order. With no ids the batch's x rows are copied. ids and positions lie within the tables.
 *                                                                                                   unit: column
 *   NORM      RMS: y = x * (1 / sqrt(mean(x*x) + eps)) * w + b;  LAYER: (x - mean) / sqrt(var + eps) * w + b;
 *             L2: x / max(sqrt(sum x*x), eps), no weight. w and b optional. add: y += . One head.  unit: column
 *             Domain OUT: x is read at the wanted columns, y written compactly. (So does COPY; any other step of domain
 *             OUT reads and writes compact columns.)
 *   HEADNORM  NORM over each head of the view; w has `width` values, shared by the heads, or heads*width of them.
 *             With z: the result times silu(z) (gated norm).                                        unit: column
 *   MATMUL    y[h, r] = w[h * y.width + r] . x[h] + b[h * y.width + r] for each head h; x with one head feeds all rows.
 *             Optional adapter: + lora_scale * B (A x), float32 dots. Then add: y += .              unit: row of w
 *   GLU       y = act(x) * z, or act(x) with no z. SWIGLU_CLAMP (gpt-oss): x' = min(x, limit),
 *             z' = clamp(z, -limit, limit), y = x' * sigmoid(alpha * x') * (z' + 1).                unit: column
 *   ROPE      rotates the first `rot` values of each head by the float32 product position * freqs[i], and multiplies
 *             them by mscale; the others are copied. PAIRS: (2i, 2i+1) together; HALVES: (i, i + rot/2). y may be x.
 *             With two tables of frequencies a column's sequence says which (q_seq_ref).            unit: column
 *   KV_PUT    stores K = x and V = z (heads of the view = KV heads) at the column's position in the pages of its
 *             sequence, in the forms of their pool (kv_form.h). Without z the values are a prefix of the keys (latent
 *             attention).                                                                    unit: column * head
 *   ATTN      y[h] = softmax(scale * q[h] . K + mask) V, over the pages of the column's sequence, positions <= its own
 *             and > own - window, or < sink_tokens: the first tokens of a sequence stay in sight behind a window, with
 *             the positions that they have in it (attention sinks that are tokens; Xiao et al., Efficient Streaming
 *             Language Models with Attention Sinks, arXiv:2309.17453). Without a window sink_tokens says nothing.
 *             Query head h reads KV head h / (heads / kv_heads). softcap s: s * tanh(score / s).
 *             ALIBI then adds -slope(h) * |key - query|; slope(h) = 2^(-a (h+1) / n) for the largest power of two
 *             n <= heads, heads from n on take 2^(-a (2 (h - n) + 1) / 2n); a = alpha, 0 = 8.
 *             K and V are what their pages decode to; where keys are turned so is q before, where values are so is y
 *             after.
 *             w = learned sinks: one more score per head without a token and a value. Value width = y's width.
 *             With z and v (K and V views; no v: prefix of K): no pages, no causal mask, no window, all columns of the
 *             sequence, their positions in the place of those in pages.
 *             Order: keys in blocks of Q_ATTN_KEYS at absolute positions, ascending. In a block: scores by fma from 0
 *             over the width, their maximum, exp of the difference; the exps are summed in 16 lanes, lane l those of
 *             positions l, l+16, ... in ascending order, which are then added pairwise as those of dot; weighted values
 *             by fma from 0 over the keys. Blocks merge in ascending order: with M = max(m, m'),
 *             l = fma(l', exp(m' - M), l * exp(m - M)), and so each value; a learned sink merges last, as a block of
 *             sum 1; then values times 1 / l. A query that does not see some position between the first sink_tokens and
 *             its window has the blocks of the former, then those of the latter: one that holds keys of both is two,
 *             each with its own keys alone. Where the window reaches them there is nothing to tell apart: the keys from
 *             position 0 on are blocks as without a window. That depends on the query's position and nothing else.
 *                                                                                           unit: column * head
 *   ROUTE     logits = w . x + b; chooses n_used of n_expert; y = n_used ids as floats, then n_used weights.
 *             SOFTMAX: softmax over all, then choose; SOFTMAX_TOP: softmax over the chosen; SIGMOID: sigmoid, chosen by
 *             value + b2. renorm: weights divided by their sum; then times scale. Ties: the lower id. Chosen in
 *             descending order. w is used in float32; sums over experts ascend. n_groups > 1: only the
 *             n_groups_used best groups (sum of their two best) compete.
 *                                                                                                   unit: column
 *   MOE_GLU   y[i] = act(w[e_i] x + b[e_i]) * (w2[e_i] x + b2[e_i]) for the chosen experts i < n_used (z = ROUTE's y).
 *             Without w2: plain activation.                                                unit: row of an expert
 *   MOE_DOWN  y = sum over i ascending of weight_i * (w[e_i] x[i] + b[e_i]), fma from 0 (z = ROUTE's y).
 *             add: y += .                                                                  unit: row of an expert
 *   CONV      depthwise causal convolution over `taps` tokens of the sequence, then act (NONE, SILU);
 *             y[ch] = act(sum over t ascending of w[ch, t] * x[c - taps + 1 + t, ch] + b[ch]), fma from 0.
 *             State in floats: [channel][taps - 1], the last inputs, oldest first; zeros where a sequence starts.
 *                                                                                                   unit: channel
 *   SCAN      gated delta rule. Per head, S [k width, v width] carried from token to token: S *= exp(w[h] * softplus(
 *             u[h] + b[h])); r = sigmoid(u[heads + h]) * (v - S^T k); S += k r^T; y = scale * S^T q. x = q, z = k.
 *             Head h of v reads head h / (heads / theirs) of q and of k; u = [2 * heads], flat over its view.
 *             S^T k and S^T q are fma from 0 over ascending k. State in floats: [head][k][v].
 *             (Yang et al., Gated Delta Networks, arXiv:2412.06464.)
 *                                                                                                   unit: head of v
 *             CONV and SCAN: a column at position 0 finds zeros in its state, whatever was left there.
 *   SCALE     y = scale * x, times sigmoid(z) where z has one value per column; softcap s: s * tanh(./s). add: y += .
 *                                                                                                   unit: column
 *   COPY      y = x (slices of any heads, width, stride): value by value in order, or one head of y's width into
 *             every head of y. Domain OUT gathers the wanted columns.                               unit: column
 *   HEAD      logits[o] = scale * (w . x[o] + b), soft-capped; x holds the wanted columns compactly. unit: row of w
 *   SAMPLE    one token per wanted row from its logits, as lq_sample_logits (q_ref_sample_row); -1 where that fails,
 *             and for samplers that are not plain (q_sampler_is_plain): these choose from the logits, by that function.
 *             x.width = the size of the vocabulary (for its scratch).                               unit: wanted row
 *
 * Bounds, against the reference with the same activation format: integer parts exact; float results
 * NMSE = |y - ref|^2 / |ref|^2 <= 1e-7 for MATMUL, HEAD and the experts (bit-equal where the order above is kept),
 * 1e-9 for NORM, HEADNORM, ROPE, SCALE, GLU, CONV, 1e-7 for ATTN, ROUTE weights and SCAN; EMBED, COPY, KV_PUT exact.
 * SAMPLE: the reference's token; devices that add in float32 may take a neighbour where a running sum comes within 1e-6
 * of the total of what it is compared with.
 *
 * Layer L1. */
#ifndef Q_OP_H
#define Q_OP_H

#include "format.h"

typedef enum {
#define OP(name, ref, unit) Q_OP_##name,
#include "ops.def"
#undef OP
    Q_OP_COUNT
} q_op;

/* What one parallel unit of an operation is: q_op_units() counts them for a step and batch. */
typedef enum { Q_UNIT_COLUMN, Q_UNIT_ROW, Q_UNIT_COLUMN_HEAD, Q_UNIT_EXPERT_ROW, Q_UNIT_CHANNEL, Q_UNIT_HEAD,
               Q_UNIT_OUT } q_op_unit;

typedef enum {
    Q_KIND_NONE = 0,
    Q_NORM_RMS = 0, Q_NORM_LAYER, Q_NORM_L2,
    Q_ACT_NONE = 0, Q_ACT_SILU, Q_ACT_GELU, Q_ACT_GELU_TANH, Q_ACT_RELU, Q_ACT_RELU2, Q_ACT_SIGMOID, Q_ACT_SWIGLU_CLAMP,
    Q_ROPE_PAIRS = 0, Q_ROPE_HALVES,
    Q_ATTN_CAUSAL = 0, Q_ATTN_ALIBI,
    Q_ROUTE_SOFTMAX = 0, Q_ROUTE_SOFTMAX_TOP, Q_ROUTE_SIGMOID
} q_kind;

enum { Q_ATTN_KEYS = 256 /* keys per block of attention; whole pages */ };

/* A format for activations inside a product: a kernel row names the one it wants, and compiling a plan inserts one
 * quantization per (slot, format), shared by all products that read the slot. */
typedef struct q_act {
    const char *name;
    int32_t weights, bytes; /* per block; 0, 0: the block is the whole row, of a multiple of 32 values */
    /* n is a multiple of `weights`; or the row, with one block to it. */
    void (*quantize)(const float *x, int64_t n, void *dst);
    bool floats; /* values of their own, for bdot; not codes under a scale */
    bool lanes;  /* the float32 values themselves, in another order, for dot */
    int32_t from; /* a batch of fewer columns is read as it lies, by the same kernel */
} q_act;
enum { Q_ACT_ROW_MOST = 1 << 17 /* longest row that is one block */ };

/* Values in a block, whether a row of k consists of blocks, and its bytes then (a multiple of 4). */
static inline int64_t q_act_block(const q_act *a, int64_t k) { return a->weights ? a->weights : k; }
static inline bool q_act_fits(const q_act *a, int64_t k) {
    return a->lanes || (a->weights ? k % a->weights == 0 : k % 32 == 0 && k <= Q_ACT_ROW_MOST);
}
static inline int64_t q_act_bytes(const q_act *a, int64_t k) {
    if (a->lanes) return ((k + 15) / 16 | 1) * 64;
    return a->weights ? k / a->weights * a->bytes : 4 + k / 16 * 2 + k;
}

/* 8 bits per value, one scale per 32: d = amax / 127, q = x * (1 / d) rounded to nearest, ties to even, all in float32;
 * |q| <= 127. A d below 2^-126 counts as 0: d and all q are 0. A block with an infinity or NaN gets d = NaN and q = 0,
 * so that products show it. Sums are of q per 16 values, for formats with minima. The block of every q_act of codes is
 * laid out so: d, sums, q. */
typedef struct q_a8_32 {
    float d;
    int16_t sum[2];
    int8_t q[32];
} q_a8_32;
/* The same with one scale per 256, for formats in super-blocks. */
typedef struct q_a8_256 {
    float d;
    int16_t sum[16];
    int8_t q[256];
} q_a8_256;
/* 16 bits per value, the upper half of a float32: rounded to nearest, ties to even; below 2^-126 zero of its sign;
 * infinities and NaN stay (a NaN becomes quiet). Its block is 32 values and nothing else. */
/* 8 bits again, with one scale for the whole row, for formats with one per row (INT8 per channel and per token): d,
 * then k / 16 sums, then k codes. */
/* Not rounded at all: the values of lane 0 of dot (0, 16, 32, ...), then those of lanes 8, 4, 12, 2, ... as sums are
 * added: value i lies at q_lane_place(i % 16) * ceil(k / 16) + i / 16 (lane_order.h). The row takes an odd number of
 * lines of 64 bytes, so that many columns read at once do not lie in the same sets of a cache; what is left of it is
 * zero. */
extern const q_act q_act_a8_32, q_act_a8_256, q_act_a8_row, q_act_a_bf16, q_act_lanes; /* kernels/ref/act.c */

/* A resolved weight: rows of `k` values. Experts are consecutive matrices. Owned by the model. */
typedef struct q_weight {
    const q_format *format;
    const uint8_t *data;    /* first byte of row 0 of matrix 0 (a row range is already applied) */
    uint64_t row_bytes;
    uint64_t matrix_bytes;  /* from one expert to the next; 0 for a single matrix */
    int32_t rows, k, matrices;
    const void *packed;     /* a backend's own layout of all rows, made by its pack(); NULL = none */
    const int *packed_ready; /* NULL = it is made; otherwise it is from when this is not 0 (read by q_weight_ready) */
    int64_t packed_row;     /* which of them is row 0 here: of a row range, not 0 */
    uint64_t device;        /* address of the same in the memory of the device it was written to; 0 = none */
    const char *name;       /* the tensor's name, for messages */
    const int32_t *order;   /* [k] a permutation of the inputs, of all rows and matrices ("act-order"); NULL = none */
} q_weight;
/* May its packed layout be read? Who sees true sees all of it. */
static inline bool q_weight_ready(const q_weight *w) {
    return w->packed && (!w->packed_ready || __atomic_load_n(w->packed_ready, __ATOMIC_ACQUIRE));
}

/* Where an operand lies: value i of head h of column c is slot[c * slot_width + offset + h * stride + i]. */
typedef struct q_view {
    int32_t slot; /* 0 = absent */
    int32_t offset, heads, width, stride;
} q_view;

/* One resolved step of a plan. */
typedef struct q_inst {
    uint8_t op, kind;
    uint8_t add;   /* y += */
    uint8_t out;   /* domain OUT: the wanted columns */
    uint8_t group; /* consecutive steps with the same non-zero group are independent of one another */
    uint8_t renorm;
    int32_t layer; /* -1 before the first layer, n_layers after the last */
    q_view y, x, z, v, u;
    const q_weight *w, *w2, *w3, *b, *b2; /* b, b2: biases, one row of float32 per matrix */
    const q_weight *lora_a, *lora_b;
    float eps, scale, softcap, limit, alpha, mscale, lora_scale;
    int32_t window;                        /* 0 = none */
    int32_t sink_tokens;                   /* the first so many of a sequence are seen behind the window, too */
    int32_t rot;                           /* ROPE: values rotated per head, even */
    const float *freqs;                    /* ROPE: [freq_tables][rot / 2] angular frequencies */
    int32_t freq_tables;                   /* ROPE: 0 counts as 1 */
    int32_t n_expert, n_used, n_groups, n_groups_used;
    int32_t taps;
    int32_t kv_group, kv_layer;            /* KV_PUT, ATTN: page pool, and the layer's ordinal in it */
    int64_t state;                         /* CONV, SCAN: offset in floats into the sequence's recurrent state */
} q_inst;

struct q_plan;
struct q_batch;

/* What a kernel sees of one run, besides its instruction. */
typedef struct q_exec {
    const struct q_plan *plan;
    const struct q_batch *batch;
    float *const *slots;         /* [plan->n_slots] base of each slot; [0] unused */
    uint8_t *const *kv;          /* [plan->n_kv] base of each page pool */
    float *state;                /* recurrent state: that of sequence number i begins at i * state_floats */
    uint64_t state_floats;
    const q_act *act;            /* reference MATMUL, HEAD, MOE_*: quantize activations to this first; NULL = float32 */
    void *scratch;               /* of this thread */
    size_t scratch_bytes;
} q_exec;

/* Work on units [begin, end) of a step. Units are independent. */
typedef void (*q_op_fn)(const q_inst *s, const q_exec *e, int64_t begin, int64_t end);

typedef struct q_op_info {
    const char *name;
    q_op_unit unit;
    q_op_fn ref; /* the definition, kernels/ref/ */
} q_op_info;
extern const q_op_info q_ops[Q_OP_COUNT];

/* Number of parallel units of a step for a batch of n columns of which n_out are wanted. */
int64_t q_op_units(const q_inst *s, int32_t n, int32_t n_out);
/* Most scratch bytes per thread that the reference of this step needs. Scratch is Q_ALIGN-aligned. */
size_t q_ref_scratch(const q_inst *s, int32_t n_columns);

/* What a token is chosen from. */
enum { Q_SAMPLE_PIECE = 1 << 14, Q_DRY_BREAKERS = 64, Q_DRY_BREAKER = 64 };
typedef struct q_sample_in {
    const float *logits;       /* [n] */
    int64_t n;
    const lq_sampler *sampler;
    const int32_t *ids;        /* [count] the tokens before, in 0 .. n - 1 */
    int64_t count;
    uint64_t position;         /* with the seed it keys the draws */
    /* The bytes of a token's text, special tokens spelled out, and how many; NULL = nobody knows them. */
    size_t (*piece)(const void *texts, int32_t id, char out[Q_SAMPLE_PIECE]);
    const void *texts;
    const struct q_wide *wide; /* loops for the processor at hand; NULL = for any, with the same results */
    void *scratch;             /* q_sample_bytes(n, count), Q_ALIGN-aligned */
} q_sample_in;

/* The definition of SAMPLE, lq_sample and lq_sample_logits; libquant.h has the steps and their order (lq_sampler). Of
 * the arithmetic: biases and penalties are double and rounded once, to finite numbers; a logit of minus infinity is
 * never chosen. p = q_wide_exp(logit - largest) in float32; the order of tokens is descending logit, ties: the lower
 * id. top_k keeps the first k; typical_p those nearest to the mean of logit - largest, weighted by p, ties: the lower
 * id, and top_p the first in order, as few as have this part of the sum of p; min_p keeps logits of at least largest +
 * ln min_p; the first is always kept. The draw takes the first id, in ascending id, whose running sum of weights at the
 * temperature exceeds u * total, u uniform in [0, 1) from (seed, position) alone. Totals are sums of double over spans
 * of Q_WIDE_SPAN of what is kept, which are summed in lanes of float32 (q_wide.exps).
 * LQ_E_NUMERIC: NaN or plus infinity among the logits, or nothing to choose from. LQ_E_ARG: a field out of its range.
 * LQ_E_CANCELLED: the mask said so. *id is untouched on failure. */
lq_status q_ref_sample_row(const q_sample_in *in, int32_t *id);
size_t q_sample_bytes(int64_t n, int64_t count);
/* Has it no other fields than temperature, top_k, top_p, min_p and seed set? SAMPLE chooses by these alone. */
static inline bool q_sampler_is_plain(const lq_sampler *s) {
    return s->typical_p == 0 && s->xtc_probability == 0 && s->repeat_penalty == 0 && s->frequency_penalty == 0 &&
           s->presence_penalty == 0 && s->dry_multiplier == 0 && s->mirostat_tau == 0 && s->n_logit_bias == 0 &&
           !s->mask;
}

#endif
