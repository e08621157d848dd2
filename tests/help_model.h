/* help_model.h: a tiny random Llama as a GGUF file or a directory; every key and tensor is open to a test's
 * mischief. */
#ifndef HELP_MODEL_H
#define HELP_MODEL_H

#include "../libquant/loader.h"

typedef struct tiny {
    q_meta meta[64];
    uint32_t n_meta;
    q_out_tensor tensors[64];
    uint32_t n_tensors;
    char names[64][64];
    q_str pieces[300];
    float scores[300];
    int32_t types[300];
    char piece_text[300][8];
    uint64_t seed;
    float poison; /* non-zero: written as the first value of `poison_tensor` */
    const char *poison_tensor;
    const char *config; /* further members of config.json: ",\"rope_scaling\":{...}"; NULL = none */
} tiny;

/* 2 layers, width 64, 4 heads and 2 KV heads of 16, FFN 96, vocabulary 262 (specials, bytes, 3 letters), context 64. */
void tiny_init(tiny *t, const char *format);
q_meta *tiny_key(tiny *t, const char *key); /* NULL when absent */
void tiny_u32(tiny *t, const char *key, uint64_t v);
void tiny_f32(tiny *t, const char *key, double v);
void tiny_str(tiny *t, const char *key, const char *v);
void tiny_drop_key(tiny *t, const char *key);
q_out_tensor *tiny_tensor(tiny *t, const char *name);
void tiny_add(tiny *t, const char *name, const char *format, uint64_t k, uint64_t rows);
void tiny_drop_tensor(tiny *t, const char *name);
/* Aborts the test when it cannot be written. */
void tiny_write(tiny *t, const char *path);
/* The same model as a Hugging Face directory that exists: f16 tensors, tokenizer.model and both configurations. The
 * shapes of tiny_init are assumed; its context is the key's. */
void tiny_write_hf(tiny *t, const char *dir);

/* Another width (a multiple of 4, for as many heads), width of the feed-forward and number of layers, at least 2. After
 * tiny_init. */
void tiny_grow(tiny *t, uint64_t width, uint64_t ffn, int layers);
/* As many key-value heads as heads: nothing is shared. After tiny_init. */
void tiny_unshare_heads(tiny *t);

/* Remove a folder with all below it, where it is. */
void t_remove(const char *folder);

/* Bytes that are allocated through live_alloc and not yet given back, of all threads; the most that they were. */
extern size_t live_bytes, live_peak;
void *live_alloc(void *user, size_t bytes, size_t align);
void live_free(void *user, void *p, size_t bytes);

#endif
