/* test_importance.c: importance files in both forms: what is read from them, and that each rule broken alone is refused
 * with a sentence that names the file and the tensor. */
#include "help_gguf.h"

#include <math.h>

#include "../libquant/importance.h"

static const q_alloc *const A = &q_alloc_libc;
enum { F32 = 0, F16 = 1 }; /* GGUF's numbers */

/* ---- files */

static void floats(bytes *b, const float *v, size_t n) {
    for (size_t i = 0; i < n; i++) put32(b, q_f32_bits(v[i]));
}

/* A tensor of the GGUF form; its data lie 32 bytes after those of the one before. */
typedef struct part {
    const char *name;
    uint32_t type, rank;
    uint64_t shape[3];
    float data[8];
} part;

static void keys(bytes *b) {
    key_str(b, "general.type", "imatrix");
    key_array(b, "imatrix.datasets", Q_META_STRING, 2);
    put_text(b, "first.txt");
    put_text(b, "second.txt");
    key_u32(b, "imatrix.chunk_count", 7);
    key_u32(b, "imatrix.chunk_size", 512);
}

static bytes file_of(const part *parts, uint32_t n) {
    bytes b = head(3, n, 4);
    keys(&b);
    uint64_t offset = 0;
    for (uint32_t i = 0; i < n; i++) {
        tensor(&b, parts[i].name, parts[i].rank, parts[i].shape, parts[i].type, offset);
        offset += 32;
    }
    for (uint32_t i = 0; i < n; i++) {
        align(&b, 32);
        uint64_t values = 1;
        for (uint32_t d = 0; d < parts[i].rank; d++) values *= parts[i].shape[d];
        for (uint64_t v = 0; v < values; v++) {
            if (parts[i].type == F16) put8(&b, 0), put8(&b, 0);
            else floats(&b, &parts[i].data[v], 1);
        }
    }
    align(&b, 32);
    return b;
}

/* One matrix, written without its trailing dimension as other engines do, and two experts. */
#define GOOD \
    {"a.weight.in_sum2", F32, 1, {4}, {2, 8, 0, 4}}, {"a.weight.counts", F32, 1, {1}, {10}}, \
    {"b.weight.in_sum2", F32, 2, {2, 2}, {1, 2, 30, 10}}, {"b.weight.counts", F32, 2, {1, 2}, {5, 6}}
static const part good[] = {GOOD};

static void put_entry(bytes *b, const char *name, int32_t calls, const float *v, int32_t n) {
    put32(b, (uint32_t)strlen(name));
    put(b, name, strlen(name));
    put32(b, (uint32_t)calls);
    put32(b, (uint32_t)n);
    floats(b, v, (size_t)n);
}
static const float four[] = {2, 8, 0, 4};
static bytes dat(void) {
    bytes b = {0};
    put32(&b, 2);
    put_entry(&b, "a.weight", 3, four, 4);
    put_entry(&b, "b.weight", 3, four, 4);
    return b;
}
static void dat_end(bytes *b, const char *text) {
    put32(b, 11);
    put32(b, (uint32_t)strlen(text));
    put(b, text, strlen(text));
}

/* ---- opening */

typedef struct said {
    int n;
    char text[512];
} said;
static void on_log(void *user, lq_log_level level, const char *message) {
    said *s = (said *)user;
    if (level != LQ_LOG_WARN) return;
    s->n++;
    snprintf(s->text, sizeof s->text, "%s", message);
}

static const char *dat_path(const bytes *b) {
    const char *path = tmp_name("imatrix.dat");
    save_as(b, path);
    return path;
}

