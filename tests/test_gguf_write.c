/* test_gguf_write.c: the GGUF writer: what it writes is read back the same, and what it cannot write leaves nothing. */
#include "help_gguf.h"

/* Every format that GGUF has and every integer type, a few rows each. */
static uint32_t all_tensors(q_out_tensor *t, char (*names)[32]) {
    static const char *const integers[] = {"i8", "i16", "i32", "i64", "f64"};
    uint32_t n = 0;
    for (uint32_t i = 0; i < q_format_count() + Q_COUNT(integers); i++) {
        const bool format = i < q_format_count();
        if (format && q_format_gguf_ids[i] < 0) continue;
        t[n] = (q_out_tensor){.rank = 1 + n % 4};
        if (format) t[n].format = q_formats[i];
        else t[n].type_name = integers[i - q_format_count()];
        for (uint32_t k = 0; k < 8; k++) t[n].shape[k] = k < t[n].rank ? k + 1 : 1;
        t[n].shape[0] = format && q_formats[i]->weights > 1 ? 512 : 7;
        snprintf(names[n], sizeof names[n], "t%u.%s", n, format ? q_formats[i]->name : t[n].type_name);
        t[n].name = q_str_of(names[n]);
        n++;
    }
    return n;
}

static uint64_t bytes_of(const q_out_tensor *t) {
    static const struct {
        const char *name;
        uint64_t n;
    } sizes[] = {{"i8", 1}, {"i16", 2}, {"i32", 4}, {"i64", 8}, {"f64", 8}};
    uint64_t n = 0;
    if (t->format) ck_assert(q_row_bytes(t->format, t->shape[0], &n));
    for (size_t i = 0; !t->format && i < Q_COUNT(sizes); i++)
        if (strcmp(sizes[i].name, t->type_name) == 0) n = t->shape[0] * sizes[i].n;
    for (uint32_t i = 1; i < t->rank; i++) n *= t->shape[i];
    return n;
}

static uint32_t all_meta(q_meta *m) {
    static const q_str strs[] = {{"a", 1}, {"", 0}, {"\xff", 1}};
    static const uint8_t raw[8] = {1, 2, 3, 4, 5, 6, 7, 8};
    uint32_t n = 0;
    m[n++] = (q_meta){.key = q_str_of("u8"), .type = Q_META_U8, .count = 1, .i = 200, .u = 200, .f = 200};
    m[n++] = (q_meta){.key = q_str_of("i8"), .type = Q_META_I8, .count = 1, .i = -5, .u = (uint64_t)-5, .f = -5};
    m[n++] = (q_meta){.key = q_str_of("u16"), .type = Q_META_U16, .count = 1, .i = 60000, .u = 60000, .f = 60000};
    m[n++] = (q_meta){.key = q_str_of("i16"), .type = Q_META_I16, .count = 1, .i = -2, .u = (uint64_t)-2, .f = -2};
    m[n++] = (q_meta){.key = q_str_of("u32"), .type = Q_META_U32, .count = 1, .i = 1, .u = 1, .f = 1};
    m[n++] = (q_meta){.key = q_str_of("i32"), .type = Q_META_I32, .count = 1, .i = -1, .u = UINT64_MAX, .f = -1};
    m[n++] = (q_meta){.key = q_str_of("f32"), .type = Q_META_F32, .count = 1, .f = 1.5};
    m[n++] = (q_meta){.key = q_str_of("bool"), .type = Q_META_BOOL, .count = 1, .i = 1, .u = 1, .f = 1};
    m[n++] = (q_meta){.key = q_str_of("str"), .type = Q_META_STRING, .count = 1, .s = q_str_of("text")};
    m[n++] = (q_meta){
        .key = q_str_of("strs"), .type = Q_META_ARRAY, .item = Q_META_STRING, .count = 3, .strs = strs};
    m[n++] = (q_meta){.key = q_str_of("raw"), .type = Q_META_ARRAY, .item = Q_META_U16, .count = 4, .raw = raw};
    m[n++] = (q_meta){.key = q_str_of("nil"), .type = Q_META_ARRAY, .item = Q_META_F64, .count = 0};
    m[n++] = (q_meta){
        .key = q_str_of("u64"), .type = Q_META_U64, .count = 1, .i = INT64_MAX, .u = UINT64_MAX, .f = 0x1p64};
    m[n++] = (q_meta){.key = q_str_of("i64"),
                      .type = Q_META_I64,
                      .count = 1,
                      .i = INT64_MIN,
                      .u = (uint64_t)INT64_MIN,
                      .f = -0x1p63};
    m[n++] = (q_meta){.key = q_str_of("f64"), .type = Q_META_F64, .count = 1, .f = 0.1};
    return n;
}

