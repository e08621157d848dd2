/* test_hf_write.c: Hugging Face directories as output: what is in them, byte for byte; what is refused; that whatever goes wrong,
 * under the final name is what was there before or the complete directory. */
#include "harness.h"

#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../libquant/method.h"
#include "../libquant/quantize.h"
#include "help_model.h"
#include "help_spawn.h"

static const q_alloc *const A = &q_alloc_libc;

/* ---- folders */

static char base[1024], pocket[1200], hf[1200], out[1200], lq[4200];

static void setup(void) {
    static tiny t;
    snprintf(base, sizeof base, "%s/hfw-%ld", t_tmp(), (long)getpid());
    t_path(pocket, sizeof pocket, t_root(), "bench/data/pocket");
    t_path(hf, sizeof hf, base, "model");
    t_path(out, sizeof out, base, "out");
    snprintf(lq, sizeof lq, "%s", spawn_built("lq"));
    ck_assert_int_eq(mkdir(base, 0777), 0);
    ck_assert_int_eq(mkdir(hf, 0777), 0);
    tiny_init(&t, "f16");
    tiny_write_hf(&t, hf);
}

static void teardown(void) { t_remove(base); }

static const char *in(const char *dir, const char *name) {
    static char buf[4][2000];
    static int at;
    at = (at + 1) % 4;
    return t_path(buf[at], sizeof buf[at], dir, name);
}
static uint8_t *slurp(const char *path, uint64_t *n) {
    uint8_t *p;
    ck_assert_msg(q_file_slurp(A, path, 1 << 28, &p, n) == LQ_OK, "%s", lq_error_detail());
    return p;
}
static bool same_files(const char *a, const char *b) { return spawn_hash(a) != 0 && spawn_hash(a) == spawn_hash(b); }
static void put_file(const char *path, const char *text) {
    FILE *f = fopen(path, "wb");
    ck_assert_ptr_nonnull(f);
    fputs(text, f);
    fclose(f);
}
/* One hash over the names and bytes of a directory; 0 when it is not there. */
static uint64_t dir_hash(const char *dir) {
    uint64_t h = 0;
    DIR *d = opendir(dir);
    if (!d) return 0;
    for (struct dirent *e; (e = readdir(d)) != NULL;)
        if (e->d_name[0] != '.') h += q_fnv64(e->d_name, strlen(e->d_name)) ^ spawn_hash(in(dir, e->d_name));
        else if (e->d_name[1] && strcmp(e->d_name, "..") != 0) h += 1; /* no hidden file belongs there */
    closedir(d);
    return h | 1;
}

static lq_status quantize(const char *src, const char *dst, const char *scheme, bool force, uint32_t threads) {
    const lq_quantize_options o = {.size = sizeof o, .scheme = scheme, .force = force, .threads = threads};
    return q_quantize(A, NULL, 1, src, dst, &o, NULL);
}
#define DONE(call) ck_assert_msg((call) == LQ_OK, "%s", lq_error_detail())
static void refused(lq_status s, lq_status want, const char *word) {
    ck_assert_msg(s == want, "%d: %s", (int)s, lq_error_detail());
    ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "'%s' is not in: %s", word, lq_error_detail());
}

/* A tensor's bytes as the one file of a directory has them, not as views. */
static uint8_t *bytes_in(const char *dir, const char *name, uint64_t *bytes) {
    uint64_t n;
    json_error_t e;
    uint8_t *file = slurp(in(dir, "model.safetensors"), &n);
    const uint64_t header = q_load64(file);
    json_t *h = json_loadb((char *)file + 8, header, 0, &e), *t = json_object_get(h, name);
    ck_assert_msg(t != NULL, "no tensor %s %s", name, e.text);
    json_t *at = json_object_get(t, "data_offsets");
    const uint64_t begin = (uint64_t)json_integer_value(json_array_get(at, 0)), end = (uint64_t)json_integer_value(json_array_get(at, 1));
    *bytes = end - begin;
    uint8_t *p = malloc(*bytes + 1);
    memcpy(p, file + 8 + header + begin, *bytes);
    json_decref(h);
    q_delete(A, file);
    return p;
}
static const q_tensor *tensor(const q_directory *d, const char *name) {
    const q_tensor *t = q_directory_tensor(d, q_str_of(name));
    ck_assert_msg(t != NULL, "no tensor %s", name);
    return t;
}

/* ---- floats */

