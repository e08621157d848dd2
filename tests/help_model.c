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
    ck_assert_msg(q_writer_gguf.commit(w) == LQ_OK, "%s", lq_error_detail());
}