static void write_tensors(q_writer *w, const q_out_tensor *t, uint32_t n, uint64_t piece) {
    bytes all = {0};
    for (uint32_t i = 0; i < n; i++)
        for (uint64_t k = 0; k < bytes_of(&t[i]); k++) put8(&all, (uint8_t)(k * 3 + i));
    for (uint64_t at = 0; at < all.n; at += piece)
        ck_assert_msg(q_writer_gguf.write(w, all.p + at, Q_MIN(piece, all.n - at)) == LQ_OK, "%s", lq_error_detail());
    free(all.p);
}

static bytes slurp(const char *path) {
    bytes b = {0};
    uint64_t n;
    uint8_t *p;
    ck_assert_msg(q_file_slurp(&q_alloc_libc, path, 1 << 30, &p, &n) == LQ_OK, "%s", lq_error_detail());
    put(&b, p, n);
    q_delete(&q_alloc_libc, p);
    return b;
}

START_TEST(test_write_read) {
    static const uint32_t alignments[] = {0, 1, 32, 1024};
    q_meta m[32];
    q_out_tensor t[64];
    char names[64][32];
    uint32_t n_meta = all_meta(m);
    const uint32_t n = all_tensors(t, names), alignment = alignments[_i];
    if (alignment)
        m[n_meta++] = (q_meta){.key = q_str_of("general.alignment"),
                               .type = Q_META_U32,
                               .count = 1,
                               .i = alignment,
                               .u = alignment,
                               .f = alignment};
    uint64_t size;
    ck_assert_int_eq(q_writer_gguf.measure(m, n_meta, t, n, &size), LQ_OK);
    bytes first = {0};
    unlink(tmp_name("out.gguf"));
    static const uint64_t pieces[] = {1, 97, 1 << 20};
    for (size_t p = 0; p < Q_COUNT(pieces); p++) {
        q_writer *w;
        const char *path = tmp_name("out.gguf");
        ck_assert_msg(q_writer_gguf.open(&q_alloc_libc, path, p > 0, m, n_meta, t, n, &w) == LQ_OK, "%s",
                      lq_error_detail());
        ck_assert_int_eq(kind_of(path), p ? Q_PATH_FILE : Q_PATH_NONE);
        write_tensors(w, t, n, pieces[p]);
        ck_assert_msg(q_writer_gguf.commit(w, NULL) == LQ_OK, "%s", lq_error_detail());
        ck_assert_int_eq(kind_of(tmp_name(".out.gguf.lq-tmp")), Q_PATH_NONE);
        bytes b = slurp(path);
        ck_assert_uint_eq(b.n, size);
        ck_assert_uint_eq(b.n % (alignment ? alignment : 32), 0);
        if (p) { /* the pieces leave no trace */
            ck_assert_uint_eq(b.n, first.n);
            ck_assert_mem_eq(b.p, first.p, b.n);
            free(b.p);
        } else {
            first = b;
        }
    }
    free(first.p);
    q_directory *d;
    ck_assert_msg(open_path(tmp_name("out.gguf"), true, &d) == LQ_OK, "%s", lq_error_detail());
    ck_assert_uint_eq(d->n_meta, n_meta);
    for (uint32_t i = 0; i < n_meta; i++) {
        const q_meta *r = &d->meta[i];
        ck_assert(q_str_eq(r->key, m[i].key) && r->type == m[i].type && r->item == m[i].item && r->count == m[i].count);
        ck_assert(r->i == m[i].i && r->u == m[i].u && r->f == m[i].f && q_str_eq(r->s, m[i].s));
        for (uint64_t k = 0; m[i].strs && k < m[i].count; k++) ck_assert(q_str_eq(r->strs[k], m[i].strs[k]));
        if (m[i].raw) ck_assert_mem_eq(r->raw, m[i].raw, 8);
    }
    ck_assert_uint_eq(d->n_tensors, n);
    for (uint32_t i = 0; i < n; i++) {
        const q_tensor *r = &d->tensors[i];
        ck_assert(q_str_eq(r->name, t[i].name) && r->format == t[i].format && r->rank == t[i].rank);
        ck_assert_mem_eq(r->shape, t[i].shape, sizeof r->shape);
        ck_assert_uint_eq(r->bytes, bytes_of(&t[i]));
        for (uint64_t k = 0; k < r->bytes; k++) ck_assert_uint_eq(r->data[k], (uint8_t)(k * 3 + i));
    }
    q_directory_close(d);
}
END_TEST

