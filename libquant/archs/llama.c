/* llama.c: the Llama family as tables: RMS norm, rotary positions, grouped-query attention, SwiGLU; Mistral alike.
 *
 * Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", arXiv:2302.13971; grouped queries: Ainslie et
 * al., arXiv:2305.13245. Refuses what would change the function: biases, experts, sliding windows.
 * Layer L2. */
#include "../arch.h"

static const q_hparam_row hparams[] = {
    {.id = Q_HP_CONTEXT, .gguf = "context_length", .hf = "max_position_embeddings", .integer = true, .min = 1,
     .max = 1 << 28},
    {.id = Q_HP_EMBD, .gguf = "embedding_length", .hf = "hidden_size", .integer = true, .min = 1, .max = 1 << 20},
    {.id = Q_HP_LAYERS, .gguf = "block_count", .hf = "num_hidden_layers", .integer = true, .min = 1, .max = 4096},
    {.id = Q_HP_FF, .gguf = "feed_forward_length", .hf = "intermediate_size", .integer = true, .min = 1,
     .max = 1 << 22},
    {.id = Q_HP_HEADS, .gguf = "attention.head_count", .hf = "num_attention_heads", .integer = true, .min = 1,
     .max = 4096},
    {.id = Q_HP_HEADS_KV, .gguf = "attention.head_count_kv", .hf = "num_key_value_heads", .integer = true,
     .optional = true, .min = 1, .max = 4096, .same_as = Q_HP_HEADS},
    {.id = Q_HP_HEAD_K, .gguf = "attention.key_length", .hf = "head_dim", .integer = true, .optional = true,
     .quiet = true, .min = 2, .max = 4096, .same_as = Q_HP_EMBD, .over = Q_HP_HEADS},
    {.id = Q_HP_HEAD_V, .gguf = "attention.value_length", .hf = NULL, .integer = true, .optional = true, .quiet = true,
     .min = 1, .max = 4096, .same_as = Q_HP_HEAD_K},
    {.id = Q_HP_EPS, .gguf = "attention.layer_norm_rms_epsilon", .hf = "rms_norm_eps", .min = 1e-12, .max = 0.1},
    {.id = Q_HP_ROT, .gguf = "rope.dimension_count", .hf = NULL, .integer = true, .optional = true, .min = 2,
     .max = 4096,
     .same_as = Q_HP_HEAD_K},
    {.id = Q_HP_ROPE_BASE, .gguf = "rope.freq_base", .hf = "rope_theta", .optional = true, .min = 1, .max = 1e12,
     .otherwise = 10000, .hf_also = "rope_parameters.rope_theta"},
    {.id = Q_HP_VOCAB, .gguf = "vocab_size", .hf = "vocab_size", .integer = true, .optional = true, .min = 1,
     .max = 1 << 24,
     .otherwise = -1 /* bind.c counts the tokens */},
};

static const q_fixed_row fixed[] = {
    {NULL, "model_type", "llama,mistral"}, /* says the same as the class's name, or the file contradicts itself */
    {NULL, "hidden_act", "silu"},
    {NULL, "attention_bias", "false"},
    {NULL, "mlp_bias", "false"},
    {NULL, "attention_dropout", "0"},
    {NULL, "sliding_window", "null"},
    {"expert_count", NULL, "0"},
    {"expert_used_count", NULL, "0"},
    {"attention.causal", NULL, "true"},
    {"tensor_data_layout", NULL, "Meta AI original pth"},
};

enum {
    TOKEN_EMBD = 1, ATTN_NORM, ATTN_Q, ATTN_K, ATTN_V, ATTN_OUTPUT, FFN_NORM, FFN_GATE, FFN_UP, FFN_DOWN, OUTPUT_NORM,
    OUTPUT /* then what no step reads: factors of RoPE's frequencies (rope_scaling.h) */
};

#define BLK "model.layers.%d."
#define D(x) Q_DIM_##x
static const q_weight_row weights[] = {
    {.role = "token_embd", .gguf = "token_embd.weight", .hf = "model.embed_tokens.weight", .k = D(EMBD),
     .rows = D(VOCAB)},
    {.role = "attn_norm", .gguf = "blk.%d.attn_norm.weight", .hf = BLK "input_layernorm.weight", .k = D(EMBD)},
    {.role = "attn_q", .gguf = "blk.%d.attn_q.weight", .hf = BLK "self_attn.q_proj.weight", .k = D(EMBD), .rows = D(Q),
     .map = Q_MAP_ROPE_PAIRS, .map_heads = D(HEADS)},
    {.role = "attn_k", .gguf = "blk.%d.attn_k.weight", .hf = BLK "self_attn.k_proj.weight", .k = D(EMBD), .rows = D(K),
     .map = Q_MAP_ROPE_PAIRS, .map_heads = D(HEADS_KV)},
    {.role = "attn_v", .gguf = "blk.%d.attn_v.weight", .hf = BLK "self_attn.v_proj.weight", .k = D(EMBD), .rows = D(V)},
    {.role = "attn_output", .gguf = "blk.%d.attn_output.weight", .hf = BLK "self_attn.o_proj.weight", .k = D(ATTN),
     .rows = D(EMBD)},
    {.role = "ffn_norm", .gguf = "blk.%d.ffn_norm.weight", .hf = BLK "post_attention_layernorm.weight", .k = D(EMBD)},
    {.role = "ffn_gate", .gguf = "blk.%d.ffn_gate.weight", .hf = BLK "mlp.gate_proj.weight", .k = D(EMBD),
     .rows = D(FF)},
    {.role = "ffn_up", .gguf = "blk.%d.ffn_up.weight", .hf = BLK "mlp.up_proj.weight", .k = D(EMBD), .rows = D(FF)},
    {.role = "ffn_down", .gguf = "blk.%d.ffn_down.weight", .hf = BLK "mlp.down_proj.weight", .k = D(FF),
     .rows = D(EMBD)},
    {.role = "output_norm", .gguf = "output_norm.weight", .hf = "model.norm.weight", .k = D(EMBD)},
    {.role = "output", .gguf = "output.weight", .hf = "lm_head.weight", .k = D(EMBD), .rows = D(VOCAB),
     .tied = TOKEN_EMBD},
    {.role = "rope_freqs", .gguf = "rope_freqs.weight", .k = D(HALF_ROT), .optional = true,
     .made = Q_MADE_ROPE_FREQS},
    {.role = "rope_factors_long", .gguf = "rope_factors_long.weight", .k = D(HALF_ROT), .optional = true,
     .made = Q_MADE_ROPE_LONG},
    {.role = "rope_factors_short", .gguf = "rope_factors_short.weight", .k = D(HALF_ROT), .optional = true,
     .made = Q_MADE_ROPE_SHORT},
};

