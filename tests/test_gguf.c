/* test_gguf.c: the GGUF reader against legal and hostile files.
 *
 * Refusals are tried mapped and unmapped, with the sentence checked, nothing left allocated and no more than twice the
 * file and 64 MiB ever taken. Each rule has its case, over helpers that all share: hence more than 800 lines. */
#include "help_gguf.h"

#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* The file is refused with this status, and the sentence contains `words`; nothing stays allocated, and never more than
 * twice the file and 64 MiB were. Frees b. */
static void refused_path(const char *path, size_t size, lq_status want, const char *words) {
    for (int map = 0; map < 2; map++) {
        counter c = {0};
        const q_alloc a = {count_alloc, count_free, &c};
        const q_load_options o = {.alloc = &a, .map = map != 0};
        q_directory *d = (q_directory *)&c;
        const lq_status got = q_directory_open(path, &o, &d);
        ck_assert_msg(got == want, "%s, not %s: %s", lq_status_name(got), lq_status_name(want), lq_error_detail());
        ck_assert_msg(strstr(lq_error_detail(), words) != NULL, "\"%s\" does not say \"%s\"", lq_error_detail(), words);
        ck_assert_ptr_eq(d, &c);
        ck_assert_uint_eq(c.live, 0);
        ck_assert_uint_le(c.peak, 2 * size + (64u << 20));
    }
}
static void refused(bytes *b, lq_status want, const char *words) {
    const char *path = save(b);
    refused_path(path, b->n, want, words);
    ck_assert_msg(strstr(lq_error_detail(), path) != NULL, "\"%s\" does not name the file", lq_error_detail());
    free(b->p);
    *b = (bytes){0};
}
static void accepted(const bytes *b) {
    const char *path = save(b);
    for (int map = 0; map < 2; map++) {
        q_directory *d;
        ck_assert_msg(open_path(path, map != 0, &d) == LQ_OK, "%s", lq_error_detail());
        q_directory_close(d);
    }
}

/* ---------------------------------------------------------------------------------------- legal files */

START_TEST(test_reads_small) {
    bytes b = small(_i == 0 ? 2 : 3);
    const uint64_t data_at = b.n - 134;
    const char *path = save(&b);
    for (int map = 0; map < 2; map++) {
        q_directory *d;
        ck_assert_msg(open_path(path, map != 0, &d) == LQ_OK, "%s", lq_error_detail());
        ck_assert_str_eq(d->container, _i == 0 ? "gguf v2" : "gguf v3");
        ck_assert_str_eq(d->loader->name, "gguf");
        ck_assert_int_eq(d->names, Q_NAMES_GGUF);
        ck_assert_uint_eq(d->n_meta, 4);
        ck_assert_uint_eq(d->n_tensors, 2);
        const q_meta *m = q_directory_meta(d, "general.architecture");
        ck_assert(m && q_str_is(m->s, "llama"));
        m = q_directory_meta(d, "llama.block_count");
        ck_assert(m && m->type == Q_META_U32 && m->u == 2 && m->i == 2 && m->f == 2.0 && m->count == 1);
        m = q_directory_meta(d, "tokenizer.ggml.tokens");
        ck_assert(m && m->count == 3 && q_str_is(m->strs[0], "<s>") && m->strs[1].n == 0 &&
                  q_str_is(m->strs[2], "\xff\xfe"));
        m = q_directory_meta(d, "tokenizer.ggml.scores");
        ck_assert(m && m->item == Q_META_F32 && m->count == 2 && q_bits_f32(q_load32(m->raw + 4)) == -2.0f);
        ck_assert_ptr_null(q_directory_meta(d, "general.architectur"));

        const q_tensor *t = q_directory_tensor(d, q_str_of("b.weight"));
        ck_assert(t && t->format && strcmp(t->format->name, "q8_0") == 0 && strcmp(t->type_name, "q8_0") == 0);
        ck_assert_uint_eq(t->rank, 2);
        ck_assert_uint_eq(t->shape[0], 32);
        ck_assert_uint_eq(t->shape[1], 3);
        ck_assert_uint_eq(t->shape[2], 1);
        ck_assert_uint_eq(t->rows, 3);
        ck_assert_uint_eq(t->row_bytes, 34);
        ck_assert_uint_eq(t->bytes, 102);
        ck_assert_uint_eq(t->offset, data_at + 32);
        ck_assert_int_eq(t->data != NULL, map);
        uint8_t row[34];
        ck_assert_int_eq(q_tensor_read(d, t, 34, row, 34), LQ_OK);
        ck_assert_mem_eq(row, b.p + data_at + 32 + 34, 34);
        ck_assert_int_eq(q_tensor_read(d, t, 69, row, 34), LQ_E_ARG);
        ck_assert_int_eq(q_tensor_read(d, t, UINT64_MAX, row, 34), LQ_E_ARG);
        ck_assert_ptr_null(q_directory_tensor(d, q_str_of("c.weight")));
        q_directory_close(d);
    }
    /* The last tensor's padding may be there or not. */
    align(&b, 32);
    accepted(&b);
    free(b.p);
    q_directory_close(NULL);
}
END_TEST