/* The same keys and tensors as small(), written: byte for byte the file that was built by hand, padding included. */
START_TEST(test_write_bytes) {
    bytes b = small(3);
    align(&b, 32);
    q_directory *d;
    ck_assert_int_eq(open_path(save(&b), false, &d), LQ_OK);
    q_out_tensor t[2];
    for (uint32_t i = 0; i < 2; i++) {
        t[i] = (q_out_tensor){.name = d->tensors[i].name, .format = d->tensors[i].format, .rank = d->tensors[i].rank};
        memcpy(t[i].shape, d->tensors[i].shape, sizeof t[i].shape);
    }
    q_writer *w;
    ck_assert_int_eq(q_writer_gguf.open(&q_alloc_libc, tmp_name("again.gguf"), false, d->meta, d->n_meta, t, 2, &w),
                     LQ_OK);
    for (uint32_t i = 0; i < 2; i++) {
        uint8_t buf[256];
        ck_assert_int_eq(q_tensor_read(d, &d->tensors[i], 0, buf, d->tensors[i].bytes), LQ_OK);
        ck_assert_int_eq(q_writer_gguf.write(w, buf, d->tensors[i].bytes), LQ_OK);
    }
    ck_assert_msg(q_writer_gguf.commit(w, NULL) == LQ_OK, "%s", lq_error_detail());
    q_directory_close(d);
    bytes again = slurp(tmp_name("again.gguf"));
    ck_assert_uint_eq(again.n, b.n);
    ck_assert_mem_eq(again.p, b.p, b.n);
    free(again.p);
    free(b.p);
}
END_TEST

static void not_writable(const q_meta *m, uint32_t n_meta, const q_out_tensor *t, uint32_t n, lq_status want,
                         const char *words) {
    counter c = {0};
    const q_alloc a = {count_alloc, count_free, &c};
    q_writer *w;
    const lq_status got = q_writer_gguf.open(&a, tmp_name("no.gguf"), false, m, n_meta, t, n, &w);
    ck_assert_msg(got == want, "%s: %s", lq_status_name(got), lq_error_detail());
    ck_assert_msg(strstr(lq_error_detail(), words) != NULL, "\"%s\" does not say \"%s\"", lq_error_detail(), words);
    ck_assert_uint_eq(c.live, 0);
    ck_assert_int_eq(kind_of(tmp_name("no.gguf")), Q_PATH_NONE);
    ck_assert_int_eq(kind_of(tmp_name(".no.gguf.lq-tmp")), Q_PATH_NONE);
}

START_TEST(test_writer_refuses) {
    const q_format *f32 = q_format_find("f32"), *q8 = q_format_find("q8_0"), *nf4 = q_format_find("nf4");
    q_out_tensor t = {.name = q_str_of("w"), .format = f32, .rank = 1, .shape = {4, 1, 1, 1, 1, 1, 1, 1}};
    q_out_tensor two[2] = {t, t};
    not_writable(NULL, 0, two, 2, LQ_E_INCONSISTENT, "tensor \"w\"");
    two[0].name = q_str_of("");
    not_writable(NULL, 0, two, 2, LQ_E_FORMAT, "empty");
    two[0] = t, two[0].format = nf4, two[0].shape[0] = 64;
    not_writable(NULL, 0, two, 1, LQ_E_UNSUPPORTED, "nf4");
    two[0] = t, two[0].format = q8;
    not_writable(NULL, 0, two, 1, LQ_E_ARG, "multiple of the block");
    two[0] = t, two[0].rank = 5;
    not_writable(NULL, 0, two, 1, LQ_E_UNSUPPORTED, "5 dimensions");
    two[0] = t, two[0].shape[0] = 0;
    not_writable(NULL, 0, two, 1, LQ_E_ARG, "zero");
    two[0] = t, two[0].shape[0] = (uint64_t)1 << 62;
    not_writable(NULL, 0, two, 1, LQ_E_ARG, "overflows");
    two[0] = t, two[0].rank = 2, two[0].shape[0] = 1 << 20, two[0].shape[1] = 1 << 30; /* legal, but no disk has it */
    not_writable(NULL, 0, two, 1, LQ_E_IO, "no.gguf");
    q_meta m[2] = {{.key = q_str_of("k"), .type = Q_META_U8, .count = 1, .i = 1, .u = 1, .f = 1}};
    m[1] = m[0];
    not_writable(m, 2, NULL, 0, LQ_E_INCONSISTENT, "key \"k\"");
    m[0].u = 2;
    not_writable(m, 1, NULL, 0, LQ_E_ARG, "\"k\"");
    m[0].u = 256, m[0].i = 256;
    not_writable(m, 1, NULL, 0, LQ_E_ARG, "\"k\"");
    m[0] = m[1], m[0].type = Q_META_I8, m[0].i = -129, m[0].u = (uint64_t)-129;
    not_writable(m, 1, NULL, 0, LQ_E_ARG, "\"k\"");
    m[0] = m[1], m[0].key = q_str_of("general.alignment");
    not_writable(m, 1, NULL, 0, LQ_E_ARG, "general.alignment");
    m[0] = m[1], m[0].key = q_str_of("split.count"), m[0].i = 3, m[0].u = 3;
    not_writable(m, 1, NULL, 0, LQ_E_UNSUPPORTED, "split");
}
END_TEST