START_TEST(floats) {
    DONE(quantize(pocket, in(base, "out/"), "f16", false, 1));
    ck_assert(same_files(in(out, "model.safetensors"), in(pocket, "model.safetensors"))); /* copied: the same file */
    ck_assert(same_files(in(out, "tokenizer.model"), in(pocket, "tokenizer.model")));
    ck_assert(same_files(in(out, "tokenizer_config.json"), in(pocket, "tokenizer_config.json")));
    t_remove(out);
    DONE(quantize(hf, in(base, "out/"), "bf16", false, 1));
    const q_load_options o = {.alloc = A};
    q_directory *d, *src;
    DONE(q_directory_open(out, &o, &d));
    DONE(q_directory_open(hf, &o, &src));
    ck_assert_uint_eq(d->n_tensors, src->n_tensors);
    ck_assert(q_str_is(q_directory_meta(d, "torch_dtype")->s, "bfloat16"));
    for (uint32_t i = 0; i < d->n_tensors; i++) {
        const q_tensor *t = &d->tensors[i], *s = q_directory_tensor(src, t->name);
        ck_assert(s && strcmp(t->format->name, "bf16") == 0 && t->bytes == s->bytes);
        uint16_t *x = malloc(t->bytes), *y = malloc(t->bytes);
        DONE(q_tensor_read(d, t, 0, x, t->bytes));
        DONE(q_tensor_read(src, s, 0, y, s->bytes));
        for (uint64_t j = 0; j < t->bytes / 2; j++) ck_assert_uint_eq(x[j], q_f32_to_bf16(q_half_to_f32(y[j])));
        free(x);
        free(y);
    }
    q_directory_close(d);
    q_directory_close(src);
}
END_TEST

/* ---- schemes: hashes of tensors that bitsandbytes and the formulas give for the same floats (golden/make_hf_second_reader.py) */

START_TEST(schemes_against_goldens) {
    char line[512], scheme[32], name[200], last[32] = "";
    unsigned long long want;
    int n = 0;
    FILE *f = fopen(in(t_root(), "tests/golden/hf_write.txt"), "r");
    ck_assert_ptr_nonnull(f);
    while (fgets(line, sizeof line, f)) {
        if (line[0] == '#' || sscanf(line, "%31s %199s %llx", scheme, name, &want) != 3) continue;
        if (strcmp(scheme, last) != 0) {
            t_remove(out);
            DONE(quantize(pocket, out, scheme, false, 1));
            snprintf(last, sizeof last, "%s", scheme);
        }
        uint64_t bytes;
        uint8_t *p = bytes_in(out, name, &bytes);
        const uint64_t h = q_fnv64(p, bytes);
        ck_assert_msg(h == want, "%s %s: %llx, not %llx", scheme, name, (unsigned long long)h, want);
        free(p);
        n++;
    }
    ck_assert_int_ge(n, 15);
    fclose(f);
}
END_TEST

static json_t *config_of(const char *dir) {
    json_error_t e;
    json_t *c = json_load_file(in(dir, "config.json"), 0, &e);
    ck_assert_msg(c != NULL, "%s", e.text);
    return c;
}
static const char *text_at(json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "(none)";
}

/* config.json is the source's but for what quantization changes. */
START_TEST(configuration) {
    static const struct {
        const char *scheme, *method;
    } rows[] = {{"nf4", "bitsandbytes"}, {"nf4-dq", "bitsandbytes"}, {"int8", "compressed-tensors"}};
    json_t *src = config_of(pocket);
    for (size_t i = 0; i < Q_COUNT(rows); i++) {
        t_remove(out);
        DONE(quantize(pocket, out, rows[i].scheme, false, 1));
        json_t *c = config_of(out), *q = json_object_get(c, "quantization_config");
        ck_assert_str_eq(text_at(q, "quant_method"), rows[i].method);
        ck_assert_str_eq(text_at(c, "torch_dtype"), "float16");
        if (i < 2) ck_assert(json_is_true(json_object_get(q, "bnb_4bit_use_double_quant")) == (i == 1));
        json_object_del(c, "quantization_config");
        ck_assert(json_equal(c, src));
        json_decref(c);
    }
    json_decref(src);
    /* texts stay as they are spelled */
    char text[4096];
    uint64_t n;
    t_remove(out);
    uint8_t *whole = slurp(in(hf, "config.json"), &n);
    while (n && whole[n] != '}') whole[n--] = 0;
    whole[n] = 0;
    snprintf(text, sizeof text, "%s, \"note\": \"\\u00e9\\n\", \"rope_scaling\": null }", (char *)whole);
    q_delete(A, whole);
    put_file(in(hf, "config.json"), text);
    const lq_status s = quantize(hf, in(base, "out/"), "f16", false, 1);
    if (s == LQ_OK) { /* unless the architecture refuses a note */
        whole = slurp(in(out, "config.json"), &n);
        ck_assert_ptr_nonnull(strstr((char *)whole, "\"\\u00e9\\n\""));
        q_delete(A, whole);
    } else {
        refused(s, LQ_E_UNSUPPORTED, "note");
    }
}
END_TEST

