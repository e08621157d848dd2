/* help_gguf.h: GGUF files built byte by byte, so that each rule can be broken alone, and an allocator that counts and
 * fails. Shared by the tests of the GGUF reader and writer. */
#ifndef HELP_GGUF_H
#define HELP_GGUF_H

#include "harness.h"

#include <unistd.h>

#include "../libquant/loader.h"

typedef struct bytes {
    uint8_t *p;
    size_t n, cap;
} bytes;

static inline void put(bytes *b, const void *data, size_t n) {
    if (b->n + n > b->cap) {
        b->cap = (b->n + n) * 2;
        b->p = (uint8_t *)realloc(b->p, b->cap);
        ck_assert_ptr_nonnull(b->p);
    }
    if (n) memcpy(b->p + b->n, data, n);
    b->n += n;
}
static inline void put8(bytes *b, uint8_t v) { put(b, &v, 1); }
static inline void put32(bytes *b, uint32_t v) { put(b, &v, 4); }
static inline void put64(bytes *b, uint64_t v) { put(b, &v, 8); }
static inline void put_text(bytes *b, const char *s) {
    put64(b, strlen(s));
    put(b, s, strlen(s));
}
static inline void key(bytes *b, const char *name, uint32_t type) {
    put_text(b, name);
    put32(b, type);
}
static inline void key_u32(bytes *b, const char *name, uint32_t v) {
    key(b, name, Q_META_U32);
    put32(b, v);
}
static inline void key_str(bytes *b, const char *name, const char *v) {
    key(b, name, Q_META_STRING);
    put_text(b, v);
}
static inline void key_array(bytes *b, const char *name, uint32_t item, uint64_t count) {
    key(b, name, Q_META_ARRAY);
    put32(b, item);
    put64(b, count);
}
static inline bytes head(uint32_t version, uint64_t n_tensors, uint64_t n_meta) {
    bytes b = {0};
    put(&b, "GGUF", 4);
    put32(&b, version);
    put64(&b, n_tensors);
    put64(&b, n_meta);
    return b;
}
static inline void tensor(bytes *b, const char *name, uint32_t rank, const uint64_t *dims, uint32_t type,
                          uint64_t offset) {
    put_text(b, name);
    put32(b, rank);
    for (uint32_t i = 0; i < rank && i < 8; i++) put64(b, dims[i]);
    put32(b, type);
    put64(b, offset);
}
static inline void vector(bytes *b, const char *name, uint64_t n, uint64_t offset) {
    tensor(b, name, 1, &n, 0, offset);
}
static inline void align(bytes *b, size_t to) {
    while (b->n % to) put8(b, 0);
}
static inline void data(bytes *b, size_t n) {
    for (size_t i = 0; i < n; i++) put8(b, (uint8_t)(i * 7 + 1));
}
static inline bytes copy(const bytes *b) {
    bytes c = {0};
    put(&c, b->p, b->n);
    return c;
}

static inline const char *tmp_name(const char *name) {
    static char path[4][4096];
    static unsigned next;
    return t_path(path[next++ % 4], sizeof path[0], t_tmp(), name);
}
static inline q_path_kind kind_of(const char *path) {
    q_path_kind kind;
    ck_assert_msg(q_path_kind_of(path, &kind) == LQ_OK, "%s", lq_error_detail());
    return kind;
}
static inline void save_as(const bytes *b, const char *path) {
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    if (b->n) ck_assert_uint_eq(fwrite(b->p, 1, b->n, f), b->n);
    ck_assert_int_eq(fclose(f), 0);
}
static inline const char *save(const bytes *b) {
    const char *path = tmp_name("case.gguf");
    save_as(b, path);
    return path;
}

/* An allocator that counts what is out, and fails the call number `fail`. */
typedef struct counter {
    uint64_t live, peak, calls, fail;
} counter;
static inline void *count_alloc(void *user, size_t n, size_t to) {
    counter *c = (counter *)user;
    if (++c->calls == c->fail) return NULL;
    void *p = NULL;
    if (posix_memalign(&p, to, n) != 0) return NULL;
    c->live += n;
    c->peak = Q_MAX(c->peak, c->live);
    return p;
}
static inline void count_free(void *user, void *p, size_t n) {
    ((counter *)user)->live -= n;
    free(p);
}

static inline lq_status open_path(const char *path, bool map, q_directory **d) {
    const q_load_options o = {.alloc = &q_alloc_libc, .map = map};
    return q_directory_open(path, &o, d);
}

/* A small complete file: four keys, two tensors. */
static inline bytes small(uint32_t version) {
    bytes b = head(version, 2, 4);
    key_str(&b, "general.architecture", "llama");
    key_u32(&b, "llama.block_count", 2);
    key_array(&b, "tokenizer.ggml.tokens", Q_META_STRING, 3);
    put_text(&b, "<s>");
    put_text(&b, "");
    put_text(&b, "\xff\xfe"); /* values may be any bytes */
    key_array(&b, "tokenizer.ggml.scores", Q_META_F32, 2);
    put32(&b, q_f32_bits(1.5f));
    put32(&b, q_f32_bits(-2.0f));
    vector(&b, "a.weight", 5, 0);
    tensor(&b, "b.weight", 2, (const uint64_t[]){32, 3}, 8, 32); /* q8_0: 34 bytes a row */
    align(&b, 32);
    data(&b, 20);
    align(&b, 32);
    data(&b, 102);
    return b;
}

#endif