enum { X = 1, H, Q, K, V, Y, G, U }; /* residual, normed, query, key, value, attention, gate, up */
static const q_slot_row slots[] = {
    {NULL, 0}, {"X", D(EMBD)}, {"H", D(EMBD)}, {"Q", D(Q)}, {"K", D(K)}, {"V", D(V)}, {"Y", D(ATTN)}, {"G", D(FF)},
    {"U", D(FF)},
};

#define Q_HEADS {.heads = D(HEADS), .width = D(HEAD_K)}
#define K_HEADS {.heads = D(HEADS_KV), .width = D(HEAD_K)}
#define V_HEADS {.heads = D(HEADS_KV), .width = D(HEAD_V)}
#define Y_HEADS {.heads = D(HEADS), .width = D(HEAD_V)}
static const q_step first[] = {
    {.op = Q_OP_EMBED, .y = X, .w = TOKEN_EMBD},
};
static const q_step layer[] = {
    {.op = Q_OP_NORM, .y = H, .x = X, .w = ATTN_NORM, .hp_eps = Q_HP_EPS},
    {.op = Q_OP_MATMUL, .y = Q, .x = H, .w = ATTN_Q, .group = 1},
    {.op = Q_OP_MATMUL, .y = K, .x = H, .w = ATTN_K, .group = 1},
    {.op = Q_OP_MATMUL, .y = V, .x = H, .w = ATTN_V, .group = 1},
    {.op = Q_OP_ROPE, .y = Q, .x = Q, .yp = Q_HEADS, .xp = Q_HEADS, .rot = D(ROT), .hp_base = Q_HP_ROPE_BASE,
     .group = 2},
    {.op = Q_OP_ROPE, .y = K, .x = K, .yp = K_HEADS, .xp = K_HEADS, .rot = D(ROT), .hp_base = Q_HP_ROPE_BASE,
     .group = 2},
    {.op = Q_OP_KV_PUT, .x = K, .z = V, .xp = K_HEADS, .zp = V_HEADS},
    {.op = Q_OP_ATTN, .y = Y, .x = Q, .yp = Y_HEADS, .xp = Q_HEADS, .hp_scale = Q_HP_HEAD_K, .scale_pow = -0.5f},
    {.op = Q_OP_MATMUL, .y = X, .x = Y, .w = ATTN_OUTPUT, .add = 1},
    {.op = Q_OP_NORM, .y = H, .x = X, .w = FFN_NORM, .hp_eps = Q_HP_EPS},
    {.op = Q_OP_MATMUL, .y = G, .x = H, .w = FFN_GATE, .group = 3},
    {.op = Q_OP_MATMUL, .y = U, .x = H, .w = FFN_UP, .group = 3},
    {.op = Q_OP_GLU, .y = G, .x = G, .z = U, .kind = Q_ACT_SILU},
    {.op = Q_OP_MATMUL, .y = X, .x = G, .w = FFN_DOWN, .add = 1},
};
static const q_step last[] = {
    {.op = Q_OP_NORM, .y = H, .x = X, .w = OUTPUT_NORM, .hp_eps = Q_HP_EPS, .out = 1},
    {.op = Q_OP_HEAD, .x = H, .w = OUTPUT, .out = 1},
};
static const q_layer_table layers[] = {{layer, Q_COUNT(layer)}};

const q_arch q_arch_llama = {
    .name = "llama",
    .hf_classes = "LlamaForCausalLM,MistralForCausalLM",
    .ignored_tensors = "rotary_emb.inv_freq",
    .hparams = hparams, .n_hparams = Q_COUNT(hparams),
    .fixed = fixed, .n_fixed = Q_COUNT(fixed),
    .weights = weights, .n_weights = Q_COUNT(weights),
    .slots = slots, .n_slots = Q_COUNT(slots),
    .first = {first, Q_COUNT(first)},
    .layers = layers, .n_layer_kinds = Q_COUNT(layers),
    .last = {last, Q_COUNT(last)},
    .rope_scaling = true,
    .dim_kv_heads = D(HEADS_KV), .dim_k = D(HEAD_K), .dim_v = D(HEAD_V),
};