/* ---- methods: unpacked again as the published kernels do */

static const q_method *method(const char *name) {
    const q_method *m = q_method_find(q_str_of(name));
    ck_assert_msg(m != NULL, "no method %s", name);
    return m;
}

enum { ROWS = 24, K = 256, GROUP_MAX = K / 32 };
static float decoded[ROWS][K];

static void make_matrix(q_packed_matrix *m, const char *format, const char *name) {
    uint64_t seed = 3;
    float x[K];
    *m = (q_packed_matrix){.name = q_str_of(name), .format = q_format_find(format), .dtype = q_format_find("f16"), .k = K,
                           .rows = ROWS, .alloc = A};
    ck_assert(q_row_bytes(m->format, K, &m->row_bytes));
    m->data = calloc(ROWS, m->row_bytes);
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < K; i++) x[i] = t_normal(&seed) * 0.03f;
        for (int i = 0; i < 128 && r == 5; i++) x[i] = fabsf(x[i]);  /* zero point 0 */
        for (int i = 0; i < 128 && r == 6; i++) x[i] = -fabsf(x[i]); /* zero point 15 */
        for (int i = 0; i < 128 && r == 7; i++) x[i] = 0;
        q_encode_row(m->format, x, NULL, false, K, m->data + r * m->row_bytes);
    }
    if (m->format->weights == 128) m->data[8 * m->row_bytes + 2] = 16;
}
static uint8_t *pack(const q_method *how, q_packed_matrix *m, uint32_t part, q_out_tensor *t, q_arena *arena) {
    DONE(how->describe(m, arena, part, t));
    uint8_t *p = malloc(t->shape[0] * t->shape[1] * 4);
    DONE(how->pack(m, part, p));
    return p;
}

/* w = s * (q - z), with words of eight codes along inputs (GPTQ) or outputs (AWQ). */
static void check_i4(const char *name, const char *format, bool awq) {
    static const int order[8] = {0, 2, 4, 6, 1, 3, 5, 7};
    int32_t inputs[K], column[K]; /* of a column; of an input */
    const q_method *how = method(name);
    q_packed_matrix m;
    q_out_tensor t;
    q_arena arena = {.alloc = A};
    make_matrix(&m, format, "a.b.weight");
    for (int i = 0; i < K; i++) inputs[i] = how->ordered ? (i * 77 + 5) % K : i; /* 77 is odd: each once */
    for (int i = 0; i < K; i++) column[inputs[i]] = i;
    if (how->ordered) m.order = inputs;
    const int group = m.format->weights;
    float before[ROWS][K];
    for (int r = 0; r < ROWS; r++) q_decode_row(m.format, m.data + r * m.row_bytes, K, before[r]);
    bool changed = false;
    DONE(how->settle(&m, &changed));
    for (int r = 0; r < ROWS; r++) q_decode_row(m.format, m.data + r * m.row_bytes, K, decoded[r]);
    ck_assert_int_eq(changed, memcmp(before, decoded, sizeof decoded) != 0);
    ck_assert_int_eq(changed, !awq || group == 128); /* rows 5 and 8 */
    uint32_t *qw = (uint32_t *)(void *)pack(how, &m, 0, &t, &arena);
    ck_assert(q_str_is(t.name, "a.b.qweight") && strcmp(t.type_name, "i32") == 0);
    ck_assert(t.shape[0] == (awq ? ROWS / 8 : ROWS) && t.shape[1] == (awq ? K : K / 8));
    uint32_t *qz = (uint32_t *)(void *)pack(how, &m, 1, &t, &arena);
    ck_assert(q_str_is(t.name, "a.b.qzeros") && t.shape[0] == ROWS / 8 && t.shape[1] == (uint64_t)(K / group));
    uint16_t *sc = (uint16_t *)(void *)pack(how, &m, 2, &t, &arena);
    ck_assert(q_str_is(t.name, "a.b.scales") && strcmp(t.format->name, "f16") == 0);
    for (int r = 0; r < ROWS; r++)
        for (int i = 0; i < K; i++) {
            int at = 0;
            while (awq && order[at] != r % 8) at++;
            const uint32_t word = awq ? qw[i * (ROWS / 8) + r / 8] : qw[i / 8 * ROWS + r];
            const int g = column[i] / group;
            const uint32_t zeros = qz[g * (ROWS / 8) + r / 8];
            const int q = (int)(word >> 4 * (awq ? at : i % 8) & 15), z = (int)(zeros >> 4 * (awq ? at : r % 8) & 15) + !awq;
            ck_assert(awq || z < 16);
            ck_assert_msg(q_half_to_f32(sc[g * ROWS + r]) * (float)(q - z) == decoded[r][column[i]], "%s row %d, column %d", name, r, i);
        }
    if (!awq) {
        int32_t *g = (int32_t *)(void *)pack(how, &m, 3, &t, &arena);
        ck_assert(q_str_is(t.name, "a.b.g_idx") && t.rank == 1 && t.shape[0] == K);
        for (int i = 0; i < K; i++) ck_assert_int_eq(g[i], column[i] / group);
        free(g);
    }
    free(qw);
    free(qz);
    free(sc);
    m.rows = 12; /* no whole words */
    refused(how->describe(&m, &arena, 0, &t), LQ_E_UNSUPPORTED, "a.b.weight");
    free(m.data);
    q_arena_free(&arena);
}

