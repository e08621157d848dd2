/* test_quantize.c: lq_quantize's promises: what the file holds, what importance does to it, what is refused, and that
 * failures leave nothing. It is long because all cases share one maker of models and one way of looking at results. */
#include "harness.h"

#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../libquant/bind.h"
#include "../libquant/quantize.h"

static const q_alloc *const A = &q_alloc_libc;

/* ---- paths and files */

/* A folder of each test's own, so that what is left behind can be counted, and removed. */
static const char *folder(void) {
    static char buf[1024];
    snprintf(buf, sizeof buf, "%s/quantize-%ld", t_tmp(), (long)getpid());
    return buf;
}
static char paths[8][1400];
static const char *in_tmp(int slot, const char *name) {
    return t_path(paths[slot], sizeof paths[slot], folder(), name);
}
static const char *pocket(void) {
    static char buf[1024];
    return t_path(buf, sizeof buf, t_root(), "bench/data/pocket");
}
static bool exists(const char *path) { return access(path, F_OK) == 0; }
static uint64_t size_of(const char *path) {
    struct stat st;
    ck_assert_msg(stat(path, &st) == 0, "%s", path);
    return (uint64_t)st.st_size;
}
/* Files in the test's folder, temporaries included. */
static int files_in_tmp(void) { return t_files(folder(), 0); }
static void setup(void) { ck_assert_int_eq(mkdir(folder(), 0777), 0); }
static void teardown(void) {
    t_files(folder(), 1);
}
static void assert_same_bytes(const char *a, const char *b) {
    uint8_t *x, *y;
    uint64_t n, m;
    ck_assert_int_eq(q_file_slurp(A, a, 1 << 28, &x, &n), LQ_OK);
    ck_assert_int_eq(q_file_slurp(A, b, 1 << 28, &y, &m), LQ_OK);
    ck_assert_uint_eq(n, m);
    uint64_t same = 0;
    while (same < n && x[same] == y[same]) same++;
    ck_assert_msg(same == n, "%s and %s differ at byte %llu", a, b, (unsigned long long)same);
    q_delete(A, x);
    q_delete(A, y);
}

/* ---- a small model in GGUF, written here */

typedef struct shape {
    uint32_t embd, heads, kv, ff, layers, vocab;
    const q_format *format;    /* of matrices; NULL = f32 */
    const char *odd_tensor;    /* put `odd` at (odd_row, 1) of this tensor */
    uint64_t odd_row;
    float odd;
    bool more_keys;            /* split.*, a quantization version, and keys that nobody knows */
} shape;
static const shape small = {.embd = 256, .heads = 4, .kv = 2, .ff = 512, .layers = 2, .vocab = 300};
static const shape tiny = {.embd = 64, .heads = 2, .kv = 1, .ff = 512, .layers = 2, .vocab = 40};

static q_meta u32(const char *key, uint32_t v) {
    return (q_meta){.key = q_str_of(key), .type = Q_META_U32, .count = 1, .u = v, .i = v, .f = v};
}
static q_meta f32(const char *key, double v) {
    return (q_meta){.key = q_str_of(key), .type = Q_META_F32, .count = 1, .f = v};
}
static q_meta text(const char *key, const char *v) {
    return (q_meta){.key = q_str_of(key), .type = Q_META_STRING, .count = 1, .s = q_str_of(v)};
}

static uint32_t model_keys(const shape *s, q_meta *m) {
    uint32_t n = 0;
    m[n++] = text("general.architecture", "llama");
    m[n++] = text("general.name", "small");
    if (s->more_keys) m[n++] = u32("general.quantization_version", 1);
    m[n++] = u32("llama.context_length", 64);
    m[n++] = u32("llama.embedding_length", s->embd);
    m[n++] = u32("llama.block_count", s->layers);
    m[n++] = u32("llama.feed_forward_length", s->ff);
    m[n++] = u32("llama.attention.head_count", s->heads);
    m[n++] = u32("llama.attention.head_count_kv", s->kv);
    m[n++] = f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    m[n++] = u32("llama.rope.dimension_count", s->embd / s->heads);
    m[n++] = u32("general.file_type", 0);
    m[n++] = u32("llama.vocab_size", s->vocab);
    if (s->more_keys) {
        m[n++] = u32("split.count", 1);
        m[n++] = text("private.note", "kept");
    }
    return n;
}

static void add_tensor(q_out_tensor *t, uint32_t *n, char (*names)[64], const char *name, int layer, const q_format *f,
                       uint64_t k, uint64_t rows) {
    if (layer < 0) snprintf(names[*n], 64, "%s.weight", name);
    else snprintf(names[*n], 64, "blk.%d.%s.weight", layer, name);
    t[*n] = (q_out_tensor){.name = q_str_of(names[*n]), .format = rows ? f : q_format_find("f32"),
                           .rank = rows ? 2 : 1, .shape = {k, rows ? rows : 1, 1, 1, 1, 1, 1, 1}};
    ++*n;
}