START_TEST(test_writer_incomplete) {
    q_out_tensor t = {.name = q_str_of("w"),
                      .format = q_format_find("f32"),
                      .rank = 1,
                      .shape = {4, 1, 1, 1, 1, 1, 1, 1}};
    const char *path = tmp_name("half.gguf");
    q_writer *w;
    const uint8_t zeros[16] = {0};
    ck_assert_int_eq(q_writer_gguf.open(&q_alloc_libc, path, false, NULL, 0, &t, 1, &w), LQ_OK);
    ck_assert_int_eq(q_writer_gguf.write(w, zeros, 15), LQ_OK);
    ck_assert_int_eq(q_writer_gguf.commit(w, NULL), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "1 of its bytes"));
    ck_assert_int_eq(kind_of(path), Q_PATH_NONE);
    ck_assert_int_eq(kind_of(tmp_name(".half.gguf.lq-tmp")), Q_PATH_NONE);
    ck_assert_int_eq(q_writer_gguf.open(&q_alloc_libc, path, false, NULL, 0, &t, 1, &w), LQ_OK);
    ck_assert_int_eq(q_writer_gguf.write(w, zeros, 16), LQ_OK);
    ck_assert_int_eq(q_writer_gguf.write(w, zeros, 1), LQ_E_ARG);
    q_writer_gguf.discard(w);
    q_writer_gguf.discard(NULL);
    ck_assert_int_eq(kind_of(path), Q_PATH_NONE);
    ck_assert_int_eq(kind_of(tmp_name(".half.gguf.lq-tmp")), Q_PATH_NONE);
}
END_TEST

/* What changes on the disk between writing and commit is found, byte by byte. */
START_TEST(test_writer_reads_back) {
    static const long places[] = {10, 33, 100, -1, -20};
    q_out_tensor t = {.name = q_str_of("weight"),
                      .format = q_format_find("f32"),
                      .rank = 1,
                      .shape = {1000, 1, 1, 1, 1, 1, 1, 1}};
    q_writer *w;
    const char *path = tmp_name("spoilt.gguf");
    ck_assert_int_eq(q_writer_gguf.open(&q_alloc_libc, path, false, NULL, 0, &t, 1, &w), LQ_OK);
    write_tensors(w, &t, 1, 4096);
    FILE *f = fopen(tmp_name(".spoilt.gguf.lq-tmp"), "r+b");
    ck_assert_ptr_nonnull(f);
    fseek(f, places[_i], places[_i] < 0 ? SEEK_END : SEEK_SET);
    const int byte = fgetc(f);
    fseek(f, -1, SEEK_CUR);
    fputc(byte ^ 1, f);
    fclose(f);
    ck_assert_int_eq(q_writer_gguf.commit(w, NULL), LQ_E_IO); /* the disk is at fault, not the file's format */
    ck_assert_int_eq(kind_of(path), Q_PATH_NONE);
    ck_assert_int_eq(kind_of(tmp_name(".spoilt.gguf.lq-tmp")), Q_PATH_NONE);
}
END_TEST