START_TEST(four_bit_methods) {
    static const char *const formats[] = {"i4_g32", "i4_g64", "i4_g128"};
    for (size_t i = 0; i < Q_COUNT(formats); i++) {
        check_i4("gptq", formats[i], false);
        check_i4("gptq-act", formats[i], false);
        check_i4("awq", formats[i], true);
    }
    q_json_text t = {.alloc = A};
    const q_packed_matrix m = {.format = q_format_find("i4_g64"), .dtype = q_format_find("f16"), .alloc = A};
    method("gptq-act")->config(&m, &t);
    q_json_put(&t, "");
    json_t *c = json_loadb(t.p, t.n, 0, NULL);
    ck_assert(json_is_true(json_object_get(c, "desc_act")) && json_integer_value(json_object_get(c, "group_size")) == 64);
    ck_assert_str_eq(text_at(c, "checkpoint_format"), "gptq");
    json_decref(c);
    q_delete(A, t.p);
}
END_TEST

START_TEST(names_of_parts) {
    q_arena arena = {.alloc = A};
    q_str s;
    ck_assert_int_eq(q_method_name(&arena, q_str_of("x.weight"), ".absmax", &s), LQ_OK);
    ck_assert(q_str_is(s, "x.weight.absmax"));
    refused(q_method_name(&arena, q_str_of("x.bias"), ".absmax", &s), LQ_E_UNSUPPORTED, "x.bias");
    ck_assert_ptr_null(q_method_find(q_str_of("gptqq")));
    ck_assert(q_method_takes(method("gptq"), q_format_find("i4_g128")) && !q_method_takes(method("gptq"), q_format_find("i4_row")));
    q_arena_free(&arena);
}
END_TEST

START_TEST(floats_in_json) {
    static const float values[] = {0.0f, 1.0f, 9.99999952f, 0.0519583672f, 3.40282347e38f, 1.17549435e-38f, 1e-44f, -2.5f, 1e10f, 0.1f};
    for (size_t i = 0; i < Q_COUNT(values); i++) {
        q_json_text t = {.alloc = A};
        q_json_put_float(&t, values[i]);
        ck_assert_uint_eq(t.n, 18);
        char text[24];
        snprintf(text, sizeof text, "%.*s", (int)t.n, t.p);
        ck_assert_msg((float)strtod(text, NULL) == values[i], "%s is not %.9g", text, (double)values[i]);
        q_delete(A, t.p);
    }
    q_json_text t = {.alloc = A};
    q_json_put_string(&t, (q_str){"a\"b\\c\n\x01z", 8});
    ck_assert_msg(t.n == 22 && memcmp(t.p, "\"a\\\"b\\\\c\\u000a\\u0001z\"", 22) == 0, "%.*s", (int)t.n, t.p);
    q_delete(A, t.p);
}
END_TEST

/* ---- the container alone */

static lq_status write_shards(const char *path, uint64_t limit, bool force, uint32_t tensors, uint32_t written) {
    static char names[16][32];
    static q_out_tensor t[16];
    const q_meta meta[3] = {{.key = q_str_of("config.json"), .type = Q_META_STRING, .count = 1, .s = q_str_of("{\"a\": 1}")},
                      {.key = q_str_of("notes.txt"), .type = Q_META_STRING, .count = 1, .s = q_str_of("x")},
                      {.key = q_str_of("max_shard_size"), .type = Q_META_U64, .count = 1, .u = limit, .i = (int64_t)limit}};
    for (uint32_t i = 0; i < tensors; i++) {
        snprintf(names[i], sizeof names[i], "t\"%u", i);
        t[i] = (q_out_tensor){.name = q_str_of(names[i]), .format = i % 2 ? NULL : q_format_find("f32"), .type_name = i % 2 ? "u8" : NULL,
                              .rank = 2, .shape = {3, 5 + i}};
    }
    q_writer *w;
    uint64_t measured = 0;
    Q_TRY(q_writer_huggingface.measure(meta, 3, t, tensors, &measured));
    Q_TRY(q_writer_huggingface.open(A, path, force, meta, 3, t, tensors, &w));
    for (uint32_t i = 0; i < written; i++)
        for (uint64_t k = 0, n = 3 * (5 + i) * (i % 2 ? 1 : 4); k < n; k++) {
            const uint8_t b = (uint8_t)(i * 7 + k);
            const lq_status s = q_writer_huggingface.write(w, &b, 1);
            if (s == LQ_OK) continue;
            q_writer_huggingface.discard(w);
            return s;
        }
    return q_writer_huggingface.commit(w, NULL);
}