static void make_model(const char *path, const shape *s) {
    q_meta meta[32];
    static q_out_tensor t[128];
    static char names[128][64];
    uint32_t n = 0;
    const q_format *f = s->format ? s->format : q_format_find("f32");
    const uint64_t e = s->embd, kv = s->embd / s->heads * s->kv;
    add_tensor(t, &n, names, "token_embd", -1, f, e, s->vocab);
    for (int l = 0; l < (int)s->layers; l++) {
        add_tensor(t, &n, names, "attn_norm", l, f, e, 0);
        add_tensor(t, &n, names, "attn_q", l, f, e, e);
        add_tensor(t, &n, names, "attn_k", l, f, e, kv);
        add_tensor(t, &n, names, "attn_v", l, f, e, kv);
        add_tensor(t, &n, names, "attn_output", l, f, e, e);
        add_tensor(t, &n, names, "ffn_norm", l, f, e, 0);
        add_tensor(t, &n, names, "ffn_gate", l, f, e, s->ff);
        add_tensor(t, &n, names, "ffn_up", l, f, e, s->ff);
        add_tensor(t, &n, names, "ffn_down", l, f, s->ff, e);
    }
    add_tensor(t, &n, names, "output_norm", -1, f, e, 0);
    add_tensor(t, &n, names, "output", -1, f, e, s->vocab);

    q_writer *w;
    ck_assert_msg(q_writer_gguf.open(A, path, true, meta, model_keys(s, meta), t, n, &w) == LQ_OK, "%s",
                  lq_error_detail());
    uint64_t seed = 5;
    for (uint32_t i = 0; i < n; i++) {
        const uint64_t k = t[i].shape[0];
        uint64_t row_bytes;
        ck_assert(q_row_bytes(t[i].format, k, &row_bytes));
        float *x = malloc(k * sizeof *x);
        uint8_t *row = malloc(row_bytes);
        for (uint64_t r = 0; r < t[i].shape[1]; r++) {
            for (uint64_t j = 0; j < k; j++) x[j] = t_normal(&seed) * 0.05f + (t[i].rank == 1 ? 1.0f : 0.0f);
            if (s->odd_tensor && q_str_is(t[i].name, s->odd_tensor) && r == s->odd_row) x[1] = s->odd;
            q_encode_row(t[i].format, x, NULL, false, (int64_t)k, row);
            ck_assert_int_eq(q_writer_gguf.write(w, row, row_bytes), LQ_OK);
        }
        free(x);
        free(row);
    }
    ck_assert_msg(q_writer_gguf.commit(w, NULL) == LQ_OK, "%s", lq_error_detail());
}

/* ---- running it, with what the callbacks saw */

typedef struct seen {
    uint32_t calls, reports, cancel_at; /* cancel at this call of progress; 0 = never */
    uint64_t done, total, weights, bytes;
    double worst;
    char worst_name[64], last_wanted[16], last_to[16];
    uint32_t quantized;
} seen;
static int on_progress(void *user, uint64_t done, uint64_t total, const char *what) {
    seen *s = user;
    ck_assert_uint_ge(done, s->done);
    ck_assert_uint_le(done, total);
    ck_assert_ptr_nonnull(what);
    s->done = done;
    s->total = total;
    return ++s->calls == s->cancel_at;
}
static void on_report(void *user, const lq_tensor_report *t) {
    seen *s = user;
    s->reports++;
    s->weights += t->weights;
    s->bytes += t->bytes;
    if (strcmp(t->to, t->wanted) != 0) {
        snprintf(s->last_wanted, sizeof s->last_wanted, "%s", t->wanted);
        snprintf(s->last_to, sizeof s->last_to, "%s", t->to);
    }
    if (strcmp(t->from, t->to) == 0) ck_assert_double_eq(t->rel_error, 0);
    ck_assert_double_eq_tol(t->bits_per_weight, 8.0 * (double)t->bytes / (double)t->weights, 1e-9);
    ck_assert_int_eq(t->quantizer[0] == 0, strcmp(t->from, t->to) == 0);
    if (!t->importance) ck_assert_double_eq(t->weighted_error, t->rel_error);
    if (t->rel_error > s->worst) {
        s->worst = t->rel_error;
        snprintf(s->worst_name, sizeof s->worst_name, "%s", t->name);
    }
}
static lq_quantize_options options_of(const char *scheme, seen *s) {
    return (lq_quantize_options){.size = sizeof(lq_quantize_options), .scheme = scheme, .threads = 2,
                                 .progress = on_progress, .report = on_report, .user = s};
}
static lq_status quantize(const char *src, const char *dst, const char *scheme) {
    seen s = {0};
    const lq_quantize_options o = options_of(scheme, &s);
    return q_quantize(A, NULL, 1, src, dst, &o, NULL);
}
#define OK(expr) ck_assert_msg((expr) == LQ_OK, "%s", lq_error_detail())
#define REFUSED(expr, code, ...)                                                                      \
    do {                                                                                              \
        ck_assert_int_eq((expr), (code));                                                             \
        const char *says_[] = {__VA_ARGS__};                                                          \
        for (size_t i_ = 0; i_ < Q_COUNT(says_); i_++)                                                \
            ck_assert_msg(strstr(lq_error_detail(), says_[i_]) != NULL, "'%s' does not say '%s'",     \
                          lq_error_detail(), says_[i_]);                                              \
    } while (0)