static q_importance *opened(const char *path) {
    q_importance *im = NULL;
    ck_assert_msg(q_importance_open(A, NULL, path, &im) == LQ_OK, "%s", lq_error_detail());
    return im;
}
static void refused(const char *path, lq_status status, const char *says) {
    q_importance *im = NULL;
    ck_assert_int_eq(q_importance_open(A, NULL, path, &im), status);
    ck_assert_ptr_null(im);
    ck_assert_msg(strstr(lq_error_detail(), says) != NULL, "'%s' does not say '%s'", lq_error_detail(), says);
    ck_assert_msg(strstr(lq_error_detail(), path) != NULL, "'%s' does not name the file", lq_error_detail());
}
static const float *values_of(q_importance *im, const char *name, uint64_t inputs, uint64_t matrices, uint64_t matrix) {
    const q_importance_entry *e;
    ck_assert_msg(q_importance_find(im, q_str_of(name), inputs, matrices, &e) == LQ_OK, "%s", lq_error_detail());
    return q_importance_of(e, inputs, matrix);
}
static void has(const float *v, float a, float b) {
    ck_assert_ptr_nonnull(v);
    ck_assert_float_eq(v[0], a);
    ck_assert_float_eq(v[1], b);
}

/* ---- what is read */

START_TEST(the_gguf_form_gives_ratios_per_matrix) {
    bytes b = file_of(good, 4);
    q_importance *im = opened(save(&b));
    ck_assert_uint_eq(im->n_entries, 2);
    ck_assert_uint_eq(im->chunks, 7);
    ck_assert(q_str_is(im->dataset, "first.txt"));
    has(values_of(im, "a.weight", 4, 1, 0), 0.25f, 1.0f);
    has(values_of(im, "b.weight", 2, 2, 0), 0.5f, 1.0f);
    has(values_of(im, "b.weight", 2, 2, 1), 1.0f, (float)(10.0 / 30.0));
    ck_assert_ptr_null(values_of(im, "c.weight", 4, 1, 0));
    ck_assert(im->entries[0].matched && im->entries[1].matched);
    q_importance_close(im);
    free(b.p);
}
END_TEST

START_TEST(imatrix_dat_is_read_with_and_without_its_end) {
    for (int end = 0; end < 3; end++) {
        bytes b = dat();
        if (end == 1) put32(&b, 11);
        if (end == 2) dat_end(&b, "calibration.txt");
        q_importance *im = opened(dat_path(&b));
        ck_assert_uint_eq(im->n_entries, 2);
        ck_assert_uint_eq(im->chunks, end ? 11 : 0);
        ck_assert(q_str_is(im->dataset, end == 2 ? "calibration.txt" : ""));
        has(values_of(im, "a.weight", 4, 1, 0), 0.25f, 1.0f);
        /* It does not tell experts apart: four values are two matrices of two inputs as well. */
        has(values_of(im, "b.weight", 2, 2, 1), 0.0f, 0.5f);
        q_importance_close(im);
        free(b.p);
    }
}
END_TEST

START_TEST(what_newer_writers_add_is_left_alone) {
    const part parts[] = {GOOD, {"a.weight.in_sum", F32, 1, {4}, {-1, 2, NAN, 4}}};
    bytes b = file_of(parts, 5);
    q_importance *im = opened(save(&b));
    ck_assert_uint_eq(im->n_entries, 2);
    q_importance_close(im);
    free(b.p);
}
END_TEST

START_TEST(keys_beside_the_type_may_be_missing) {
    bytes b = head(3, 2, 1);
    key_str(&b, "general.type", "imatrix");
    vector(&b, "a.in_sum2", 1, 0);
    vector(&b, "a.counts", 1, 32);
    for (int i = 0; i < 2; i++) {
        align(&b, 32);
        put32(&b, q_f32_bits(2.0f));
    }
    align(&b, 32);
    q_importance *im = opened(save(&b));
    ck_assert_uint_eq(im->chunks, 0);
    ck_assert_uint_eq(im->dataset.n, 0);
    q_importance_close(im);
    free(b.p);
}
END_TEST