START_TEST(test_all_meta_types) {
    bytes b = head(3, 0, 15);
    key(&b, "u8", Q_META_U8), put8(&b, 200);
    key(&b, "i8", Q_META_I8), put8(&b, 0x80);
    key(&b, "u16", Q_META_U16), put(&b, "\xff\xff", 2);
    key(&b, "i16", Q_META_I16), put(&b, "\xfe\xff", 2);
    key(&b, "u32", Q_META_U32), put32(&b, UINT32_MAX);
    key(&b, "i32", Q_META_I32), put32(&b, (uint32_t)-7);
    key(&b, "f32", Q_META_F32), put32(&b, q_f32_bits(0.25f));
    key(&b, "bool", Q_META_BOOL), put8(&b, 1);
    key_str(&b, "str", "");
    key_array(&b, "arr", Q_META_I64, 2), put64(&b, 1), put64(&b, UINT64_MAX);
    key(&b, "u64", Q_META_U64), put64(&b, UINT64_MAX);
    key(&b, "i64", Q_META_I64), put64(&b, (uint64_t)INT64_MIN);
    const double half = -0.5;
    key(&b, "f64", Q_META_F64), put(&b, &half, 8);
    key_array(&b, "none", Q_META_STRING, 0);
    key_array(&b, "bools", Q_META_BOOL, 2), put8(&b, 1), put8(&b, 0);
    q_directory *d;
    ck_assert_msg(open_path(save(&b), _i != 0, &d) == LQ_OK, "%s", lq_error_detail());
    static const struct {
        const char *name;
        int64_t i;
        uint64_t u;
        double f;
    } want[] = {{"u8", 200, 200, 200},
                {"i8", -128, (uint64_t)-128, -128},
                {"u16", 65535, 65535, 65535},
                {"i16", -2, (uint64_t)-2, -2},
                {"u32", UINT32_MAX, UINT32_MAX, 4294967295.0},
                {"i32", -7, (uint64_t)-7, -7},
                {"f32", 0, 0, 0.25},
                {"bool", 1, 1, 1},
                {"u64", INT64_MAX, UINT64_MAX, 18446744073709551616.0},
                {"i64", INT64_MIN, (uint64_t)INT64_MIN, -9223372036854775808.0},
                {"f64", 0, 0, -0.5}};
    for (size_t i = 0; i < Q_COUNT(want); i++) {
        const q_meta *m = q_directory_meta(d, want[i].name);
        ck_assert_msg(m && m->i == want[i].i && m->u == want[i].u && m->f == want[i].f, "%s", want[i].name);
    }
    ck_assert_uint_eq(q_load64(q_directory_meta(d, "arr")->raw + 8), UINT64_MAX);
    ck_assert_uint_eq(q_directory_meta(d, "none")->count, 0);
    ck_assert_uint_eq(q_directory_meta(d, "bools")->raw[0], 1);
    q_directory_close(d);
    free(b.p);
}
END_TEST

START_TEST(test_integer_tensors) {
    static const struct {
        uint32_t id, bytes;
        const char *name;
    } types[] = {{24, 1, "i8"}, {25, 2, "i16"}, {26, 4, "i32"}, {27, 8, "i64"}, {28, 8, "f64"}};
    for (size_t i = 0; i < Q_COUNT(types); i++) {
        bytes b = head(3, 1, 0);
        tensor(&b, "ids", 2, (const uint64_t[]){3, 2}, types[i].id, 0);
        align(&b, 32);
        data(&b, 6 * types[i].bytes);
        q_directory *d;
        ck_assert_msg(open_path(save(&b), true, &d) == LQ_OK, "%s", lq_error_detail());
        ck_assert_ptr_null(d->tensors[0].format);
        ck_assert_str_eq(d->tensors[0].type_name, types[i].name);
        ck_assert_uint_eq(d->tensors[0].bytes, 6 * types[i].bytes);
        q_directory_close(d);
        free(b.p);
    }
}
END_TEST

START_TEST(test_no_tensors_and_alignment_key) {
    bytes b = head(3, 0, 0);
    accepted(&b);
    free(b.p);
    /* Alignment 1: no padding anywhere; 64: of data too. */
    b = head(3, 2, 1);
    key_u32(&b, "general.alignment", 1);
    vector(&b, "a", 1, 0);
    vector(&b, "b", 1, 4);
    data(&b, 8);
    accepted(&b);
    free(b.p);
    b = head(3, 2, 1);
    key_u32(&b, "general.alignment", 64);
    vector(&b, "a", 1, 0);
    vector(&b, "b", 1, 64);
    align(&b, 64);
    data(&b, 68);
    accepted(&b);
    q_directory *d;
    ck_assert_int_eq(open_path(save(&b), true, &d), LQ_OK);
    ck_assert_uint_eq(d->tensors[1].offset % 64, 0);
    ck_assert_uint_eq(d->tensors[1].offset, b.n - 4);
    q_directory_close(d);
    free(b.p);
}
END_TEST

/* ---------------------------------------------------------------------------------------- counts */