typedef struct model {
    q_directory *dir;
    q_binding *b;
} model;
static model open_model(const char *path) {
    model m;
    const q_load_options o = {.alloc = A, .map = true};
    OK(q_directory_open(path, &o, &m.dir));
    OK(q_bind(A, NULL, m.dir, &m.b));
    return m;
}
static void close_model(model *m) {
    q_binding_close(m->b);
    q_directory_close(m->dir);
}
static const q_bind_item *item_named(const model *m, q_str name) {
    for (uint32_t i = 0; i < m->b->n_items; i++)
        if (q_str_eq(m->b->items[i].name, name)) return &m->b->items[i];
    return NULL;
}
/* ||a - b|| / ||a|| over one tensor of two models. */
static double distance(const model *a, const q_bind_item *x, const model *b, const q_bind_item *y) {
    const uint64_t n = x->src->shape[0];
    float *p = malloc(n * sizeof *p), *q = malloc(n * sizeof *q);
    double e = 0, norm = 0;
    for (uint64_t r = 0; r < x->src->rows; r++) {
        OK(q_bind_read(A, a->b, x, r, 1, p));
        OK(q_bind_read(A, b->b, y, r, 1, q));
        for (uint64_t j = 0; j < n; j++) {
            e += ((double)p[j] - q[j]) * ((double)p[j] - q[j]);
            norm += (double)p[j] * p[j];
        }
    }
    free(p);
    free(q);
    return sqrt(e / norm);
}

/* ---- what the file holds */

START_TEST(f16_of_a_directory_is_the_directory) {
    if (T_TSAN) T_SKIP("the bundled model takes minutes under ThreadSanitizer");
    const char *dst = in_tmp(0, "f16.gguf");
    seen s = {0};
    const lq_quantize_options o = options_of("f16", &s);
    lq_quantize_result r = {.size = sizeof r};
    OK(q_quantize(A, NULL, 1, pocket(), dst, &o, &r));
    model a = open_model(pocket()), b = open_model(dst);
    ck_assert_uint_eq(a.b->n_items, b.b->n_items);
    for (uint32_t i = 0; i < a.b->n_items; i++) {
        const q_bind_item *x = &a.b->items[i], *y = item_named(&b, x->name);
        ck_assert_msg(y && distance(&a, x, &b, y) == 0, "%.*s", Q_STR_ARG(x->name));
        ck_assert_str_eq(y->src->format->name, y->src->rank == 1 ? "f32" : "f16");
    }
    ck_assert_int_eq((int)q_directory_meta(b.dir, "general.file_type")->u, 1);
    ck_assert_ptr_null(q_directory_meta(b.dir, "general.quantization_version"));
    ck_assert(q_str_is(q_directory_meta(b.dir, "general.name")->s, "pocket"));
    ck_assert_uint_eq(q_directory_meta(b.dir, "tokenizer.ggml.tokens")->count, 4096);
    ck_assert_uint_eq(r.bytes, size_of(dst));
    ck_assert_uint_eq(r.tensors, s.reports);
    ck_assert_uint_eq(r.weights, s.weights);
    ck_assert_uint_eq(s.done, r.weights);
    ck_assert_uint_eq(s.total, r.weights);
    ck_assert_double_eq_tol(r.bits_per_weight, 8.0 * (double)s.bytes / (double)s.weights, 1e-9);
    close_model(&a);
    close_model(&b);
}
END_TEST

START_TEST(q8_0_stays_close_and_says_how_close) {
    if (T_TSAN) T_SKIP("the bundled model takes minutes under ThreadSanitizer");
    const char *dst = in_tmp(0, "q8.gguf");
    seen s = {0};
    const lq_quantize_options o = options_of("q8_0", &s);
    OK(q_quantize(A, NULL, 1, pocket(), dst, &o, NULL));
    ck_assert_double_lt(s.worst, 0.012);
    ck_assert_double_gt(s.worst, 0.001);
    model a = open_model(pocket()), b = open_model(dst);
    const q_bind_item *x = item_named(&a, q_str_of(s.worst_name)), *y = item_named(&b, q_str_of(s.worst_name));
    ck_assert_double_eq_tol(distance(&a, x, &b, y), s.worst, 1e-9);
    const q_meta *last = &b.dir->meta[b.dir->n_meta - 1];
    ck_assert(q_str_is(last->key, "general.quantization_version") && last->u == 2 && last->type == Q_META_U32);
    ck_assert_int_eq((int)q_directory_meta(b.dir, "general.file_type")->u, 7);
    close_model(&a);
    close_model(&b);
}
END_TEST

START_TEST(threads_do_not_change_a_byte) {
    /* A search over small tensors, and tensors of more than one piece. */
    static const struct {
        uint32_t vocab;
        const char *scheme;
    } cases[] = {{300, "q4_k_m"}, {4500, "f16"}};
    shape s = small;
    s.vocab = cases[_i].vocab;
    const char *src = in_tmp(0, "src.gguf"), *one = in_tmp(1, "one.gguf"), *more = in_tmp(2, "more.gguf");
    make_model(src, &s);
    seen first = {0};
    for (uint32_t threads = 1; threads <= 3; threads++) {
        seen v = {0};
        lq_quantize_options o = options_of(cases[_i].scheme, &v);
        o.threads = threads;
        o.force = 1;
        OK(q_quantize(A, NULL, 1, src, threads == 1 ? one : more, &o, NULL));
        if (threads == 1) first = v;
        else assert_same_bytes(one, more);
        ck_assert(v.worst == first.worst); /* the figures as well, to the bit */
    }
    model a = open_model(src), b = open_model(one);
    ck_assert_double_lt(distance(&a, &a.b->items[0], &b, &b.b->items[0]), 0.2);
    close_model(&a);
    close_model(&b);
}
END_TEST