START_TEST(an_entry_without_tokens_is_absent_and_reported) {
    part parts[] = {GOOD};
    parts[1].data[0] = 0; /* a: none */
    parts[3].data[1] = 0; /* b: the second expert alone */
    bytes b = file_of(parts, 4);
    said s = {0};
    const q_log log = {on_log, &s};
    q_importance *im;
    ck_assert_int_eq(q_importance_open(A, &log, save(&b), &im), LQ_OK);
    ck_assert_int_eq(s.n, 1);
    ck_assert_ptr_nonnull(strstr(s.text, "1 of 2 entries"));
    ck_assert_ptr_nonnull(strstr(s.text, "a.weight"));
    ck_assert_ptr_null(values_of(im, "a.weight", 4, 1, 0));
    ck_assert_ptr_nonnull(values_of(im, "b.weight", 2, 2, 0));
    ck_assert_ptr_null(values_of(im, "b.weight", 2, 2, 1));
    q_importance_close(im);
    free(b.p);
    b = (bytes){0};
    put32(&b, 1);
    put_entry(&b, "a.weight", 0, four, 4);
    ck_assert_int_eq(q_importance_open(A, &log, dat_path(&b), &im), LQ_OK);
    ck_assert_int_eq(s.n, 2);
    ck_assert_ptr_null(values_of(im, "a.weight", 4, 1, 0));
    q_importance_close(im);
    free(b.p);
}
END_TEST

START_TEST(extreme_values_keep_their_ratios) {
    part parts[] = {GOOD};
    const float wide[] = {0x1p-149f, 3e38f, 0, 1.5e38f}, zeros[] = {0, 0, 0, 0}, tiny[] = {0x1p-149f, 0x1p-148f, 0, 0};
    memcpy(parts[0].data, wide, sizeof wide);
    bytes b = file_of(parts, 4);
    q_importance *im = opened(save(&b));
    const float *v = values_of(im, "a.weight", 4, 1, 0);
    has(v, 0.0f, 1.0f);
    ck_assert_float_eq(v[3], 0.5f);
    q_importance_close(im);
    free(b.p);
    memcpy(parts[0].data, zeros, sizeof zeros);
    memcpy(parts[2].data, tiny, 2 * sizeof *tiny);
    b = file_of(parts, 4);
    im = opened(save(&b));
    has(values_of(im, "a.weight", 4, 1, 0), 0.0f, 0.0f); /* all inputs were zero: not a division by it */
    has(values_of(im, "b.weight", 2, 2, 0), 0.5f, 1.0f);
    q_importance_close(im);
    free(b.p);
}
END_TEST

START_TEST(an_entry_of_another_length_is_refused_by_both_numbers) {
    bytes b = file_of(good, 4);
    q_importance *im = opened(save(&b));
    const q_importance_entry *e;
    static const struct {
        const char *name;
        uint64_t inputs, matrices;
    } wrong[] = {{"a.weight", 5, 1}, {"a.weight", 4, 2}, {"b.weight", 4, 1}, {"b.weight", 2, 3}, {"b.weight", 1, 4}};
    for (size_t i = 0; i < Q_COUNT(wrong); i++) {
        ck_assert_int_eq(q_importance_find(im, q_str_of(wrong[i].name), wrong[i].inputs, wrong[i].matrices, &e),
                         LQ_E_INCONSISTENT);
        char says[64];
        snprintf(says, sizeof says, "has %d and %d", (int)wrong[i].inputs, (int)wrong[i].matrices);
        ck_assert_ptr_nonnull(strstr(lq_error_detail(), wrong[i].name));
        ck_assert_ptr_nonnull(strstr(lq_error_detail(), says));
        ck_assert(!im->entries[0].matched && !im->entries[1].matched);
    }
    q_importance_close(im);
    free(b.p);
}
END_TEST

/* ---- what is refused: the GGUF form */

START_TEST(a_model_is_no_importance_file) {
    bytes b = small(3);
    refused(save(&b), LQ_E_UNSUPPORTED, "general.type");
    free(b.p);
    b = head(3, 0, 1);
    key_u32(&b, "general.type", 3);
    refused(save(&b), LQ_E_UNSUPPORTED, "general.type");
    free(b.p);
}
END_TEST

START_TEST(keys_of_another_type) {
    static const char *const names[] = {"imatrix.datasets", "imatrix.datasets", "imatrix.chunk_count",
                                        "imatrix.chunk_size"};
    for (size_t i = 0; i < Q_COUNT(names); i++) {
        bytes b = head(3, 0, 2);
        key_str(&b, "general.type", "imatrix");
        if (i == 1) {
            key_array(&b, names[i], Q_META_U32, 1);
            put32(&b, 1);
        } else {
            key_str(&b, names[i], "7");
        }
        refused(save(&b), LQ_E_FORMAT, names[i]);
        free(b.p);
    }
    bytes b = head(3, 0, 4);
    keys(&b);
    refused(save(&b), LQ_E_FORMAT, "without entries");
    free(b.p);
}
END_TEST

