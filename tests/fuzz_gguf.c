/* fuzz_gguf.c: libFuzzer target over the GGUF reader.
 *
 * The input becomes an unnamed file; it is opened unmapped (so that the head lies in a block of its exact size and
 * an over-read is seen) and mapped, with and without gaps. Whatever the reader accepts is walked: every byte of every
 * value and name, a lookup of each, and one row of each tensor decoded; its vocabulary is opened where it has one. */
#include "help_fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

extern const q_loader q_loader_gguf;

static volatile uint8_t sink;

static void touch(const void *p, uint64_t n) {
    uint8_t sum = 0;
    for (uint64_t i = 0; i < n; i++) sum = (uint8_t)(sum + ((const uint8_t *)p)[i]);
    sink = sum;
}

static void must(bool truth, const char *what) {
    if (truth) return;
    fprintf(stderr, "the reader let through: %s\n", what);
    abort();
}

static void walk_meta(const q_directory *d) {
    static const uint8_t item_bytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    for (uint32_t i = 0; i < d->n_meta; i++) {
        const q_meta *m = &d->meta[i];
        must(m->key.n > 0 && (uint32_t)m->type <= Q_META_F64, "a key without name or type");
        touch(m->key.p, m->key.n);
        char key[256];
        if (m->key.n < sizeof key) {
            memcpy(key, m->key.p, m->key.n);
            key[m->key.n] = 0;
            must(q_directory_meta(d, key) == m, "a key that is not found by its name");
        }
        if (m->type == Q_META_STRING) touch(m->s.p, m->s.n);
        if (m->type != Q_META_ARRAY) continue;
        must(m->item != Q_META_ARRAY && (uint32_t)m->item <= Q_META_F64, "an array of nothing known");
        if (m->item == Q_META_STRING)
            for (uint64_t k = 0; k < m->count; k++) touch(m->strs[k].p, m->strs[k].n);
        else
            touch(m->raw, m->count * item_bytes[m->item]);
    }
}

static void walk_tensors(const q_directory *d, uint64_t size) {
    for (uint32_t i = 0; i < d->n_tensors; i++) {
        const q_tensor *t = &d->tensors[i];
        must(t->bytes > 0 && t->offset <= size && t->bytes <= size - t->offset, "a tensor outside the file");
        must(t->rows * t->row_bytes == t->bytes, "rows that do not make up the tensor");
        must(q_directory_tensor(d, t->name) == t, "a tensor that is not found by its name");
        uint8_t *row = (uint8_t *)malloc(t->row_bytes);
        float *y = (float *)malloc(t->shape[0] * sizeof *y);
        must(row && y && q_tensor_read(d, t, t->bytes - t->row_bytes, row, t->row_bytes) == LQ_OK, "an unreadable row");
        if (t->format) q_decode_row(t->format, row, (int64_t)t->shape[0], y);
        free(row);
        free(y);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int fd = -1;
    if (fd < 0) fd = memfd_create("input.gguf", 0);
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, n, 0) != (ssize_t)n) abort();
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    for (uint32_t mode = 0; mode < 3; mode++) {
        const q_load_options o = {.alloc = &q_alloc_libc, .map = mode == 1, .allow_gaps = mode == 2};
        q_directory *d = NULL;
        const lq_status status = q_loader_gguf.open(path, &o, &d);
        if (status != LQ_OK) {
            must(status < 0 && status > LQ_FATAL && lq_error_detail()[0] && !d, "an error that says nothing");
            continue;
        }
        walk_meta(d);
        walk_tensors(d, n);
        q_text *t;
        if (q_text_open(&q_alloc_libc, NULL, d, &t) == LQ_OK) q_text_close(t);
        q_directory_close(d);
    }
    return 0;
}
