/* help_model.c: see help_model.h. Weights are drawn per tensor name, so dropping one tensor leaves the others alike. */
#include "help_model.h"

#include "harness.h"

q_meta *tiny_key(tiny *t, const char *key) {
    for (uint32_t i = 0; i < t->n_meta; i++)
        if (q_str_is(t->meta[i].key, key)) return &t->meta[i];
    return NULL;
}

static q_meta *put(tiny *t, const char *key) {
    q_meta *m = tiny_key(t, key);
    if (!m) m = &t->meta[t->n_meta++];
    *m = (q_meta){.key = q_str_of(key), .count = 1};
    return m;
}
void tiny_u32(tiny *t, const char *key, uint64_t v) {
    q_meta *m = put(t, key);
    m->type = v > UINT32_MAX ? Q_META_U64 : Q_META_U32;
    m->u = v;
    m->i = (int64_t)v;
    m->f = (double)v;
}
void tiny_f32(tiny *t, const char *key, double v) {
    q_meta *m = put(t, key);
    m->type = Q_META_F32;
    m->f = v;
}
void tiny_str(tiny *t, const char *key, const char *v) {
    q_meta *m = put(t, key);
    m->type = Q_META_STRING;
    m->s = q_str_of(v);
}
void tiny_drop_key(tiny *t, const char *key) {
    q_meta *m = tiny_key(t, key);
    if (m) *m = t->meta[--t->n_meta];
}

q_out_tensor *tiny_tensor(tiny *t, const char *name) {
    for (uint32_t i = 0; i < t->n_tensors; i++)
        if (q_str_is(t->tensors[i].name, name)) return &t->tensors[i];
    return NULL;
}
void tiny_add(tiny *t, const char *name, const char *format, uint64_t k, uint64_t rows) {
    const uint32_t i = t->n_tensors++;
    snprintf(t->names[i], sizeof t->names[i], "%s", name);
    t->tensors[i] = (q_out_tensor){.name = q_str_of(t->names[i]), .format = q_format_find(format), .rank = rows ? 2 : 1,
                                   .shape = {k, rows ? rows : 1, 1, 1, 1, 1, 1, 1}};
}
void tiny_drop_tensor(tiny *t, const char *name) {
    q_out_tensor *x = tiny_tensor(t, name);
    if (!x) return;
    memmove(x, x + 1, (size_t)(&t->tensors[--t->n_tensors] - x) * sizeof *x);
}

static void vocabulary(tiny *t) {
    static const char *const special[] = {"<unk>", "<s>", "</s>"};
    for (int i = 0; i < 262; i++) {
        char *p = t->piece_text[i];
        if (i < 3) snprintf(p, 8, "%s", special[i]);
        else if (i < 259) snprintf(p, 8, "<0x%02X>", i - 3);
        else snprintf(p, 8, "%c", 'a' + i - 259);
        t->pieces[i] = q_str_of(p);
        t->scores[i] = i < 259 ? 0.0f : (float)-(i - 259);
        t->types[i] = i == 0 ? 2 : i < 3 ? 3 : i < 259 ? 6 : 1;
    }
    q_meta *m = put(t, "tokenizer.ggml.tokens");
    m->type = Q_META_ARRAY;
    m->item = Q_META_STRING;
    m->count = 262;
    m->strs = t->pieces;
    m = put(t, "tokenizer.ggml.scores");
    m->type = Q_META_ARRAY;
    m->item = Q_META_F32;
    m->count = 262;
    m->raw = (const uint8_t *)t->scores;
    m = put(t, "tokenizer.ggml.token_type");
    m->type = Q_META_ARRAY;
    m->item = Q_META_I32;
    m->count = 262;
    m->raw = (const uint8_t *)t->types;
    tiny_u32(t, "tokenizer.ggml.bos_token_id", 1);
    tiny_u32(t, "tokenizer.ggml.eos_token_id", 2);
    tiny_u32(t, "tokenizer.ggml.unknown_token_id", 0);
}