START_TEST(test_truncated_anywhere) { /* every proper prefix */
    bytes b = small(3);
    for (size_t n = 0; n < b.n; n++) {
        bytes c = copy(&b);
        c.n = n;
        refused(&c, LQ_E_TRUNCATED, "");
    }
    free(b.p);
    b = (bytes){0};
    save_as(&b, tmp_name("empty"));
    refused_path(tmp_name("empty"), 0, LQ_E_TRUNCATED, "empty");
}
END_TEST

START_TEST(test_magic_and_version) {
    static const struct {
        const char *magic, *words;
    } magics[] = {{"tjgg", "GGJT"}, {"lmgg", "GGML"}, {"algg", "GGLA"}, {"GGJT", "GGJT"}, {"ggla", "GGLA"},
                  {"GGUf", "not a GGUF file"}, {"\0\0\0\0", "00 00 00 00"}};
    for (size_t i = 0; i < Q_COUNT(magics); i++) {
        bytes b = small(3);
        memcpy(b.p, magics[i].magic, 4);
        save_as(&b, tmp_name("ggml-model"));
        refused(&b, LQ_E_FORMAT, magics[i].words);
        /* Known without the name too; the rest has no loader. */
        refused_path(tmp_name("ggml-model"), 1 << 12, LQ_E_FORMAT, i < 5 ? magics[i].words : "not a model file");
    }
    static const struct {
        uint32_t version;
        const char *words;
    } versions[] = {{0, "version 0;"}, {1, "version 1;"}, {4, "version 4;"}, {0x03000000, "version 3 in big-endian"}};
    for (size_t i = 0; i < Q_COUNT(versions); i++) {
        bytes b = small(versions[i].version);
        refused(&b, LQ_E_UNSUPPORTED, versions[i].words);
    }
}
END_TEST

START_TEST(test_counts) {
    static const uint64_t counts[] = {(uint64_t)1 << 63, UINT64_MAX, (uint64_t)1 << 32, Q_LIMIT_TENSORS + 1};
    for (size_t i = 0; i < Q_COUNT(counts); i++) {
        bytes b = head(3, counts[i], 0);
        refused(&b, LQ_E_LIMIT, "tensors");
        b = head(3, 0, counts[i]);
        refused(&b, LQ_E_LIMIT, "keys");
        /* The refusal costs nothing. */
        b = head(3, 0, counts[i]);
        counter c = {0};
        const q_alloc a = {count_alloc, count_free, &c};
        const q_load_options o = {.alloc = &a};
        q_directory *d;
        ck_assert_int_eq(q_directory_open(save(&b), &o, &d), LQ_E_LIMIT);
        ck_assert_uint_lt(c.peak, 1 << 16);
        free(b.p);
    }
    /* Counts within the limits that the file cannot hold. */
    bytes b = head(3, 0, 65536);
    refused(&b, LQ_E_TRUNCATED, "key 0");
    b = head(3, Q_LIMIT_TENSORS, 0);
    refused(&b, LQ_E_TRUNCATED, "tensor 0");
}
END_TEST

START_TEST(test_strings) {
    static const uint64_t lengths[] = {UINT64_MAX, (uint64_t)1 << 30, (uint64_t)1 << 63, UINT64_MAX - 7};
    for (size_t i = 0; i < Q_COUNT(lengths); i++) {
        bytes b = head(3, 0, 1);
        put64(&b, lengths[i]);
        data(&b, 128);
        refused(&b, LQ_E_TRUNCATED, "key 0");
        b = head(3, 0, 1);
        key(&b, "general.name", Q_META_STRING);
        put64(&b, lengths[i]);
        data(&b, 96);
        refused(&b, LQ_E_TRUNCATED, "general.name");
        b = head(3, 0, 1);
        key_array(&b, "some.list", Q_META_STRING, 2);
        put_text(&b, "x");
        put64(&b, lengths[i]);
        data(&b, 64);
        refused(&b, LQ_E_TRUNCATED, "some.list\" at offset 24: item 1");
        b = head(3, 1, 0);
        put64(&b, lengths[i]);
        data(&b, 64);
        refused(&b, LQ_E_TRUNCATED, "tensor 0");
    }
    bytes b = head(3, 0, 1);
    key(&b, "general.name", Q_META_STRING);
    put64(&b, Q_LIMIT_STRING + 1);
    const size_t n = b.n;
    data(&b, 8);
    b.p = (uint8_t *)realloc(b.p, n + Q_LIMIT_STRING + 1);
    memset(b.p + n, 'x', Q_LIMIT_STRING + 1);
    b.n = n + Q_LIMIT_STRING + 1;
    refused(&b, LQ_E_LIMIT, "general.name");
}
END_TEST

