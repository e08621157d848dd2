/* help_fuzz_model.h: a fixed small Llama as a Hugging Face directory, for targets that need a model that opens. */
#ifndef HELP_FUZZ_MODEL_H
#define HELP_FUZZ_MODEL_H

#include "help_fuzz.h"

#include <fcntl.h>
#include <unistd.h>

enum { EMBD = 8, FF = 12, VOCAB = 260, PATH = 512 };

static inline void write_file(const char *folder, const char *name, const void *data, size_t n) {
    char path[PATH];
    demand(snprintf(path, sizeof path, "%s/%s", folder, name) < PATH);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    demand(fd >= 0 && write(fd, data, n) == (ssize_t)n);
    close(fd);
}

static const struct {
    const char *name;
    uint32_t k, rows; /* rows 0: a vector */
    uint32_t shard;
} weights[] = {
    {"model.embed_tokens.weight", EMBD, VOCAB, 0},
    {"model.layers.0.input_layernorm.weight", EMBD, 0, 0},
    {"model.layers.0.self_attn.q_proj.weight", EMBD, EMBD, 0},
    {"model.layers.0.self_attn.k_proj.weight", EMBD, EMBD / 2, 0},
    {"model.layers.0.self_attn.v_proj.weight", EMBD, EMBD / 2, 1},
    {"model.layers.0.self_attn.o_proj.weight", EMBD, EMBD, 1},
    {"model.layers.0.post_attention_layernorm.weight", EMBD, 0, 1},
    {"model.layers.0.mlp.gate_proj.weight", EMBD, FF, 1},
    {"model.layers.0.mlp.up_proj.weight", EMBD, FF, 1},
    {"model.layers.0.mlp.down_proj.weight", FF, EMBD, 1},
    {"model.norm.weight", EMBD, 0, 1},
    {"lm_head.weight", EMBD, VOCAB, 1},
};

/* The weights of the shards in `which` (bits), in float32. */
static inline void write_weights(const char *folder, const char *name, uint32_t which) {
    char head[4096] = "{";
    size_t n = 1, end = 0;
    for (size_t i = 0; i < Q_COUNT(weights); i++) {
        if (!(which >> weights[i].shard & 1)) continue;
        const size_t from = end, rows = weights[i].rows ? weights[i].rows : 1;
        char shape[32];
        end += rows * weights[i].k * 4;
        if (weights[i].rows) snprintf(shape, sizeof shape, "%u,%u", weights[i].rows, weights[i].k);
        else snprintf(shape, sizeof shape, "%u", weights[i].k);
        n += (size_t)snprintf(head + n, sizeof head - n,
                              "%s\"%s\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                              n > 1 ? "," : "", weights[i].name, shape, from, end);
    }
    head[n++] = '}';
    uint8_t *file = (uint8_t *)calloc(1, 8 + n + end);
    demand(file);
    for (size_t i = 0; i < 8; i++) file[i] = (uint8_t)((uint64_t)n >> (8 * i));
    memcpy(file + 8, head, n);
    for (size_t i = 0; i < end; i += 4) { /* small numbers of both signs */
        const float v = (float)((i * 2654435761u >> 8) % 201) / 400.0f - 0.25f;
        memcpy(file + 8 + n + i, &v, 4);
    }
    write_file(folder, name, file, 8 + n + end);
    free(file);
}

/* A tokenizer.model: three special tokens, all bytes, one letter. */
static inline size_t make_tokenizer(uint8_t *out) {
    size_t n = 0;
    for (int i = 0; i < VOCAB; i++) {
        char piece[8];
        snprintf(piece, sizeof piece, i == 0 ? "<unk>" : i == 1 ? "<s>" : i == 2 ? "</s>" : "a");
        if (i > 2 && i < 259) snprintf(piece, sizeof piece, "<0x%02X>", i - 3);
        const size_t m = strlen(piece);
        const uint8_t head[] = {0x0A, (uint8_t)(m + 4), 0x0A, (uint8_t)m};
        memcpy(out + n, head, sizeof head);
        memcpy(out + n + sizeof head, piece, m);
        n += sizeof head + m;
        out[n++] = 0x18; /* type */
        out[n++] = i == 0 ? Q_TOKEN_UNKNOWN : i < 3 ? Q_TOKEN_CONTROL : i < 259 ? Q_TOKEN_BYTE : Q_TOKEN_NORMAL;
    }
    /* BPE with byte fallback; spaces are kept. */
    static const uint8_t specs[] = {0x12, 5, 0x18, 2, 0x98, 2, 1, 0x1A, 2, 0x20, 0};
    memcpy(out + n, specs, sizeof specs);
    return n + sizeof specs;
}

/* All of it, into a folder that is there. */
static inline void write_model(const char *folder) {
    static const char config[] =
        "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":8,\"intermediate_size\":12,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"num_key_value_heads\":1,\"rms_norm_eps\":1e-5,"
        "\"max_position_embeddings\":64,\"vocab_size\":260}";
    uint8_t tokens[VOCAB * 16];
    write_weights(folder, "model.safetensors", 3);
    write_file(folder, "config.json", config, sizeof config - 1);
    write_file(folder, "tokenizer.model", tokens, make_tokenizer(tokens));
}

#endif