void tiny_init(tiny *t, const char *format) {
    memset(t, 0, sizeof *t);
    t->seed = 7;
    tiny_str(t, "general.architecture", "llama");
    tiny_str(t, "general.name", "tiny");
    tiny_u32(t, "llama.context_length", 64);
    tiny_u32(t, "llama.embedding_length", 64);
    tiny_u32(t, "llama.block_count", 2);
    tiny_u32(t, "llama.feed_forward_length", 96);
    tiny_u32(t, "llama.attention.head_count", 4);
    tiny_u32(t, "llama.attention.head_count_kv", 2);
    tiny_f32(t, "llama.attention.layer_norm_rms_epsilon", 1e-5);
    tiny_u32(t, "llama.rope.dimension_count", 16);
    tiny_f32(t, "llama.rope.freq_base", 10000);
    tiny_u32(t, "llama.vocab_size", 262);
    tiny_str(t, "tokenizer.ggml.model", "llama");
    vocabulary(t);
    tiny_add(t, "token_embd.weight", format, 64, 262);
    for (int l = 0; l < 2; l++) {
        static const struct {
            const char *name;
            uint64_t k, rows;
        } w[] = {{"attn_norm", 64, 0}, {"attn_q", 64, 64}, {"attn_k", 64, 32}, {"attn_v", 64, 32}, {"attn_output", 64, 64},
                 {"ffn_norm", 64, 0}, {"ffn_gate", 64, 96}, {"ffn_up", 64, 96}, {"ffn_down", 96, 64}};
        for (size_t i = 0; i < Q_COUNT(w); i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, w[i].name);
            tiny_add(t, name, w[i].rows ? format : "f32", w[i].k, w[i].rows);
        }
    }
    tiny_add(t, "output_norm.weight", "f32", 64, 0);
    tiny_add(t, "output.weight", format, 64, 262);
}

void tiny_write(tiny *t, const char *path) {
    q_writer *w = NULL;
    const q_alloc *a = &q_alloc_libc;
    ck_assert_msg(q_writer_gguf.open(a, path, true, t->meta, t->n_meta, t->tensors, t->n_tensors, &w) == LQ_OK, "%s",
                  lq_error_detail());
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        const q_out_tensor *x = &t->tensors[i];
        const uint64_t k = x->shape[0];
        uint64_t rows = 1, bytes, seed = t->seed ^ q_fnv64(x->name.p, (size_t)x->name.n);
        for (int d = 1; d < 8; d++) rows *= x->shape[d];
        ck_assert(q_row_bytes(x->format, k, &bytes));
        float *row = malloc(k * sizeof *row);
        uint8_t *out = malloc(bytes);
        for (uint64_t r = 0; r < rows; r++) {
            for (uint64_t j = 0; j < k; j++) row[j] = (x->rank == 1 ? 1.0f : 0.0f) + 0.15f * t_normal(&seed);
            if (r == 0 && t->poison_tensor && q_str_is(x->name, t->poison_tensor)) row[0] = t->poison;
            q_encode_row(x->format, row, NULL, false, (int64_t)k, out);
            ck_assert_int_eq(q_writer_gguf.write(w, out, bytes), LQ_OK);
        }
        free(row);
        free(out);
    }
    ck_assert_msg(q_writer_gguf.commit(w, NULL) == LQ_OK, "%s", lq_error_detail());
}

/* ------------------------------------------------------------------------------------------------ as a directory */

/* A tensor's name in Hugging Face's convention. */
static void hf_name(q_str gguf, char *name, size_t n) {
    static const struct {
        const char *gguf, *hf;
    } parts[] = {{"attn_norm", "input_layernorm"}, {"attn_q", "self_attn.q_proj"}, {"attn_k", "self_attn.k_proj"},
                 {"attn_v", "self_attn.v_proj"}, {"attn_output", "self_attn.o_proj"},
                 {"ffn_norm", "post_attention_layernorm"}, {"ffn_gate", "mlp.gate_proj"}, {"ffn_up", "mlp.up_proj"},
                 {"ffn_down", "mlp.down_proj"}};
    int layer;
    char part[32];
    if (sscanf(gguf.p, "blk.%d.%31[a-z_].weight", &layer, part) == 2) {
        for (size_t i = 0; i < Q_COUNT(parts); i++)
            if (strcmp(part, parts[i].gguf) == 0) snprintf(name, n, "model.layers.%d.%s.weight", layer, parts[i].hf);
        return;
    }
    snprintf(name, n, "%s", q_str_is(gguf, "token_embd.weight")    ? "model.embed_tokens.weight"
                            : q_str_is(gguf, "output_norm.weight") ? "model.norm.weight"
                                                                   : "lm_head.weight");
}