START_TEST(a_gguf_source_gives_the_same_file) {
    if (T_TSAN) T_SKIP("the bundled model takes minutes under ThreadSanitizer");
    const char *f16 = in_tmp(0, "f16.gguf"), *direct = in_tmp(1, "direct.gguf"), *via = in_tmp(2, "via.gguf");
    OK(quantize(pocket(), f16, "f16"));
    OK(quantize(pocket(), direct, "q8_0"));
    OK(quantize(f16, via, "q8_0"));
    assert_same_bytes(direct, via);
}
END_TEST

START_TEST(keys_pass_through_but_for_those_of_the_file) {
    shape s = small;
    s.more_keys = true;
    const char *src = in_tmp(0, "src.gguf"), *q8 = in_tmp(1, "q8.gguf"), *back = in_tmp(2, "back.gguf");
    make_model(src, &s);
    OK(quantize(src, q8, "q8_0"));
    model m = open_model(q8);
    ck_assert(q_str_is(q_directory_meta(m.dir, "private.note")->s, "kept"));
    ck_assert(q_str_is(q_directory_meta(m.dir, "general.name")->s, "small"));
    ck_assert_ptr_null(q_directory_meta(m.dir, "split.count"));
    ck_assert_int_eq((int)q_directory_meta(m.dir, "general.quantization_version")->u, 2);
    ck_assert_int_eq((int)q_directory_meta(m.dir, "general.file_type")->u, 7);
    close_model(&m);

    /* Back to floats: no block formats, so no version of them; a bare format has no file type to claim. */
    seen v = {0};
    lq_quantize_options o = options_of("f16", &v);
    o.requantize = 1;
    OK(q_quantize(A, NULL, 1, q8, back, &o, NULL));
    m = open_model(back);
    ck_assert_ptr_null(q_directory_meta(m.dir, "general.quantization_version"));
    ck_assert_int_eq((int)q_directory_meta(m.dir, "general.file_type")->u, 1);
    close_model(&m);
    o.force = 1;
    o.scheme = "q3_k";
    memset(&v, 0, sizeof v);
    OK(q_quantize(A, NULL, 1, q8, back, &o, NULL));
    m = open_model(back);
    ck_assert_ptr_null(q_directory_meta(m.dir, "general.file_type"));
    ck_assert_str_eq(item_named(&m, q_str_of("output.weight"))->src->format->name, "q3_k");
    close_model(&m);
}
END_TEST

static void count_warning(void *user, lq_log_level level, const char *message) {
    if (level == LQ_LOG_WARN && strstr(message, "do not fill")) ++*(int *)user;
}

START_TEST(ragged_rows_fall_back_with_a_warning) {
    const shape s = {.embd = 96, .heads = 3, .kv = 1, .ff = 160, .layers = 1, .vocab = 40};
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &s);
    seen v = {0};
    int warnings = 0;
    const q_log log = {count_warning, &warnings};
    const lq_quantize_options o = options_of("q4_k", &v);
    lq_quantize_result r = {.size = sizeof r};
    OK(q_quantize(A, &log, 1, src, dst, &o, &r));
    ck_assert_uint_eq(r.fallbacks, 9); /* every matrix */
    ck_assert_int_eq(warnings, 9);
    ck_assert_str_eq(v.last_wanted, "q4_k");
    model m = open_model(dst);
    ck_assert_str_eq(item_named(&m, q_str_of("output.weight"))->src->format->name, v.last_to);
    ck_assert_int_eq(q_format_find(v.last_to)->weights, 32);
    ck_assert_double_lt(v.worst, 0.1);
    close_model(&m);
}
END_TEST

START_TEST(the_same_format_is_copied) {
    shape s = small;
    s.format = q_format_find("f16");
    s.vocab = 4500; /* more than one piece */
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &s);
    seen v = {0};
    const lq_quantize_options o = options_of("f16", &v);
    OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
    ck_assert_double_eq(v.worst, 0);
    model a = open_model(src), b = open_model(dst);
    for (uint32_t i = 0; i < a.b->n_items; i++)
        ck_assert_int_eq(memcmp(a.b->items[i].src->data, b.b->items[i].src->data, a.b->items[i].src->bytes), 0);
    close_model(&a);
    close_model(&b);
}
END_TEST

/* ---- importance */

static const char ffn_down[] = "blk.0.ffn_down.weight", ffn_up[] = "blk.1.ffn_up.weight";

/* An importance file with these entries: every eighth input matters a thousand times as much as the others. */
typedef struct statistics {
    const char *name;
    uint64_t k;
    float count;
} statistics;

static void write_importance(const char *path, const statistics *list, uint32_t n) {
    q_out_tensor t[16];
    char names[16][64];
    q_meta meta[3] = {text("general.type", "imatrix"), u32("imatrix.chunk_count", 9), text("imatrix.datasets", "")};
    const q_str set = q_str_of("text.txt");
    meta[2] = (q_meta){.key = meta[2].key, .type = Q_META_ARRAY, .item = Q_META_STRING, .count = 1, .strs = &set};
    for (uint32_t i = 0; i < 2 * n; i++) {
        snprintf(names[i], sizeof names[i], "%s%s", list[i / 2].name, i % 2 ? ".counts" : ".in_sum2");
        t[i] = (q_out_tensor){.name = q_str_of(names[i]), .format = q_format_find("f32"), .rank = 1,
                              .shape = {i % 2 ? 1 : list[i / 2].k, 1, 1, 1, 1, 1, 1, 1}};
    }
    q_writer *w;
    OK(q_writer_gguf.open(A, path, true, meta, 3, t, 2 * n, &w));
    for (uint32_t i = 0; i < n; i++) {
        for (uint64_t j = 0; j < list[i].k; j++)
            OK(q_writer_gguf.write(w, &(float){j % 8 ? 1.0f : 1000.0f}, sizeof(float)));
        OK(q_writer_gguf.write(w, &list[i].count, sizeof(float)));
    }
    OK(q_writer_gguf.commit(w, NULL));
}