START_TEST(shards) {
    static const uint64_t limits[] = {1, 70, 150, 1000, 1u << 30};
    const uint32_t want[] = {6, 6, 3, 1, 1};
    for (size_t i = 0; i < Q_COUNT(limits); i++) {
        const q_load_options o = {.alloc = A};
        q_directory *d;
        t_remove(out);
        DONE(write_shards(out, limits[i], false, 6, 6));
        DONE(q_directory_open(out, &o, &d)); /* which compares the index with the shards */
        ck_assert_uint_eq(d->n_files, want[i]);
        ck_assert_uint_eq(d->n_tensors, 6);
        for (uint32_t k = 0; k < 6; k++) {
            char name[32];
            snprintf(name, sizeof name, "t\"%u", k);
            uint8_t *p = malloc(tensor(d, name)->bytes);
            DONE(q_tensor_read(d, tensor(d, name), 0, p, tensor(d, name)->bytes));
            for (uint64_t b = 0; b < tensor(d, name)->bytes; b++) ck_assert_uint_eq(p[b], (uint8_t)(k * 7 + b));
            ck_assert(tensor(d, name)->shape[0] == 3 && tensor(d, name)->shape[1] == 5 + k);
            free(p);
        }
        q_directory_close(d);
        ck_assert_int_eq(access(in(out, "model.safetensors.index.json"), F_OK) == 0, want[i] > 1);
    }
    t_remove(out);
    refused(write_shards(out, 70, false, 6, 5), LQ_E_ARG, "misses");
    refused(write_shards(out, 70, false, 5, 6), LQ_E_ARG, "more tensor data");
    ck_assert_int_eq(spawn_entries(base, "model", (char[300]){0}), 0); /* nothing is left */
}
END_TEST

START_TEST(bad_keys_and_tensors) {
    static const char *const names[] = {"", ".hidden", "a/b", "model.safetensors", "x.safetensors", "model.safetensors.index.json", "a\nb"};
    const q_meta config = {.key = q_str_of("config.json"), .type = Q_META_STRING, .count = 1, .s = q_str_of("{}")};
    q_meta meta[2] = {config, config};
    uint64_t bytes;
    refused(q_writer_huggingface.measure(meta, 2, NULL, 0, &bytes), LQ_E_ARG, "twice");
    for (size_t i = 0; i < Q_COUNT(names); i++) {
        meta[1].key = q_str_of(names[i]);
        refused(q_writer_huggingface.measure(meta, 2, NULL, 0, &bytes), LQ_E_ARG, "is not the name of a file");
    }
    meta[1].key = q_str_of("a.json");
    meta[1].type = Q_META_U32;
    refused(q_writer_huggingface.measure(meta, 2, NULL, 0, &bytes), LQ_E_ARG, "a.json");
    refused(q_writer_huggingface.measure(meta + 1, 0, NULL, 0, &bytes), LQ_E_ARG, "config.json");
    q_out_tensor t = {.name = q_str_of("t"), .format = q_format_find("q4_k"), .rank = 1, .shape = {256}};
    refused(q_writer_huggingface.measure(meta, 1, &t, 1, &bytes), LQ_E_UNSUPPORTED, "q4_k");
    t.format = q_format_find("f32");
    t.rank = 9;
    refused(q_writer_huggingface.measure(meta, 1, &t, 1, &bytes), LQ_E_UNSUPPORTED, "9 dimensions");
    t.rank = 2;
    refused(q_writer_huggingface.measure(meta, 1, &t, 1, &bytes), LQ_E_ARG, "dimension 1");
    t.shape[1] = UINT64_MAX / 8;
    refused(q_writer_huggingface.measure(meta, 1, &t, 1, &bytes), LQ_E_ARG, "overflows");
    t.shape[1] = 1;
    t.name = q_str_of("");
    refused(q_writer_huggingface.measure(meta, 1, &t, 1, &bytes), LQ_E_ARG, "name");
}
END_TEST

/* ---- what is refused */

