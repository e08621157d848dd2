/* fuzz_seq.c: saved sequences, read into a session of a fixed small Llama (lq_seq_load).
 *
 * What is refused leaves an empty sequence and the session as good as before; what is accepted goes on, can be saved
 * again, and is then the same bytes. The mutator keeps the sums and the model's hash right, so that lengths and
 * contents are looked at, and now and then only that: then tables of pages would show it. */
#include "help_fuzz_model.h"

#include "../libquant/checksum.h"

#include <sys/stat.h>

enum { CONTEXT = 64, SEQS = 2, MOST = 1 << 16, HEADER = 56, SUM_AT = 48, MODEL_AT = 24, BYTES_AT = 40 };

static lq_ctx *ctx;
static lq_model *model;
static lq_session *session;
static uint8_t sample[MOST]; /* a sequence of ours */
static size_t sample_bytes;

typedef struct bytes {
    uint8_t *p;
    size_t n, at;
} bytes;
static int put(void *user, const void *data, size_t n) {
    bytes *b = (bytes *)user;
    if (n > MOST - b->n) return 1;
    memcpy(b->p + b->n, data, n);
    b->n += n;
    return 0;
}
static int get(void *user, void *data, size_t n) {
    bytes *b = (bytes *)user;
    if (n > b->n - b->at) return 1;
    memcpy(data, b->p + b->at, n);
    b->at += n;
    return 0;
}

static lq_status add(uint32_t seq, uint32_t n) {
    int32_t ids[CONTEXT];
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)(3 + i * 7 % 200);
    return lq_decode(session, &(lq_item){.sequence = seq, .ids = ids, .count = n, .logits_from = n - 1}, 1);
}

static void finish(void) {
    lq_session_close(session);
    lq_model_close(model);
    lq_close(ctx);
}

static void prepare(void) {
    char folder[PATH];
    const char *tmp = getenv("T_TMP");
    snprintf(folder, sizeof folder, "%.300s/fuzz-seq-%d", tmp ? tmp : "/tmp", (int)getpid());
    demand(mkdir(folder, 0700) == 0);
    write_model(folder);
    const lq_options o = {.size = sizeof o, .threads = 1};
    const lq_session_options so = {.size = sizeof so, .context = CONTEXT, .sequences = SEQS, .kv_tokens = CONTEXT + 32};
    demand(lq_open(&o, &ctx) == LQ_OK && lq_model_open(ctx, folder, NULL, &model) == LQ_OK);
    demand(lq_session_open(model, &so, &session) == LQ_OK && add(0, 37) == LQ_OK);
    atexit(finish);
    bytes b = {.p = sample};
    demand(lq_seq_save(session, 0, put, &b) == LQ_OK);
    sample_bytes = b.n;
}

static uint64_t sum_of(const uint8_t *p, size_t n) {
    q_checksum c = {{0}, 0, {0}};
    q_checksum_add(&c, p, n);
    return q_checksum_end(&c);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (!session) prepare();
    bytes b = {.p = (uint8_t *)fuzz_copy(data, size), .n = size};
    const lq_status s = lq_seq_load(session, 1, get, &b);
    free(b.p);
    if (s != LQ_OK) {
        demand(s > LQ_FATAL && lq_error_detail()[0] && lq_seq_length(session, 1) == 0);
    } else {
        static uint8_t again[MOST];
        bytes w = {.p = again};
        demand(lq_seq_length(session, 1) <= CONTEXT && b.at <= size);
        demand(lq_seq_save(session, 1, put, &w) == LQ_OK && w.n == b.at && memcmp(again, data, w.n) == 0);
        if (lq_seq_length(session, 1) < CONTEXT) {
            const lq_status more = add(1, 1); /* keys and values may be any bits */
            demand(more == LQ_OK || more == LQ_E_NUMERIC || more == LQ_E_CONTEXT);
        }
    }
    demand(lq_seq_truncate(session, 1, 0) == LQ_OK && lq_seq_truncate(session, 0, 0) == LQ_OK && add(0, 37) == LQ_OK);
    lq_session_info info = {.size = sizeof info};
    demand(lq_session_info_get(session, &info) == LQ_OK && info.kv_free == info.kv_tokens - 64); /* no page is lost */
    return 0;
}

size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed) {
    if (!session) prepare();
    if (size < HEADER + 8 && max >= sample_bytes) {
        memcpy(data, sample, sample_bytes);
        return sample_bytes;
    }
    size = LLVMFuzzerMutate(data, size, max);
    if (size < HEADER + 8 || seed % 8 == 0) return size;
    const uint64_t bytes_between = size - HEADER - 8;
    memcpy(data, sample, 12);                              /* magic, version */
    memcpy(data + MODEL_AT, sample + MODEL_AT, 16);        /* the model, and what its pages are like */
    if (seed % 3) memcpy(data + BYTES_AT, &bytes_between, 8);
    const uint64_t head = sum_of(data, SUM_AT), rest = sum_of(data + HEADER, size - HEADER - 8);
    memcpy(data + SUM_AT, &head, 8);
    memcpy(data + size - 8, &rest, 8);
    return size;
}