/* Squared error of the inputs that matter, and of the others. */
static void errors_of(const model *a, const model *b, const char *name, double *matter, double *others) {
    const q_bind_item *x = item_named(a, q_str_of(name)), *y = item_named(b, q_str_of(name));
    const uint64_t n = x->src->shape[0];
    float *p = malloc(n * sizeof *p), *q = malloc(n * sizeof *q);
    *matter = *others = 0;
    for (uint64_t r = 0; r < x->src->rows; r++) {
        OK(q_bind_read(A, a->b, x, r, 1, p));
        OK(q_bind_read(A, b->b, y, r, 1, q));
        for (uint64_t j = 0; j < n; j++) *(j % 8 ? others : matter) += ((double)p[j] - q[j]) * ((double)p[j] - q[j]);
    }
    free(p);
    free(q);
}

typedef struct weighted {
    uint32_t n;
    char names[8][64];
} weighted;
static void on_weighted(void *user, const lq_tensor_report *t) {
    weighted *w = user;
    if (!t->importance) return;
    snprintf(w->names[w->n++], sizeof w->names[0], "%s", t->name);
    ck_assert_str_eq(t->quantizer, "search");
    /* The inputs that count most have the smallest errors. */
    ck_assert_msg(t->weighted_error > 0 && t->weighted_error < t->rel_error, "%s: %g weighted, %g plain", t->name,
                  t->weighted_error, t->rel_error);
}

START_TEST(importance_moves_errors_to_inputs_that_matter_less) {
    if (T_TSAN && _i > 0) T_SKIP("one format under ThreadSanitizer, not number %d", _i);
    static const char *const schemes[] = {"q4_0", "q4_1", "q4_k", "q3_k", "q2_k", "iq4_nl", "iq4_xs", "q5_0", "q6_k"};
    const char *src = in_tmp(0, "src.gguf"), *plain = in_tmp(1, "plain.gguf"), *by = in_tmp(2, "by.gguf"),
               *stats = in_tmp(3, "stats.gguf");
    make_model(src, &small);
    write_importance(stats, (const statistics[]){{ffn_down, 512, 3}, {ffn_up, 256, 3}}, 2);
    weighted w = {0};
    lq_quantize_options o = {.size = sizeof o, .scheme = schemes[_i], .threads = 2, .report = on_weighted, .user = &w};
    lq_quantize_result r = {.size = sizeof r};
    OK(q_quantize(A, NULL, 2, src, plain, &o, &r));
    ck_assert_uint_eq(w.n, 0);
    ck_assert_uint_eq(r.with_importance + r.without_importance, 0);
    o.importance = stats;
    OK(q_quantize(A, NULL, 2, src, by, &o, &r));
    ck_assert_uint_eq(w.n, 2);
    ck_assert_str_eq(w.names[0], ffn_down);
    ck_assert_str_eq(w.names[1], ffn_up);
    ck_assert_uint_eq(r.with_importance, 2);
    ck_assert_uint_eq(r.without_importance, 14); /* the other matrices */
    model a = open_model(src), p = open_model(plain), q = open_model(by);
    for (int i = 0; i < 2; i++) {
        double matter, others, matter_by, others_by;
        errors_of(&a, &p, w.names[i], &matter, &others);
        errors_of(&a, &q, w.names[i], &matter_by, &others_by);
        ck_assert_msg(matter_by < 0.9 * matter, "%s, %s: %g with importance, %g without", schemes[_i], w.names[i],
                      matter_by, matter);
        ck_assert_double_gt(others_by, others);
    }
    for (uint32_t i = 0; i < p.b->n_items; i++) { /* tensors without an entry: not a bit differs */
        const q_bind_item *x = &p.b->items[i], *y = item_named(&q, x->name);
        const bool same = memcmp(x->src->data, y->src->data, x->src->bytes) == 0;
        ck_assert_int_eq(same, !q_str_is(x->name, ffn_down) && !q_str_is(x->name, ffn_up));
    }
    close_model(&a);
    close_model(&p);
    close_model(&q);
}
END_TEST

static void write_text(const char *path, const char *text) {
    FILE *f = fopen(path, "w");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    ck_assert_int_eq(fclose(f), 0);
}

static void note_quantizers(void *user, const lq_tensor_report *t) {
    char *text = user;
    if (strstr(t->name, "ffn_up") || strstr(t->name, "ffn_down") || strstr(t->name, "token_embd"))
        snprintf(text + strlen(text), 400 - strlen(text), "%s %s:%s\n", t->name, t->to, t->quantizer);
}