START_TEST(destinations) {
    char gguf[1300];
    refused(quantize(hf, in(base, "x.gguf"), "int8", false, 1), LQ_E_UNSUPPORTED, "q8_0");
    refused(quantize(hf, in(base, "x.gguf/"), "int8", false, 1), LQ_E_UNSUPPORTED, "q8_0");
    t_path(gguf, sizeof gguf, base, "x.gguf");
    DONE(quantize(hf, gguf, "f16", false, 1));
    refused(quantize(gguf, out, "int8", false, 1), LQ_E_UNSUPPORTED, "config.json");
    refused(quantize(gguf, in(base, "out/"), "f16", false, 1), LQ_E_UNSUPPORTED, "config.json");
    refused(quantize(hf, in(base, "out/"), "q8_0", false, 1), LQ_E_ARG, "*.gguf");
    refused(quantize(hf, in(base, "none/out"), "int8", false, 1), LQ_E_IO, "none");
    refused(quantize(hf, gguf, "int8", true, 1), LQ_E_UNSUPPORTED, "x.gguf");
    put_file(in(base, "file"), "x");
    refused(quantize(hf, in(base, "file"), "int8", true, 1), LQ_E_ARG, "is a file");
    refused(quantize(hf, hf, "int8", true, 1), LQ_E_ARG, "one of the inputs");
    refused(quantize(in(hf, "model.safetensors"), hf, "int8", true, 1), LQ_E_ARG, "directory of an input");
    ck_assert_int_eq(symlink(hf, in(base, "link")), 0);
    refused(quantize(hf, in(base, "link"), "int8", true, 1), LQ_E_ARG, "one of the inputs");
    ck_assert_int_eq(symlink(base, in(base, "up")), 0);
    refused(quantize(hf, in(base, "up"), "int8", true, 1), LQ_E_ARG, "symbolic link");
    refused(quantize(hf, in(base, "out"), "nf4", true, 1), LQ_E_UNSUPPORTED, "down_proj"); /* rows of 96 */
    ck_assert_int_eq(access(out, F_OK), -1);
}
END_TEST

static lq_status by_recipe(const char *recipe, const char *text, const char *dst, bool dry) {
    put_file(recipe, text);
    const lq_quantize_options o = {.size = sizeof o, .recipe = recipe, .threads = 1, .force = 1, .dry_run = dry};
    return q_quantize(&q_alloc_libc, NULL, 1, hf, dst, &o, NULL);
}

START_TEST(recipes) {
    char recipe[1300];
    t_path(recipe, sizeof recipe, base, "mine.txt");
    refused(by_recipe(recipe, "method gptq\nattn_q i4_g64\n* i4_g32\n", out, true), LQ_E_UNSUPPORTED, "one format for all");
    refused(by_recipe(recipe, "method gptq\n* q4_0\n", out, true), LQ_E_UNSUPPORTED, "does not store q4_0");
    DONE(quantize(hf, out, "int8", false, 1));
    const uint64_t whole = dir_hash(out);
    t_path(recipe, sizeof recipe, out, "mine.txt");
    refused(by_recipe(recipe, "method gptq\n* i4_g32:rtn\n", out, false), LQ_E_ARG, "directory of an input");
    ck_assert_int_eq(unlink(recipe), 0);
    ck_assert_uint_eq(dir_hash(out), whole);
    /* What a link leads to is an input too. */
    char linked[1300], at[1300];
    t_path(linked, sizeof linked, base, "linked");
    ck_assert_int_eq(mkdir(linked, 0777), 0);
    static const char *const files[] = {"config.json", "model.safetensors", "tokenizer.model"};
    for (size_t i = 0; i < Q_COUNT(files); i++) {
        t_path(at, sizeof at, hf, files[i]);
        ck_assert_int_eq(symlink(at, in(linked, files[i])), 0);
    }
    refused(quantize(linked, hf, "int8", true, 1), LQ_E_ARG, "directory of an input");
}
END_TEST

START_TEST(force) {
    char name[300];
    DONE(quantize(hf, out, "int8", false, 1));
    const uint64_t whole = dir_hash(out);
    refused(quantize(hf, out, "int8", false, 1), LQ_E_ARG, "exists");
    DONE(write_shards(out, 70, true, 6, 6)); /* six shards in the place of one */
    ck_assert_int_eq(access(in(out, "model.safetensors"), F_OK), -1);
    DONE(quantize(hf, in(base, "out//"), "int8", true, 1));
    ck_assert_uint_eq(dir_hash(out), whole); /* nothing of the shards */
    ck_assert_int_eq(mkdir(in(out, "sub"), 0777), 0);
    refused(quantize(hf, out, "int8", true, 1), LQ_E_ARG, "'sub'");
    ck_assert_int_eq(rmdir(in(out, "sub")), 0);
    unlink(in(out, "config.json"));
    refused(quantize(hf, out, "int8", true, 1), LQ_E_ARG, "no config.json");
    t_remove(out);
    ck_assert_int_eq(mkdir(out, 0777), 0); /* empty */
    refused(quantize(hf, out, "int8", false, 1), LQ_E_ARG, "exists");
    DONE(quantize(hf, out, "int8", true, 1));
    ck_assert_uint_eq(dir_hash(out), whole);
    t_remove(hf);
    ck_assert_int_eq(spawn_entries(base, "out", name), 0);
}
END_TEST