static const struct {
    part parts[3];
    uint32_t n;
    lq_status status;
    const char *says;
} broken[] = {
    {{{"x.in_sum2", F32, 1, {4}, {1, 1, 1, 1}}}, 1, LQ_E_INCONSISTENT, "\"x.in_sum2\" has no partner \".counts\""},
    {{{"x.counts", F32, 1, {1}, {1}}}, 1, LQ_E_INCONSISTENT, "\"x.counts\" has no partner \".in_sum2\""},
    {{{"x.in_sum", F32, 1, {4}, {1}}}, 1, LQ_E_INCONSISTENT, "\"x.in_sum\" has no partner \".in_sum2\""},
    {{{"x.in_sum2", F16, 1, {4}, {1}}, {"x.counts", F32, 1, {1}, {1}}}, 2, LQ_E_FORMAT, "\"x.in_sum2\" is f16"},
    {{{"x.in_sum2", F32, 1, {4}, {1}}, {"x.counts", F16, 1, {1}, {1}}}, 2, LQ_E_FORMAT, "\"x.counts\" is f16"},
    {{{"x.in_sum2", F32, 3, {1, 2, 2}, {1}}, {"x.counts", F32, 1, {1}, {1}}}, 2, LQ_E_FORMAT, "3 dimensions"},
    {{{"x.in_sum2", F32, 2, {2, 2}, {1}}, {"x.counts", F32, 1, {2}, {1, 1}}},
     2, LQ_E_INCONSISTENT, "\"x.counts\" is [2, 1], not [1, 2]"},
    {{{"x.in_sum2", F32, 2, {2, 2}, {1}}, {"x.counts", F32, 1, {1}, {1}}}, 2, LQ_E_INCONSISTENT, "not [1, 2]"},
    {{{"x.in_sum2", F32, 1, {2}, {1, -1}}, {"x.counts", F32, 1, {1}, {1}}},
     2, LQ_E_INCONSISTENT, "\"x\": the sum of squares -1 of input 1 is negative"},
    {{{"x.in_sum2", F32, 1, {2}, {NAN, 1}}, {"x.counts", F32, 1, {1}, {1}}},
     2, LQ_E_INCONSISTENT, "input 0 is not finite"},
    {{{"x.in_sum2", F32, 1, {2}, {1, INFINITY}}, {"x.counts", F32, 1, {1}, {1}}}, 2, LQ_E_INCONSISTENT, "not finite"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {-1}}}, 2, LQ_E_INCONSISTENT, "\"x.counts\": -1"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {NAN}}}, 2, LQ_E_INCONSISTENT, "\"x.counts\": nan"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {INFINITY}}},
     2, LQ_E_INCONSISTENT, "\"x.counts\": inf"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {1}}, {"x.in_sum", F32, 1, {3}, {1}}},
     3, LQ_E_INCONSISTENT, "\"x.in_sum\" is [3, 1], not [2, 1]"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {1}}, {"x.covariance", F32, 1, {3}, {1}}},
     3, LQ_E_UNSUPPORTED, "\"x.covariance\""},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {1}}, {"x.hessian", F32, 1, {4}, {1}}},
     3, LQ_E_INCONSISTENT, "\"x.hessian\" is [4, 1], not [3, 1]"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {1}}, {"x.hessian", F32, 2, {2, 2}, {1}}},
     3, LQ_E_INCONSISTENT, "\"x.hessian\" is [2, 2], not [3, 1]"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {1}}, {"x.hessian", F16, 1, {3}, {1}}},
     3, LQ_E_FORMAT, "\"x.hessian\" is f16"},
    {{{"x.in_sum2", F32, 2, {2, 2}, {1, 1, 1, 1}},
      {"x.counts", F32, 2, {1, 2}, {1, 1}},
      {"x.hessian", F32, 1, {3}, {1}}},
     3, LQ_E_UNSUPPORTED, "\"x.hessian\" is for 2 matrices"},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {1}}, {"y.hessian", F32, 1, {3}, {1}}},
     3, LQ_E_INCONSISTENT, "\"y.hessian\" has no partner \".in_sum2\""},
    {{{".in_sum2", F32, 1, {2}, {1, 1}}, {".counts", F32, 1, {1}, {1}}}, 2, LQ_E_UNSUPPORTED, "\".in_sum2\""},
    {{{"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.in_sum2", F32, 1, {2}, {1, 1}}, {"x.counts", F32, 1, {1}, {1}}},
     3, LQ_E_INCONSISTENT, "appears twice"},
};
START_TEST(each_rule_of_the_gguf_form) {
    bytes b = file_of(broken[_i].parts, broken[_i].n);
    refused(save(&b), broken[_i].status, broken[_i].says);
    free(b.p);
}
END_TEST