START_TEST(a_recipe_file_chooses_per_tensor) {
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf"), *recipe = in_tmp(2, "recipe.txt");
    make_model(src, &tiny);
    write_text(recipe, "# mine\nffn_up q8_0:rtn\nblk.*.ffn_down.* q4_0\n* f16\n");
    char seen_[400] = "";
    lq_quantize_options o = {.size = sizeof o, .recipe = recipe, .threads = 2, .report = note_quantizers, .user = seen_};
    OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
    ck_assert_str_eq(seen_, "token_embd.weight f16:rtn\n"
                            "blk.0.ffn_up.weight q8_0:rtn\nblk.0.ffn_down.weight q4_0:search\n"
                            "blk.1.ffn_up.weight q8_0:rtn\nblk.1.ffn_down.weight q4_0:search\n");
    o.force = 1;
    o.scheme = "q4_0";
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_ARG, "either");
    o.scheme = NULL;
    write_text(recipe, "ffn_up q8_0\n* q9_0\n");
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_FORMAT, recipe, "line 2", "q9_0");
    write_text(recipe, "* q4_0\n");
    REFUSED(q_quantize(A, NULL, 1, src, recipe, &o, NULL), LQ_E_ARG, recipe, "input");
    o.recipe = "/none";
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_IO, "/none");
    o.recipe = NULL;
    o.scheme = "q4_0+imatrix";
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_ARG, "q4_0+imatrix", "lq calibrate");
}
END_TEST

START_TEST(importance_is_recorded_and_may_change_formats) {
    shape s = tiny;
    s.layers = 8; /* layer 0 is below n/8 */
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf"), *stats = in_tmp(2, "stats.gguf");
    make_model(src, &s);
    write_importance(stats, (const statistics[]){{ffn_down, 512, 3}}, 1);
    lq_quantize_options o = {.size = sizeof o, .scheme = "iq4_nl", .threads = 2};
    OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
    model m = open_model(dst);
    ck_assert_str_eq(item_named(&m, q_str_of(ffn_down))->src->format->name, "q5_k");
    ck_assert_ptr_null(q_directory_meta(m.dir, "quantize.imatrix.file"));
    close_model(&m);
    o.importance = stats;
    o.force = 1;
    OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
    m = open_model(dst);
    ck_assert_str_eq(item_named(&m, q_str_of(ffn_down))->src->format->name, "iq4_nl");
    ck_assert(q_str_is(q_directory_meta(m.dir, "quantize.imatrix.file")->s, "stats.gguf"));
    ck_assert(q_str_is(q_directory_meta(m.dir, "quantize.imatrix.dataset")->s, "text.txt"));
    ck_assert_uint_eq(q_directory_meta(m.dir, "quantize.imatrix.entries_count")->u, 1);
    ck_assert_uint_eq(q_directory_meta(m.dir, "quantize.imatrix.chunks_count")->u, 9);
    close_model(&m);
    /* The next file is not made with it. */
    const char *next = in_tmp(3, "next.gguf");
    o = (lq_quantize_options){.size = sizeof o, .scheme = "q8_0", .requantize = 1};
    OK(q_quantize(A, NULL, 1, dst, next, &o, NULL));
    m = open_model(next);
    ck_assert_ptr_null(q_directory_meta(m.dir, "quantize.imatrix.file"));
    close_model(&m);
}
END_TEST

START_TEST(importance_has_nothing_to_say_of_floats) {
    const char *src = in_tmp(0, "src.gguf"), *plain = in_tmp(1, "plain.gguf"), *by = in_tmp(2, "by.gguf"),
               *stats = in_tmp(3, "stats.gguf");
    make_model(src, &tiny);
    write_importance(stats, (const statistics[]){{ffn_down, 512, 3}}, 1);
    OK(quantize(src, plain, "f16"));
    lq_quantize_options o = {.size = sizeof o, .scheme = "f16", .importance = stats};
    lq_quantize_result r = {.size = sizeof r};
    OK(q_quantize(A, NULL, 1, src, by, &o, &r));
    ck_assert_uint_eq(r.with_importance + r.without_importance, 0);
    assert_same_bytes(plain, by);
}
END_TEST

static void count_importance(void *user, lq_log_level level, const char *message) {
    if (level == LQ_LOG_WARN && strstr(message, "blk.7.ffn_up.weight")) ++*(int *)user;
}

START_TEST(importance_files_that_do_not_fit) {
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf"), *stats = in_tmp(2, "stats.gguf");
    make_model(src, &small);
    lq_quantize_options o = {.size = sizeof o, .scheme = "q4_0", .importance = stats};
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_IO, stats);
    write_importance(stats, (const statistics[]){{ffn_down, 256, 3}}, 1);
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_INCONSISTENT, stats, ffn_down, "256", "512");
    write_importance(stats, (const statistics[]){{"blk.7.ffn_up.weight", 256, 3}, {"x", 1, 3}}, 2);
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_INCONSISTENT, stats, src, "blk.7.ffn_up.weight", "2 entries");
    o.force = 1;
    REFUSED(q_quantize(A, NULL, 1, src, stats, &o, NULL), LQ_E_ARG, stats, "input");
    o.importance = src;
    REFUSED(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_UNSUPPORTED, src, "general.type");
    ck_assert_int_eq(files_in_tmp(), 2);
    /* One entry of another model, and one that no token reached: reported, and the rest goes on. */
    write_importance(stats, (const statistics[]){{"blk.7.ffn_up.weight", 256, 3}, {ffn_up, 256, 0}, {ffn_down, 512, 1}}, 3);
    int warnings = 0;
    const q_log log = {count_importance, &warnings};
    lq_quantize_result r = {.size = sizeof r};
    o.importance = stats;
    OK(q_quantize(A, &log, 1, src, dst, &o, &r));
    ck_assert_int_eq(warnings, 1);
    ck_assert_uint_eq(r.with_importance, 1);
    ck_assert_uint_eq(r.without_importance, 15);
}
END_TEST