START_TEST(test_values_and_arrays) {
    bytes b = head(3, 0, 1);
    key(&b, "odd.type", 13), put64(&b, 0);
    refused(&b, LQ_E_FORMAT, "key 0 \"odd.type\" at offset 24: value type 13");
    b = head(3, 0, 1);
    key_array(&b, "nested", Q_META_ARRAY, 1), put64(&b, 0);
    refused(&b, LQ_E_FORMAT, "nested");
    b = head(3, 0, 1);
    key_array(&b, "strange", 255, 1), put64(&b, 0);
    refused(&b, LQ_E_FORMAT, "item type 255");
    static const uint64_t counts[] = {UINT64_MAX, (uint64_t)1 << 61, (uint64_t)1 << 63, Q_LIMIT_ARRAY + 1};
    for (size_t i = 0; i < Q_COUNT(counts); i++) {
        b = head(3, 0, 1);
        key_array(&b, "much", Q_META_F64, counts[i]), put64(&b, 0);
        refused(&b, LQ_E_LIMIT, "much");
    }
    b = head(3, 0, 1);
    key_array(&b, "short", Q_META_F64, Q_LIMIT_ARRAY), put64(&b, 0);
    refused(&b, LQ_E_TRUNCATED, "short");
    b = head(3, 0, 1);
    key_array(&b, "short.strings", Q_META_STRING, Q_LIMIT_ARRAY), put64(&b, 0);
    refused(&b, LQ_E_TRUNCATED, "short.strings");
    b = head(3, 0, 1);
    key(&b, "maybe", Q_META_BOOL), put8(&b, 2);
    refused(&b, LQ_E_FORMAT, "maybe");
    b = head(3, 0, 1);
    key_array(&b, "maybes", Q_META_BOOL, 2), put8(&b, 1), put8(&b, 255);
    refused(&b, LQ_E_FORMAT, "maybes");
}
END_TEST

/* ---------------------------------------------------------------------------------------- keys */

START_TEST(test_duplicate_key) {
    bytes b = head(3, 0, 3);
    key_u32(&b, "one", 1);
    key_u32(&b, "two", 2);
    key_u32(&b, "one", 1);
    refused(&b, LQ_E_INCONSISTENT, "key \"one\" appears twice");
    b = head(3, 0, Q_LIMIT_KEYS);
    for (uint32_t i = 0; i < Q_LIMIT_KEYS; i++) {
        char name[64];
        snprintf(name, sizeof name, "a.rather.long.common.prefix.of.all.keys.%08u", i);
        key_u32(&b, name, i);
    }
    q_directory *d;
    ck_assert_msg(open_path(save(&b), false, &d) == LQ_OK, "%s", lq_error_detail());
    ck_assert_uint_eq(q_directory_meta(d, "a.rather.long.common.prefix.of.all.keys.00065535")->u, 65535);
    q_directory_close(d);
    free(b.p);
}
END_TEST

START_TEST(test_million_tensors) {
    bytes b = head(3, Q_LIMIT_TENSORS, 1);
    char name[32];
    key_u32(&b, "general.alignment", 4);
    size_t last = 0;
    for (uint32_t i = 0; i < Q_LIMIT_TENSORS; i++) {
        snprintf(name, sizeof name, "blk.%07u", i);
        last = b.n;
        vector(&b, name, 1, 4 * (uint64_t)i);
    }
    align(&b, 4);
    b.p = (uint8_t *)realloc(b.p, b.n + 4u * Q_LIMIT_TENSORS);
    memset(b.p + b.n, 0, 4u * Q_LIMIT_TENSORS);
    b.n += 4u * Q_LIMIT_TENSORS;
    b.cap = b.n;
    q_directory *d;
    ck_assert_msg(open_path(save(&b), true, &d) == LQ_OK, "%s", lq_error_detail());
    for (uint32_t i = 0; i < Q_LIMIT_TENSORS; i++) {
        snprintf(name, sizeof name, "blk.%07u", i);
        const q_tensor *t = q_directory_tensor(d, q_str_of(name));
        ck_assert(t == &d->tensors[i]);
    }
    q_directory_close(d);
    memcpy(b.p + last + 8, "blk.0000000", 11);
    ck_assert_int_eq(open_path(save(&b), true, &d), LQ_E_INCONSISTENT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "blk.0000000"));
    free(b.p);
}
END_TEST

START_TEST(test_names) {
    static const struct {
        const char *name;
        size_t n;
        const char *words;
    } bad[] = {{"", 0, "empty"},
               {"a\0b", 3, "zero byte"},
               {"abc\x80", 4, "byte 3 of \"abc\""},
               {"\xc0\xaf", 2, "not UTF-8"},         /* overlong */
               {"\xe0\x80\xaf", 3, "not UTF-8"},     /* overlong */
               {"\xed\xa0\x80", 3, "not UTF-8"},     /* surrogate */
               {"\xf4\x90\x80\x80", 4, "not UTF-8"}, /* above the last code point */
               {"\xe2\x82", 2, "not UTF-8"},         /* cut short */
               {"\xf0\x9f\x98x", 4, "not UTF-8"},
               {"\xff", 1, "not UTF-8"}};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        bytes b = head(3, 0, 2);
        key_u32(&b, "first", 1);
        put64(&b, bad[i].n), put(&b, bad[i].name, bad[i].n), put32(&b, Q_META_U32), put32(&b, 1);
        refused(&b, LQ_E_FORMAT, bad[i].words);
        ck_assert_ptr_nonnull(strstr(lq_error_detail(), "key 1"));
        b = head(3, 1, 0);
        put64(&b, bad[i].n), put(&b, bad[i].name, bad[i].n);
        put32(&b, 1), put64(&b, 1), put32(&b, 0), put64(&b, 0);
        align(&b, 32), data(&b, 32);
        refused(&b, LQ_E_FORMAT, bad[i].words);
        ck_assert_ptr_nonnull(strstr(lq_error_detail(), "tensor 0"));
    }
    bytes b = head(3, 0, 1);
    key_u32(&b, "schl\xc3\xbcssel.\xe2\x82\xac.\xf0\x9f\x98\x80", 1);
    accepted(&b);
    free(b.p);
    for (uint64_t n = 65535; n <= 65536; n++) {
        b = head(3, 0, 1);
        put64(&b, n);
        for (uint64_t i = 0; i < n; i++) put8(&b, 'k');
        put32(&b, Q_META_U8), put8(&b, 0);
        if (n == 65535) accepted(&b), free(b.p);
        else refused(&b, LQ_E_FORMAT, "65536 bytes");
    }
}
END_TEST