static FILE *create(const char *dir, const char *name) {
    char path[4200];
    FILE *f = fopen(t_path(path, sizeof path, dir, name), "wb");
    ck_assert_ptr_nonnull(f);
    return f;
}

static void write_safetensors(const tiny *t, const char *dir) {
    static char header[16384];
    const q_format *f16 = q_format_find("f16");
    uint64_t n = (uint64_t)snprintf(header, sizeof header, "{\"__metadata__\":{\"format\":\"pt\"}"), at = 0;
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        const q_out_tensor *x = &t->tensors[i];
        char name[64], shape[64];
        hf_name(x->name, name, sizeof name);
        if (x->rank == 1) snprintf(shape, sizeof shape, "%d", (int)x->shape[0]);
        else snprintf(shape, sizeof shape, "%d,%d", (int)x->shape[1], (int)x->shape[0]);
        const uint64_t bytes = 2 * x->shape[0] * x->shape[1];
        n += (uint64_t)snprintf(header + n, sizeof header - n,
                                ",\"%s\":{\"dtype\":\"F16\",\"shape\":[%s],\"data_offsets\":[%llu,%llu]}", name, shape,
                                (unsigned long long)at, (unsigned long long)(at + bytes));
        at += bytes;
    }
    n += (uint64_t)snprintf(header + n, sizeof header - n, "}");
    ck_assert_uint_lt(n, sizeof header - 1);
    FILE *f = create(dir, "model.safetensors");
    fwrite(&n, 8, 1, f);
    fwrite(header, 1, n, f);
    for (uint32_t i = 0; i < t->n_tensors; i++) {
        const q_out_tensor *x = &t->tensors[i];
        const uint64_t k = x->shape[0];
        uint64_t seed = t->seed ^ q_fnv64(x->name.p, (size_t)x->name.n);
        float *row = malloc(k * sizeof *row);
        uint8_t *out = malloc(2 * k);
        for (uint64_t r = 0; r < x->shape[1]; r++) {
            for (uint64_t j = 0; j < k; j++) row[j] = (x->rank == 1 ? 1.0f : 0.0f) + 0.15f * t_normal(&seed);
            q_encode_row(f16, row, NULL, false, (int64_t)k, out);
            ck_assert_uint_eq(fwrite(out, 2, k, f), k);
        }
        free(row);
        free(out);
    }
    ck_assert_int_eq(fclose(f), 0);
}

/* SentencePiece's messages: pieces (text, score, type), what the trainer was told, how text is normalized. */
static void write_tokenizer(const tiny *t, const char *dir) {
    FILE *f = create(dir, "tokenizer.model");
    for (uint32_t i = 0; i < 262; i++) {
        const q_str s = t->pieces[i];
        fprintf(f, "\n%c\n%c%.*s\x15", (int)s.n + 9, (int)s.n, (int)s.n, s.p);
        fwrite(&t->scores[i], 4, 1, f);
        fprintf(f, "\x18%c", (int)t->types[i]);
    }
    static const uint8_t rest[] = {0x12, 5,   0x18, 2,   0x98, 2,   1,   0x1A, 14,   10, 8,   'i',
                                   'd',  'e', 'n',  't', 'i',  't', 'y', 0x18, 1,    0x20, 0};
    fwrite(rest, 1, sizeof rest, f);
    ck_assert_int_eq(fclose(f), 0);
}