/* ---- what is refused: imatrix.dat */

START_TEST(numbers_of_a_dat_that_cannot_be) {
    /* The file of dat() with one of its numbers replaced: count, name length, calls, values; the last of them twice. */
    static const struct {
        size_t at;
        int32_t v;
        lq_status status;
        const char *says;
    } cases[] = {
        {0, 0, LQ_E_FORMAT, "neither GGUF nor an imatrix.dat: the number of entries at offset 0 is 0"},
        {0, -1, LQ_E_FORMAT, "the number of entries at offset 0 is -1"},
        {0, 1 << 30, LQ_E_FORMAT, "1073741824"},
        {0, 1 << 20, LQ_E_TRUNCATED, "1048576 entries do not fit"},
        {0, 3, LQ_E_TRUNCATED, "entry 3 of 3"},
        {0, 1, LQ_E_FORMAT, "the length of the text's name"}, /* the second entry taken for the end */
        {4, 0, LQ_E_FORMAT, "entry 1 of 2: the length of its name at offset 4 is 0"},
        {4, -5, LQ_E_FORMAT, "the length of its name at offset 4 is -5"},
        {4, 65536, LQ_E_FORMAT, "65536"},
        {4, 65535, LQ_E_TRUNCATED, "its name: 65535 bytes at offset 8"},
        {16, -1, LQ_E_FORMAT, "its number of calls at offset 16 is -1"},
        {20, 0, LQ_E_FORMAT, "its number of values at offset 20 is 0"},
        {20, -4, LQ_E_FORMAT, "its number of values"},
        {20, INT32_MAX, LQ_E_TRUNCATED, "its values: 8589934588 bytes at offset 24"},
        {8, 0x41, LQ_E_FORMAT, "its name holds a zero byte"},
        {24, (int32_t)0x7FC00000, LQ_E_INCONSISTENT, "\"a.weight\": the sum of squares nan of input 0 is not finite"},
        {28, (int32_t)0xBF800000, LQ_E_INCONSISTENT, "input 1 is negative"},
    };
    bytes b = dat();
    memcpy(b.p + cases[_i].at, &cases[_i].v, 4);
    refused(dat_path(&b), cases[_i].status, cases[_i].says);
    free(b.p);
}
END_TEST
enum { DAT_CASES = 17 };

START_TEST(the_end_of_a_dat) {
    bytes b = dat();
    dat_end(&b, "text");
    put8(&b, 0);
    refused(dat_path(&b), LQ_E_FORMAT, "1 bytes follow the end");
    b.n -= 2;
    refused(dat_path(&b), LQ_E_TRUNCATED, "the text's name: 4 bytes");
    free(b.p);
    b = dat();
    put32(&b, (uint32_t)-1);
    refused(dat_path(&b), LQ_E_FORMAT, "the number of chunks");
    free(b.p);
}
END_TEST

START_TEST(twice_in_a_dat) {
    bytes b = {0};
    put32(&b, 2);
    put_entry(&b, "a.weight", 3, four, 4);
    put_entry(&b, "a.weight", 3, four, 4);
    refused(dat_path(&b), LQ_E_INCONSISTENT, "entry \"a.weight\" appears twice");
    free(b.p);
}
END_TEST