START_TEST(test_alignment) {
    static const uint32_t bad[] = {0, 3, 1u << 30, 131072, UINT32_MAX};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        bytes b = head(3, 0, 1);
        key_u32(&b, "general.alignment", bad[i]);
        refused(&b, LQ_E_FORMAT, "general.alignment");
    }
    bytes b = head(3, 0, 1);
    key(&b, "general.alignment", Q_META_U64), put64(&b, 32);
    refused(&b, LQ_E_FORMAT, "general.alignment");
    b = head(3, 0, 1);
    key_str(&b, "general.alignment", "32");
    refused(&b, LQ_E_FORMAT, "general.alignment");
    b = head(3, 0, 1);
    key_array(&b, "general.alignment", Q_META_U32, 1), put32(&b, 32);
    refused(&b, LQ_E_FORMAT, "general.alignment");
}
END_TEST

/* ---------------------------------------------------------------------------------------- tensors */

/* A file with one tensor of this shape and type, and 4 KiB of data. */
static bytes one_tensor(uint32_t rank, const uint64_t *dims, uint32_t type, uint64_t offset) {
    bytes b = head(3, 1, 0);
    tensor(&b, "the.weight", rank, dims, type, offset);
    align(&b, 32);
    data(&b, 4096);
    return b;
}

START_TEST(test_shapes) {
    const uint64_t ones[8] = {1, 1, 1, 1, 1, 1, 1, 1}, big = (uint64_t)1 << 32;
    static const uint32_t ranks[] = {0, 5, UINT32_MAX};
    for (size_t i = 0; i < Q_COUNT(ranks); i++) {
        bytes b = one_tensor(ranks[i], ones, 0, 0);
        refused(&b, LQ_E_FORMAT, "the.weight\" described at offset 24");
    }
    const struct {
        uint64_t d[4];
        uint32_t rank, type;
        const char *words;
    } bad[] = {{{0, 1}, 2, 0, "dimension 0 is zero"},
               {{4, 0}, 2, 0, "dimension 1 is zero"},
               {{UINT64_MAX}, 1, 0, "dimension 0 is negative"},
               {{4, (uint64_t)1 << 63}, 2, 0, "dimension 1 is negative"},
               {{big, big}, 2, 0, "overflows"},                 /* the product is exactly 2^64 = 0 */
               {{4, ((uint64_t)1 << 62) + 1}, 2, 0, "overflows"}, /* wraps to 4 */
               {{big / 4, big / 4, big}, 3, 0, "overflows"},
               {{(uint64_t)1 << 62}, 1, 0, "overflows"}, /* fits as a count, not in bytes */
               {{1 << 20, (uint64_t)1 << 40}, 2, 28, "size in bytes overflows"}, /* each row fits */
               {{33, 2}, 2, 8, "multiple of the 32"},
               {{128, 2}, 2, 12, "multiple of the 256"}};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        bytes b = one_tensor(bad[i].rank, bad[i].d, bad[i].type, 0);
        refused(&b, LQ_E_FORMAT, bad[i].words);
        ck_assert_ptr_nonnull(strstr(lq_error_detail(), "the.weight"));
    }
    /* 2^42 + 1 rows: no overflow, but the file does not have them. */
    bytes b = one_tensor(2, (const uint64_t[]){4, ((uint64_t)1 << 42) + 1}, 0, 0);
    refused(&b, LQ_E_TRUNCATED, "the.weight");
}
END_TEST

START_TEST(test_types) {
    static const struct {
        uint32_t id;
        const char *words;
    } bad[] = {{4, "q4_2"},   {5, "q4_3"},      {31, "q4_0_4_4"}, {19, "iq1_s"},  {29, "iq1_m"},
               {16, "iq2_xxs"}, {22, "iq2_s"},  {9, "q8_1"},      {255, "255"},   {UINT32_MAX, "4294967295"},
               {7000, "7000"}};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        bytes b = one_tensor(1, (const uint64_t[]){256}, bad[i].id, 0);
        refused(&b, LQ_E_UNSUPPORTED, bad[i].words);
        ck_assert_ptr_nonnull(strstr(lq_error_detail(), "the.weight"));
    }
}
END_TEST

static bytes two_tensors(uint64_t first, uint64_t second, size_t n) {
    bytes b = head(3, 2, 0);
    vector(&b, "one", 16, first);
    vector(&b, "two", 16, second);
    align(&b, 32);
    data(&b, n);
    return b;
}