START_TEST(threads_do_not_matter) {
    char other[1300];
    t_path(other, sizeof other, base, "other");
    for (uint32_t threads = 2; threads <= 5; threads += 3) {
        DONE(quantize(pocket, out, "nf4-dq", true, 1));
        DONE(quantize(pocket, other, "nf4-dq", true, threads));
        ck_assert_uint_eq(dir_hash(out), dir_hash(other));
    }
    DONE(quantize(pocket, out, "int8", true, 1));
    DONE(quantize(pocket, other, "int8", true, 3));
    ck_assert_uint_eq(dir_hash(out), dir_hash(other));
}
END_TEST

/* ---- processes that are killed, fail, or meet */

static char *int8[] = {lq, "quantize", hf, out, "-s", "int8", "-t", "1", NULL};
static char *int8_force[] = {lq, "quantize", hf, out, "-s", "int8", "-t", "1", "--force", NULL};

/* Entries of the folder but the model, the output and its temporary. */
static int strangers(void) {
    int n = 0;
    DIR *d = opendir(base);
    for (struct dirent *e; (e = readdir(d)) != NULL;) {
        const bool known = strcmp(e->d_name, "out") == 0 || strcmp(e->d_name, "model") == 0 || strcmp(e->d_name, ".out.lq-tmp") == 0;
        n += !known && strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    }
    closedir(d);
    return n;
}
static bool has_temp(void) { return access(in(base, ".out.lq-tmp"), F_OK) == 0; }

START_TEST(killed_at_every_call) {
    outcome o;
    disturb d = disturb_none(base);
    int met[3] = {0};
    d.calls = "open,write,fsync,rename,unlink,mkdir,flock,close"; /* what changes something, or is beside it */
    if (!spawn_shim_works(base)) T_SKIP("file calls cannot be disturbed in this build");
    spawn_run(int8, &d, &o);
    ck_assert_msg(o.code == 0 && o.calls > 40, "exit %d, %d calls: %s", o.code, (int)o.calls, o.said);
    const uint64_t whole = dir_hash(out), source = dir_hash(hf), calls = o.calls;
    t_remove(out);
    for (d.kill = 1; d.kill <= calls; d.kill += T_SLOW && d.kill + 20 < calls ? 4 : 1) {
        spawn_run(int8, &d, &o);
        ck_assert_int_eq(o.code, 128 + SIGKILL);
        const uint64_t h = dir_hash(out);
        ck_assert_msg(h == 0 || h == whole, "kill at call %d: half a directory", (int)d.kill);
        ck_assert_int_eq(strangers(), 0);
        met[h ? 2 : has_temp()]++;
        if (!h && d.kill % 3 == 0) { /* the same again starts clean */
            spawn_run(int8, NULL, &o);
            ck_assert_msg(o.code == 0 && dir_hash(out) == whole && !has_temp(), "after kill %d: exit %d: %s", (int)d.kill, o.code, o.said);
        }
        t_remove(out);
    }
    ck_assert(met[0] > 0 && met[1] > 0 && dir_hash(hf) == source);
}
END_TEST

START_TEST(killed_while_replacing) {
    outcome o;
    disturb d = disturb_none(base);
    bool kept = false, replaced = false;
    d.calls = "write,fsync,rename,unlink,mkdir";
    if (!spawn_shim_works(base)) T_SKIP("file calls cannot be disturbed in this build");
    DONE(quantize(hf, out, "int8", false, 1));
    const uint64_t whole = dir_hash(out);
    for (d.kill = 1;; d.kill++) {
        DONE(write_shards(out, 70, true, 6, 6));
        const uint64_t old = dir_hash(out);
        spawn_run(int8_force, &d, &o);
        if (o.code == 0) break;
        ck_assert_int_eq(o.code, 128 + SIGKILL);
        const uint64_t h = dir_hash(out);
        ck_assert_msg(h == old || h == whole, "kill at call %d: neither the old nor the new directory", (int)d.kill);
        ck_assert_int_eq(strangers(), 0);
        kept |= h == old;
        replaced |= h == whole;
    }
    ck_assert(kept && replaced && dir_hash(out) == whole && !has_temp());
}
END_TEST