void tiny_write_hf(tiny *t, const char *dir) {
    write_safetensors(t, dir);
    write_tokenizer(t, dir);
    FILE *f = create(dir, "config.json");
    fprintf(f, "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"llama\",\"hidden_size\":64,"
               "\"intermediate_size\":96,\"num_hidden_layers\":2,\"num_attention_heads\":4,"
               "\"num_key_value_heads\":2,\"head_dim\":16,\"hidden_act\":\"silu\",\"rms_norm_eps\":1e-05,"
               "\"rope_theta\":10000.0,\"max_position_embeddings\":%u,\"vocab_size\":262,\"bos_token_id\":1,"
               "\"eos_token_id\":2,\"tie_word_embeddings\":false,\"torch_dtype\":\"float16\"%s}\n",
            (unsigned)tiny_key(t, "llama.context_length")->u, t->config ? t->config : "");
    ck_assert_int_eq(fclose(f), 0);
    f = create(dir, "tokenizer_config.json");
    fprintf(f, "{\"add_bos_token\":true,\"add_eos_token\":false,\"bos_token\":\"<s>\",\"eos_token\":\"</s>\","
               "\"unk_token\":\"<unk>\",\"tokenizer_class\":\"LlamaTokenizer\",\"legacy\":false}\n");
    ck_assert_int_eq(fclose(f), 0);
}

void tiny_grow(tiny *t, uint64_t width, uint64_t ffn, int layers) {
    tiny_u32(t, "llama.embedding_length", width);
    tiny_u32(t, "llama.feed_forward_length", ffn);
    tiny_u32(t, "llama.rope.dimension_count", width / 4);
    tiny_u32(t, "llama.block_count", (uint64_t)layers);
    for (uint32_t i = 0, n = t->n_tensors; i < n; i++) {
        q_out_tensor *x = &t->tensors[i];
        const uint64_t from[] = {64, 32, 96}, to[] = {width, width / 2, ffn};
        bool wide = false;
        for (size_t j = 0; j < Q_COUNT(from) && !wide; j++)
            if ((wide = x->shape[0] == from[j])) x->shape[0] = to[j];
        for (size_t j = 0; j < Q_COUNT(from) && x->rank > 1; j++)
            if (x->shape[1] == from[j]) {
                x->shape[1] = to[j];
                break;
            }
        for (int l = 2; l < layers && strncmp(x->name.p, "blk.1.", 6) == 0; l++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.%s", l, x->name.p + 6);
            tiny_add(t, name, x->format->name, x->shape[0], x->rank > 1 ? x->shape[1] : 0);
        }
    }
}

void tiny_unshare_heads(tiny *t) {
    tiny_u32(t, "llama.attention.head_count_kv", 4);
    for (int l = 0; l < 2; l++)
        for (int i = 0; i < 2; i++) {
            char name[64];
            snprintf(name, sizeof name, "blk.%d.attn_%c.weight", l, "kv"[i]);
            tiny_tensor(t, name)->shape[1] = 64;
        }
}

/* ---- files */

void t_remove(const char *folder) {
    DIR *d = opendir(folder);
    if (!d) return;
    for (const struct dirent *e; (e = readdir(d)) != NULL;) {
        char path[2000];
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0) continue;
        snprintf(path, sizeof path, "%s/%s", folder, e->d_name);
        if (unlink(path) != 0) t_remove(path);
    }
    closedir(d);
    rmdir(folder);
}

/* ---- memory */

size_t live_bytes, live_peak;
void *live_alloc(void *user, size_t bytes, size_t align) {
    Q_UNUSED(user);
    const size_t now = __atomic_add_fetch(&live_bytes, bytes, __ATOMIC_RELAXED);
    size_t peak = __atomic_load_n(&live_peak, __ATOMIC_RELAXED);
    while (now > peak && !__atomic_compare_exchange_n(&live_peak, &peak, now, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {}
    return q_alloc_libc.alloc(NULL, bytes, align);
}
void live_free(void *user, void *p, size_t bytes) {
    Q_UNUSED(user);
    __atomic_fetch_sub(&live_bytes, bytes, __ATOMIC_RELAXED);
    q_alloc_libc.free(NULL, p, bytes);
}