static unsigned warnings;
static void on_log(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    Q_UNUSED(message);
    warnings += level == LQ_LOG_WARN;
}

START_TEST(test_offsets) {
    bytes b = two_tensors(0, 64, 128);
    accepted(&b);
    free(b.p);
    static const struct {
        uint64_t first, second;
        const char *words;
    } bad[] = {{0, 65, "two"},          {0, 4, "not a multiple"},     {0, 32, "overlaps"},
               {64, 0, "one"},          {0, 0, "overlaps"},           {0, 96, "32 unused bytes"},
               {32, 96, "unused bytes"}, {0, (uint64_t)1 << 40, "two"}, {0, UINT64_MAX - 31, "two"}};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        b = two_tensors(bad[i].first, bad[i].second, 256);
        refused(&b, LQ_E_FORMAT, bad[i].words);
    }
    b = two_tensors(0, 64, 128 + 4096);
    refused(&b, LQ_E_FORMAT, "4096 unused bytes follow the last tensor");

    /* With the flag gaps are accepted with a warning; the rest is not. */
    const q_log log = {on_log, NULL};
    const q_load_options o = {.alloc = &q_alloc_libc, .log = &log, .allow_gaps = true};
    q_directory *d;
    b = two_tensors(32, 160, 512);
    ck_assert_msg(q_directory_open(save(&b), &o, &d) == LQ_OK, "%s", lq_error_detail());
    ck_assert_uint_eq(warnings, 1);
    ck_assert_uint_eq(d->tensors[1].offset - d->tensors[0].offset, 128);
    q_directory_close(d);
    free(b.p);
    b = two_tensors(0, 32, 512);
    ck_assert_int_eq(q_directory_open(save(&b), &o, &d), LQ_E_FORMAT);
    free(b.p);
    b = two_tensors(0, UINT64_MAX - 31, 512);
    ck_assert_int_eq(q_directory_open(save(&b), &o, &d), LQ_E_FORMAT);
    free(b.p);
    b = two_tensors(0, 1024, 512);
    ck_assert_int_eq(q_directory_open(save(&b), &o, &d), LQ_E_TRUNCATED);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "two"));
    free(b.p);
}
END_TEST

START_TEST(test_short_data) {
    static const size_t cut[] = {1, 34, 4096};
    for (size_t i = 0; i < Q_COUNT(cut); i++) {
        bytes b = head(3, 2, 0);
        tensor(&b, "first", 2, (const uint64_t[]){32, 160}, 8, 0);
        tensor(&b, "second", 2, (const uint64_t[]){32, 160}, 8, 5440);
        align(&b, 32);
        data(&b, 5440 * 2 - cut[i]);
        refused(&b, LQ_E_TRUNCATED, "tensor 1 \"second\"");
    }
}
END_TEST

START_TEST(test_changed_under_us) {
    bytes b = small(3);
    const char *path = save(&b);
    q_directory *d;
    uint8_t row[34];
    ck_assert_int_eq(open_path(path, false, &d), LQ_OK);
    const q_tensor *t = q_directory_tensor(d, q_str_of("b.weight"));
    ck_assert_int_eq(q_file_unchanged(d->files[0]), LQ_OK);
    ck_assert_int_eq(truncate(path, (off_t)b.n - 40), 0);
    ck_assert_int_eq(q_tensor_read(d, t, 68, row, 34), LQ_E_IO);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "b.weight"));
    ck_assert_int_eq(q_file_unchanged(d->files[0]), LQ_E_IO);
    q_directory_close(d);
    /* Replaced by another file of the same content. */
    save_as(&b, path);
    ck_assert_int_eq(open_path(path, false, &d), LQ_OK);
    save_as(&b, tmp_name("other"));
    ck_assert_int_eq(rename(tmp_name("other"), path), 0);
    ck_assert_int_eq(q_file_unchanged(d->files[0]), LQ_E_IO);
    q_directory_close(d);
    free(b.p);
}
END_TEST

/* ---------------------------------------------------------------------------------------- split sets */

/* Shard `no` of `count`: two keys of the model, three of the set, one tensor called `name`. */
static void save_shard(uint32_t file, uint32_t no, uint32_t count, uint32_t total, const char *arch, const char *name) {
    bytes b = head(3, 1, 5);
    key_str(&b, "general.architecture", arch);
    key(&b, "split.no", Q_META_U16), put(&b, &no, 2);
    key(&b, "split.count", Q_META_U16), put(&b, &count, 2);
    key(&b, "split.tensors.count", Q_META_I32), put32(&b, total);
    key_u32(&b, "llama.block_count", 3);
    vector(&b, name, 4, 0);
    align(&b, 32);
    data(&b, 16);
    b.p[b.n - 1] = (uint8_t)no;
    char path[64];
    snprintf(path, sizeof path, "m-%05u-of-00003.gguf", file);
    save_as(&b, tmp_name(path));
    free(b.p);
}
static void save_set(void) {
    save_shard(1, 0, 3, 3, "llama", "zero");
    save_shard(2, 1, 3, 3, "llama", "one");
    save_shard(3, 2, 3, 3, "llama", "two");
}
static void refused_set(lq_status want, const char *words) {
    refused_path(tmp_name("m-00002-of-00003.gguf"), 4096, want, words);
}