/* ---- what is refused */

START_TEST(output_that_is_an_input) {
    const char *src = in_tmp(0, "src.gguf"), *soft = in_tmp(1, "soft.gguf"), *hard = in_tmp(2, "hard.gguf");
    make_model(src, &tiny);
    const uint64_t n = size_of(src);
    ck_assert_int_eq(symlink(src, soft), 0);
    ck_assert_int_eq(link(src, hard), 0);
    const char *const names[] = {src, soft, hard};
    for (size_t i = 0; i < Q_COUNT(names); i++) {
        seen v = {0};
        lq_quantize_options o = options_of("q8_0", &v);
        o.force = 1;
        REFUSED(q_quantize(A, NULL, 1, src, names[i], &o, NULL), LQ_E_ARG, names[i], "input");
        ck_assert_uint_eq(v.calls, 0);
    }
    ck_assert_uint_eq(size_of(src), n);
    /* A directory, its weights, and what stands beside them. */
    const char *const side[] = {".", "model.safetensors", "config.json", "tokenizer.model"};
    for (size_t i = 0; i < Q_COUNT(side); i++) {
        char path[1200];
        seen v = {0};
        lq_quantize_options o = options_of("q8_0", &v);
        o.force = 1;
        o.dry_run = 1; /* should the check fail, the tree stays whole */
        REFUSED(q_quantize(A, NULL, 1, pocket(), t_path(path, sizeof path, pocket(), side[i]), &o, NULL), LQ_E_ARG,
                side[i], "input");
    }
}
END_TEST

START_TEST(an_existing_output_needs_force) {
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &tiny);
    FILE *f = fopen(dst, "w");
    fputs("mine", f);
    fclose(f);
    REFUSED(quantize(src, dst, "q8_0"), LQ_E_ARG, dst, "exists", "force");
    ck_assert_uint_eq(size_of(dst), 4);
    seen v = {0};
    lq_quantize_options o = options_of("q8_0", &v);
    o.force = 1;
    OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
    ck_assert_uint_gt(size_of(dst), 4);
}
END_TEST

START_TEST(a_quantized_source_needs_requantize) {
    shape s = tiny;
    s.format = q_format_find("q8_0");
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &s);
    REFUSED(quantize(src, dst, "q4_0"), LQ_E_ARG, src, "already quantized", "requantize", "q8_0");
    ck_assert(!exists(dst));
    seen v = {0};
    lq_quantize_options o = options_of("q4_0", &v);
    o.requantize = 1;
    OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
}
END_TEST

START_TEST(arguments) {
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &tiny);
    REFUSED(quantize(src, dst, "q4_x"), LQ_E_ARG, "q4_x", "q4_k_m");
    REFUSED(quantize(src, dst, NULL), LQ_E_ARG, "scheme");
    REFUSED(quantize(src, dst, "nf4_dq"), LQ_E_UNSUPPORTED, "nf4", "token_embd.weight");
    REFUSED(quantize(src, NULL, "q8_0"), LQ_E_ARG, "destination");
    REFUSED(quantize(src, in_tmp(2, "absent/dst.gguf"), "q8_0"), LQ_E_IO, "absent");
    REFUSED(quantize(in_tmp(2, "absent.gguf"), dst, "q8_0"), LQ_E_IO, "absent.gguf");
    ck_assert_int_eq(files_in_tmp(), 1);
}
END_TEST

START_TEST(weights_that_are_no_numbers) {
    static const float odd[] = {NAN, INFINITY};
    static const char *const schemes[] = {"q4_0", "f32" /* a copy is checked as well */};
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    for (size_t i = 0; i < 2; i++)
        for (size_t j = 0; j < 2; j++) {
            shape s = tiny;
            s.odd_tensor = "blk.1.ffn_up.weight";
            s.odd_row = 300;
            s.odd = odd[i];
            make_model(src, &s);
            REFUSED(quantize(src, dst, schemes[j]), LQ_E_INCONSISTENT, "blk.1.ffn_up.weight", "row 300", "column 1",
                    "not finite");
            ck_assert_int_eq(files_in_tmp(), 1);
        }
}
END_TEST

START_TEST(weights_too_large_for_the_format) {
    shape s = tiny;
    s.odd_tensor = "output.weight";
    s.odd_row = 7;
    s.odd = 1e9f;
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &s);
    REFUSED(quantize(src, dst, "f16"), LQ_E_NUMERIC, "output.weight", "row 7", "1e+09", "f16");
    ck_assert_int_eq(files_in_tmp(), 1);
    OK(quantize(src, dst, "bf16"));
}
END_TEST

/* ---- what is left behind */