START_TEST(failing_calls) {
    static const int errors[] = {ENOSPC, EIO};
    outcome o;
    disturb d = disturb_none(base);
    if (!spawn_shim_works(base)) T_SKIP("file calls cannot be disturbed in this build");
    const uint64_t source = dir_hash(hf);
    d.calls = "open,opendir,write,fsync,rename,unlink,mkdir,flock,ftruncate,fallocate,statvfs";
    DONE(quantize(hf, out, "int8", false, 1));
    const uint64_t whole = dir_hash(out);
    for (size_t e = 0; e < Q_COUNT(errors); e++) {
        d.error = errors[e];
        for (d.fail = 1;; d.fail += T_SLOW ? 3 : 1) {
            t_remove(out);
            spawn_run(int8, &d, &o);
            const uint64_t h = dir_hash(out);
            if (o.failures == 0) break;
            ck_assert_msg((o.code == 4 || o.harmless) || (o.code == 0 && h == whole), "call %d (%s): exit %d: %s", (int)d.fail,
                          o.failed_call, o.code, o.said);
            ck_assert_msg(h == 0 || h == whole, "call %d (%s): half a directory", (int)d.fail, o.failed_call);
            ck_assert_msg(!has_temp() || o.failed_unlink, "call %d (%s %s): a temporary is left: %s", (int)d.fail, o.failed_call,
                          o.failed_path, o.said);
        }
    }
    ck_assert_uint_eq(dir_hash(hf), source);
}
END_TEST

START_TEST(second_process) {
    outcome first, second;
    q_outdir *d;
    if (t_emulated()) T_SKIP("an emulator does not start another program");
    DONE(q_outdir_open(A, out, 100, false, "config.json", &d));
    spawn_run(int8, NULL, &second);
    ck_assert_msg(second.code == 7 && strstr(second.said, "being written"), "exit %d: %s", second.code, second.said);
    q_outdir_discard(d);
    ck_assert(!has_temp());
    spawn_run(int8, NULL, &first);
    ck_assert_int_eq(first.code, 0);
    refused(q_outdir_open(A, in(base, "big"), UINT64_MAX / 2, false, "config.json", &d), LQ_E_IO, "needs");
    ck_assert_int_eq(access(in(base, ".big.lq-tmp"), F_OK), -1);
    ck_assert_int_eq(mkdir(in(base, ".t.lq-tmp"), 0777), 0); /* not ours: it holds a folder */
    ck_assert_int_eq(mkdir(in(base, ".t.lq-tmp/mine"), 0777), 0);
    refused(q_outdir_open(A, in(base, "t"), 1, false, "config.json", &d), LQ_E_ARG, "'mine'");
    ck_assert_int_eq(access(in(base, ".t.lq-tmp/mine"), F_OK), 0);
}
END_TEST

/* Every allocation refused in turn. */
typedef struct counter {
    uint64_t calls, fail;
} counter;
static void *counted_alloc(void *user, size_t n, size_t align) {
    counter *c = user;
    return ++c->calls == c->fail ? NULL : q_alloc_libc.alloc(NULL, n, align);
}
static void counted_free(void *user, void *p, size_t n) {
    (void)user;
    q_alloc_libc.free(NULL, p, n);
}
START_TEST(no_memory) {
    char name[300];
    for (uint64_t k = 1;; k += T_SLOW ? 5 : 1) {
        counter c = {.fail = k};
        const q_alloc a = {counted_alloc, counted_free, &c};
        const lq_quantize_options o = {.size = sizeof o, .scheme = "int8"};
        const lq_status s = q_quantize(&a, NULL, 1, hf, out, &o, NULL);
        if (c.calls < k) {
            ck_assert_int_eq(s, LQ_OK);
            break;
        }
        ck_assert_msg(s == LQ_E_NOMEM, "allocation %d: %d %s", (int)k, (int)s, lq_error_detail());
        ck_assert_msg(spawn_entries(base, "model", name) == 0, "allocation %d leaves %s", (int)k, name);
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("hf_write");
    TCase *c = tcase_create("hf_write");
    tcase_set_timeout(c, 600);
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, floats);
    tcase_add_test(c, schemes_against_goldens);
    tcase_add_test(c, configuration);
    tcase_add_test(c, four_bit_methods);
    tcase_add_test(c, names_of_parts);
    tcase_add_test(c, floats_in_json);
    tcase_add_test(c, shards);
    tcase_add_test(c, bad_keys_and_tensors);
    tcase_add_test(c, destinations);
    tcase_add_test(c, recipes);
    tcase_add_test(c, force);
    tcase_add_test(c, threads_do_not_matter);
    tcase_add_test(c, killed_at_every_call);
    tcase_add_test(c, killed_while_replacing);
    tcase_add_test(c, failing_calls);
    tcase_add_test(c, second_process);
    tcase_add_test(c, no_memory);
    suite_add_tcase(s, c);
    return s;
}

HARNESS_MAIN(suite)