START_TEST(test_split_set) {
    save_set();
    for (int i = 0; i < 3; i++) {
        char path[64];
        snprintf(path, sizeof path, "m-%05d-of-00003.gguf", i + 1);
        q_directory *d;
        ck_assert_msg(open_path(tmp_name(path), i != 1, &d) == LQ_OK, "%s", lq_error_detail());
        ck_assert_uint_eq(d->n_files, 3);
        ck_assert_uint_eq(d->n_tensors, 3);
        ck_assert_uint_eq(d->n_meta, 2); /* the set's own keys are gone */
        ck_assert_ptr_nonnull(q_directory_meta(d, "llama.block_count"));
        ck_assert_ptr_null(q_directory_meta(d, "split.count"));
        const q_tensor *t = q_directory_tensor(d, q_str_of("two"));
        ck_assert(t && t->file == 2 && t == &d->tensors[2]);
        uint8_t last;
        ck_assert_int_eq(q_tensor_read(d, t, 15, &last, 1), LQ_OK);
        ck_assert_uint_eq(last, 2);
        q_directory_close(d);
    }
}
END_TEST

/* Shard `no` of 2 with two arrays, of numbers and of strings; `number` and `word` are their last items. */
static void save_shard_with_arrays(uint32_t no, uint32_t number, const char *word) {
    bytes b = head(3, 1, 4);
    key_u32(&b, "split.no", no);
    key_u32(&b, "split.count", 2);
    key_array(&b, "numbers", Q_META_U32, 2), put32(&b, 5), put32(&b, number);
    key_array(&b, "words", Q_META_STRING, 2), put_text(&b, "a"), put_text(&b, word);
    vector(&b, no ? "one" : "zero", 4, 0);
    align(&b, 32);
    data(&b, 16);
    save_as(&b, tmp_name(no ? "a-00002-of-00002.gguf" : "a-00001-of-00002.gguf"));
    free(b.p);
}

/* Shards of one model agree in every item of every array. */
START_TEST(test_split_set_arrays) {
    char path[4096];
    snprintf(path, sizeof path, "%s", tmp_name("a-00001-of-00002.gguf"));
    save_shard_with_arrays(0, 6, "b");
    save_shard_with_arrays(1, 6, "b");
    q_directory *d;
    ck_assert_msg(open_path(path, true, &d) == LQ_OK, "%s", lq_error_detail());
    q_directory_close(d);
    save_shard_with_arrays(1, 7, "b");
    refused_path(path, 4096, LQ_E_INCONSISTENT, "key \"numbers\" differs from the first shard");
    save_shard_with_arrays(1, 6, "c");
    refused_path(path, 4096, LQ_E_INCONSISTENT, "key \"words\" differs from the first shard");
}
END_TEST

START_TEST(test_split_set_refused) {
    save_set();
    ck_assert_int_eq(unlink(tmp_name("m-00003-of-00003.gguf")), 0);
    refused_set(LQ_E_IO, "m-00003-of-00003.gguf");
    save_set();
    save_shard(3, 2, 4, 3, "llama", "two");
    refused_set(LQ_E_INCONSISTENT, "shard 3 of 4, not 3 of 3");
    save_set();
    save_shard(3, 1, 3, 3, "llama", "two");
    refused_set(LQ_E_INCONSISTENT, "m-00003-of-00003.gguf says it is shard 2");
    save_set();
    save_shard(2, 2, 3, 3, "llama", "one");
    refused_set(LQ_E_INCONSISTENT, "contradict its name");
    save_set();
    save_shard(2, 1, 2, 3, "llama", "one");
    refused_set(LQ_E_INCONSISTENT, "contradict its name");
    save_set();
    save_shard(3, 2, 3, 3, "llama", "zero");
    refused_set(LQ_E_INCONSISTENT, "tensor \"zero\" appears twice");
    save_set();
    save_shard(3, 2, 3, 3, "gemma", "two");
    refused_set(LQ_E_INCONSISTENT, "key \"general.architecture\" differs");
    save_set();
    save_shard(3, 2, 3, 4, "llama", "two");
    refused_set(LQ_E_INCONSISTENT, "split.tensors.count");
    save_shard(1, 0, 2000, 3, "llama", "zero");
    refused_path(tmp_name("m-00001-of-00003.gguf"), 4096, LQ_E_LIMIT, "2000 shards");
    /* A shard under a name that does not lead to the others. */
    save_set();
    ck_assert_int_eq(rename(tmp_name("m-00002-of-00003.gguf"), tmp_name("renamed.gguf")), 0);
    refused_path(tmp_name("renamed.gguf"), 4096, LQ_E_INCONSISTENT, "NAME-00002-of-00003.gguf");
    /* A number beyond the count, which would lie outside the set. */
    save_shard(5, 4, 3, 3, "llama", "one");
    refused_path(tmp_name("m-00005-of-00003.gguf"), 4096, LQ_E_INCONSISTENT, "contradict its name");
}
END_TEST

/* ---------------------------------------------------------------------------------------- what is no file */