START_TEST(what_is_no_file_of_any_form) {
    bytes b = {0};
    refused(dat_path(&b), LQ_E_TRUNCATED, "neither GGUF nor an imatrix.dat");
    put(&b, "Once upon a time there was a text.", 34);
    refused(dat_path(&b), LQ_E_FORMAT, "neither GGUF nor an imatrix.dat");
    refused(save(&b), LQ_E_FORMAT, "not a GGUF file");
    free(b.p);
    refused(t_tmp(), LQ_E_FORMAT, "");
    refused(tmp_name("none.dat"), LQ_E_IO, "");
    refused(tmp_name("none.gguf"), LQ_E_IO, "");
}
END_TEST

/* ---- faults */

START_TEST(cut_anywhere_it_is_refused_or_the_same) {
    bytes g = file_of(good, 4), d = dat();
    const size_t entries = d.n; /* the end may be missing, or its second half */
    dat_end(&d, "text");
    for (size_t n = 0; n < g.n - 24; n++) { /* up to the padding of the last tensor, which may be missing */
        const bytes part_of = {g.p, n, n};
        q_importance *im;
        ck_assert_msg(q_importance_open(A, NULL, save(&part_of), &im) != LQ_OK, "GGUF cut to %zu bytes", n);
    }
    for (size_t n = 0; n < d.n; n++) {
        const bytes part_of = {d.p, n, n};
        q_importance *im;
        const lq_status s = q_importance_open(A, NULL, dat_path(&part_of), &im);
        ck_assert_msg((s == LQ_OK) == (n == entries || n == entries + 4), "imatrix.dat cut to %zu bytes: %d", n, s);
        if (s == LQ_OK) q_importance_close(im);
    }
    free(g.p);
    free(d.p);
}
END_TEST

START_TEST(every_allocation_may_fail) {
    bytes g = file_of(good, 4), d = dat();
    dat_end(&d, "text");
    const char *paths[] = {save(&g), dat_path(&d)};
    for (size_t i = 0; i < 2; i++) {
        lq_status s = LQ_E_NOMEM;
        uint64_t k = 0;
        while (s != LQ_OK) {
            counter c = {.fail = ++k};
            const q_alloc a = {count_alloc, count_free, &c};
            q_importance *im = NULL;
            s = q_importance_open(&a, NULL, paths[i], &im);
            ck_assert_msg(s == LQ_OK || s == LQ_E_NOMEM, "allocation %d: %s", (int)k, lq_error_detail());
            q_importance_close(im);
            ck_assert_uint_eq(c.live, 0);
        }
        ck_assert_uint_gt(k, 4);
    }
    free(g.p);
    free(d.p);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("importance");
    TCase *t = tcase_create("importance");
    tcase_add_test(t, the_gguf_form_gives_ratios_per_matrix);
    tcase_add_test(t, imatrix_dat_is_read_with_and_without_its_end);
    tcase_add_test(t, what_newer_writers_add_is_left_alone);
    tcase_add_test(t, keys_beside_the_type_may_be_missing);
    tcase_add_test(t, an_entry_without_tokens_is_absent_and_reported);
    tcase_add_test(t, extreme_values_keep_their_ratios);
    tcase_add_test(t, an_entry_of_another_length_is_refused_by_both_numbers);
    tcase_add_test(t, a_model_is_no_importance_file);
    tcase_add_test(t, keys_of_another_type);
    tcase_add_loop_test(t, each_rule_of_the_gguf_form, 0, (int)Q_COUNT(broken));
    tcase_add_loop_test(t, numbers_of_a_dat_that_cannot_be, 0, DAT_CASES);
    tcase_add_test(t, the_end_of_a_dat);
    tcase_add_test(t, twice_in_a_dat);
    tcase_add_test(t, what_is_no_file_of_any_form);
    tcase_add_test(t, cut_anywhere_it_is_refused_or_the_same);
    tcase_add_test(t, every_allocation_may_fail);
    suite_add_tcase(s, t);
    return s;
}

HARNESS_MAIN(suite)