/* The same of a file of several pieces, which threads read side by side: bytes in the first, in the middle and in the
 * last one; _i 0 leaves them alone, and the last time two pieces change places. */
START_TEST(test_threads_read_back) {
    static const long places[] = {0, 40, 300000, 524288, -1, 0};
    enum { PIECE = 1 << 18, WEIGHTS = 300000 };
    static uint8_t data[WEIGHTS * 4], piece[2][PIECE];
    q_out_tensor t = {.name = q_str_of("weight"),
                      .format = q_format_find("f32"),
                      .rank = 1,
                      .shape = {WEIGHTS, 1, 1, 1, 1, 1, 1, 1}};
    uint64_t seed = 5 + (uint64_t)_i;
    q_writer *w;
    q_pool *pool;
    const char *path = tmp_name("threads.gguf");
    ck_assert_int_eq(q_path_remove(path), LQ_OK);
    for (size_t i = 0; i < sizeof data; i++) data[i] = (uint8_t)t_rand(&seed);
    ck_assert_int_eq(q_writer_gguf.open(&q_alloc_libc, path, true, NULL, 0, &t, 1, &w), LQ_OK);
    for (size_t at = 0, n; at < sizeof data; at += n) {
        n = (size_t)(t_rand(&seed) % 400000);
        n = Q_MIN(sizeof data - at, n);
        ck_assert_int_eq(q_writer_gguf.write(w, data + at, n), LQ_OK);
    }
    FILE *f = fopen(tmp_name(".threads.gguf.lq-tmp"), "r+b");
    ck_assert_ptr_nonnull(f);
    if (_i == 5) {
        fseek(f, PIECE, SEEK_SET);
        ck_assert_uint_eq(fread(piece, PIECE, 2, f), 2);
        fseek(f, PIECE, SEEK_SET);
        ck_assert(fwrite(piece[1], PIECE, 1, f) == 1 && fwrite(piece[0], PIECE, 1, f) == 1);
    } else if (_i > 0) {
        fseek(f, places[_i], places[_i] < 0 ? SEEK_END : SEEK_SET);
        const int byte = fgetc(f);
        fseek(f, -1, SEEK_CUR);
        fputc(byte ^ 64, f);
    }
    fclose(f);
    ck_assert_int_eq(q_pool_open(&q_alloc_libc, 3, &pool), LQ_OK);
    ck_assert_int_eq(q_writer_gguf.commit(w, pool), _i ? LQ_E_IO : LQ_OK);
    ck_assert_int_eq(kind_of(path), _i ? Q_PATH_NONE : Q_PATH_FILE);
    q_pool_close(pool);
}
END_TEST

START_TEST(test_every_allocation_fails) {
    q_out_tensor t = {.name = q_str_of("w"),
                      .format = q_format_find("f32"),
                      .rank = 1,
                      .shape = {4, 1, 1, 1, 1, 1, 1, 1}};
    for (uint64_t k = 1;; k++) {
        counter c = {.fail = k};
        const q_alloc a = {count_alloc, count_free, &c};
        q_writer *w;
        lq_status status = q_writer_gguf.open(&a, tmp_name("mem.gguf"), true, NULL, 0, &t, 1, &w);
        if (status == LQ_OK) {
            ck_assert_int_eq(q_writer_gguf.write(w, "0123456789abcdef", 16), LQ_OK);
            status = q_writer_gguf.commit(w, NULL);
        }
        ck_assert_uint_eq(c.live, 0);
        ck_assert_int_eq(kind_of(tmp_name(".mem.gguf.lq-tmp")), Q_PATH_NONE);
        if (c.calls < k) break;
        ck_assert_int_eq(status, LQ_E_NOMEM);
    }
    ck_assert_int_eq(kind_of(tmp_name("mem.gguf")), Q_PATH_FILE);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("gguf_write");
    TCase *c = tcase_create("writer");
    tcase_add_loop_test(c, test_threads_read_back, 0, 6);
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, test_write_read, 0, 4);
    tcase_add_test(c, test_write_bytes);
    tcase_add_test(c, test_writer_refuses);
    tcase_add_test(c, test_writer_incomplete);
    tcase_add_loop_test(c, test_writer_reads_back, 0, 5);
    tcase_add_test(c, test_every_allocation_fails);
    suite_add_tcase(s, c);
    return s;
}

HARNESS_MAIN(suite)