START_TEST(cancelling_leaves_nothing) {
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &tiny);
    seen all = {0};
    lq_quantize_options o = options_of("q8_0", &all);
    OK(q_quantize(A, NULL, 1, src, dst, &o, NULL));
    const uint32_t calls = all.calls;
    const uint64_t n = size_of(dst);
    ck_assert_uint_ge(calls, 10);
    unlink(dst);
    for (uint32_t at = 1; at <= calls; at += at < calls - 3 ? 3 : 1) {
        seen v = {.cancel_at = at};
        o.user = &v;
        lq_quantize_result r = {.size = 77};
        ck_assert_int_eq(q_quantize(A, NULL, 1, src, dst, &o, &r), LQ_E_CANCELLED);
        ck_assert_uint_eq(v.calls, at);
        ck_assert_uint_eq(r.size, 77);
        ck_assert_uint_eq(r.weights, 0);
        ck_assert_int_eq(files_in_tmp(), 1);
    }
    /* What was there stays. */
    OK(quantize(src, dst, "q8_0"));
    seen v = {.cancel_at = 5};
    o = options_of("q4_0", &v);
    o.force = 1;
    ck_assert_int_eq(q_quantize(A, NULL, 1, src, dst, &o, NULL), LQ_E_CANCELLED);
    ck_assert_uint_eq(size_of(dst), n);
}
END_TEST

START_TEST(a_dry_run_writes_nothing) {
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &small);
    seen dry = {0}, wet = {0};
    lq_quantize_options o = options_of("q4_k_m", &dry);
    lq_quantize_result a = {.size = sizeof a}, b = {.size = sizeof b};
    o.dry_run = 1;
    OK(q_quantize(A, NULL, 1, src, dst, &o, &a));
    OK(q_quantize(A, NULL, 1, src, NULL, &o, &a));
    ck_assert_int_eq(files_in_tmp(), 1);
    o.dry_run = 0;
    o.user = &wet;
    OK(q_quantize(A, NULL, 1, src, dst, &o, &b));
    ck_assert_uint_eq(a.bytes, size_of(dst));
    ck_assert_uint_eq(dry.bytes, 2 * wet.bytes);
    ck_assert_uint_eq(dry.reports, 2 * wet.reports);
    ck_assert_uint_eq(a.tensors, b.tensors);
    ck_assert_double_eq(a.bits_per_weight, b.bits_per_weight);
}
END_TEST

/* An allocator whose k-th call fails, and that counts what is alive. */
typedef struct faulty {
    long calls, fail_at, alive;
} faulty;
static void *faulty_alloc(void *user, size_t bytes, size_t align) {
    faulty *f = user;
    if (++f->calls == f->fail_at) return NULL;
    void *p = NULL;
    if (posix_memalign(&p, align, bytes) != 0) return NULL;
    f->alive++;
    return p;
}
static void faulty_free(void *user, void *p, size_t bytes) {
    Q_UNUSED(bytes);
    ((faulty *)user)->alive--;
    free(p);
}

START_TEST(no_memory_at_any_moment) {
    const shape s = {.embd = 64, .heads = 2, .kv = 1, .ff = 64, .layers = 1, .vocab = 8};
    const char *src = in_tmp(0, "src.gguf"), *dst = in_tmp(1, "dst.gguf");
    make_model(src, &s);
    faulty f = {0};
    const q_alloc hook = {faulty_alloc, faulty_free, &f};
    lq_quantize_options o = {.size = sizeof o, .scheme = "q4_k_m", .threads = 1, .importance = in_tmp(2, "stats.gguf")};
    write_importance(paths[2], (const statistics[]){{ffn_down, 64, 3}}, 1);
    lq_status st;
    long k = 0;
    do {
        f = (faulty){.fail_at = ++k};
        st = q_quantize(&hook, NULL, 1, src, dst, &o, NULL);
        ck_assert_msg(st == LQ_OK || st == LQ_E_NOMEM, "allocation %ld: %d %s", k, (int)st, lq_error_detail());
        ck_assert_msg(f.alive == 0, "allocation %ld: %ld blocks leak", k, f.alive);
        ck_assert_int_eq(files_in_tmp(), st == LQ_OK ? 3 : 2);
    } while (st != LQ_OK && k < 10000);
    OK(st);
    ck_assert_int_gt(k, 20);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("quantize");
    TCase *c = tcase_create("quantize");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, f16_of_a_directory_is_the_directory);
    tcase_add_test(c, q8_0_stays_close_and_says_how_close);
    tcase_add_loop_test(c, threads_do_not_change_a_byte, 0, 2);
    tcase_add_test(c, a_gguf_source_gives_the_same_file);
    tcase_add_test(c, keys_pass_through_but_for_those_of_the_file);
    tcase_add_test(c, ragged_rows_fall_back_with_a_warning);
    tcase_add_test(c, the_same_format_is_copied);
    tcase_add_loop_test(c, importance_moves_errors_to_inputs_that_matter_less, 0, 9);
    tcase_add_test(c, a_recipe_file_chooses_per_tensor);
    tcase_add_test(c, a_recipe_file_chooses_per_tensor);
    tcase_add_test(c, importance_is_recorded_and_may_change_formats);
    tcase_add_test(c, importance_has_nothing_to_say_of_floats);
    tcase_add_test(c, importance_files_that_do_not_fit);
    tcase_add_test(c, output_that_is_an_input);
    tcase_add_test(c, an_existing_output_needs_force);
    tcase_add_test(c, a_quantized_source_needs_requantize);
    tcase_add_test(c, arguments);
    tcase_add_test(c, weights_that_are_no_numbers);
    tcase_add_test(c, weights_too_large_for_the_format);
    tcase_add_test(c, cancelling_leaves_nothing);
    tcase_add_test(c, a_dry_run_writes_nothing);
    tcase_add_test(c, no_memory_at_any_moment);
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