START_TEST(test_no_model_there) {
    char path[4096];
    refused_path(tmp_name("nothing.gguf"), 0, LQ_E_IO, "nothing.gguf");
    q_directory *d;
    ck_assert_int_eq(open_path("", true, &d), LQ_E_ARG);
    ck_assert_int_eq(open_path(NULL, true, &d), LQ_E_ARG);
    ck_assert_int_eq(mkdir(tmp_name("folder.gguf"), 0777), 0);
    refused_path(tmp_name("folder.gguf"), 0, LQ_E_FORMAT, "config.json");
    t_path(path, sizeof path, tmp_name("folder.gguf"), "pytorch_model.bin");
    bytes b = {0};
    put(&b, "PK\3\4", 4);
    save_as(&b, path);
    refused_path(tmp_name("folder.gguf"), 0, LQ_E_UNSUPPORTED, "pickle");
    refused_path(path, 0, LQ_E_UNSUPPORTED, "pickle");
    save_as(&b, tmp_name("zip"));
    refused_path(tmp_name("zip"), 0, LQ_E_UNSUPPORTED, "pickle");
    memcpy(b.p, "\x80\x02}q", 4);
    save_as(&b, tmp_name("weights"));
    refused_path(tmp_name("weights"), 0, LQ_E_UNSUPPORTED, "pickle");
    free(b.p);
    ck_assert_int_eq(mkfifo(tmp_name("fifo.gguf"), 0666), 0);
    refused_path(tmp_name("fifo.gguf"), 0, LQ_E_FORMAT, "a FIFO");
    refused_path("/dev/zero", 0, LQ_E_FORMAT, "a device");
    ck_assert_int_eq(symlink("loop.gguf", tmp_name("loop.gguf")), 0);
    refused_path(tmp_name("loop.gguf"), 0, LQ_E_IO, "loop.gguf");
    const int s = socket(AF_UNIX, SOCK_STREAM, 0);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%.90s/s.gguf", t_tmp());
    if (s >= 0 && bind(s, (const struct sockaddr *)&address, sizeof address) == 0)
        refused_path(address.sun_path, 0, LQ_E_FORMAT, "a socket");
    close(s);
}
END_TEST

START_TEST(test_huge_sparse_file) {
    if (T_TSAN) T_SKIP("ThreadSanitizer leaves no room to map 3 TiB");
    if (t_emulated()) T_SKIP("an emulator keeps a note of every page of 3 TiB");
    bytes b = small(3);
    const char *path = save(&b);
    free(b.p);
    if (truncate(path, (off_t)3 << 40) != 0) T_SKIP("no sparse files of 3 TiB here");
    refused_path(path, 0, LQ_E_FORMAT, "unused bytes follow");
    b = (bytes){0};
    put(&b, "GGUF\3\0\0\0", 8);
    path = save(&b);
    ck_assert_int_eq(truncate(path, (off_t)3 << 40), 0);
    refused_path(path, 0, LQ_E_FORMAT, "unused bytes follow"); /* zero keys, zero tensors, and 3 TiB */
    unlink(path);
    free(b.p);
}
END_TEST

/* ---------------------------------------------------------------------------------------- no memory */

START_TEST(test_every_allocation_fails) {
    save_set();
    for (int map = 0; map < 2; map++)
        for (uint64_t k = 1;; k++) {
            counter c = {.fail = k};
            const q_alloc a = {count_alloc, count_free, &c};
            const q_load_options o = {.alloc = &a, .map = map != 0};
            q_directory *d;
            const lq_status status = q_directory_open(tmp_name("m-00002-of-00003.gguf"), &o, &d);
            if (status == LQ_OK) q_directory_close(d);
            else ck_assert_int_eq(status, LQ_E_NOMEM);
            ck_assert_uint_eq(c.live, 0);
            if (c.calls < k) break; /* it never came to call k */
            ck_assert_int_eq(status, LQ_E_NOMEM);
        }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("gguf");
    TCase *c = tcase_create("reader");
    tcase_set_timeout(c, 120);
    tcase_add_loop_test(c, test_reads_small, 0, 2);
    tcase_add_loop_test(c, test_all_meta_types, 0, 2);
    tcase_add_test(c, test_integer_tensors);
    tcase_add_test(c, test_no_tensors_and_alignment_key);
    tcase_add_test(c, test_truncated_anywhere);
    tcase_add_test(c, test_magic_and_version);
    tcase_add_test(c, test_counts);
    tcase_add_test(c, test_strings);
    tcase_add_test(c, test_values_and_arrays);
    tcase_add_test(c, test_duplicate_key);
    tcase_add_test(c, test_million_tensors);
    tcase_add_test(c, test_names);
    tcase_add_test(c, test_alignment);
    tcase_add_test(c, test_shapes);
    tcase_add_test(c, test_types);
    tcase_add_test(c, test_offsets);
    tcase_add_test(c, test_short_data);
    tcase_add_test(c, test_changed_under_us);
    tcase_add_test(c, test_split_set);
    tcase_add_test(c, test_split_set_arrays);
    tcase_add_test(c, test_split_set_refused);
    tcase_add_test(c, test_no_model_there);
    tcase_add_test(c, test_huge_sparse_file);
    tcase_add_test(c, test_every_allocation_fails);
    suite_add_tcase(s, c);
    return s;
}

HARNESS_MAIN(suite)
