/* test_safetensors.c: Hugging Face directories: what opens, what is read from it, and what every bad one gets.
 *
 * Directories are made below t_tmp() from texts in this file; the bundled model is read as it is, against hashes that
 * an independent reader computed. Each case asserts the code and that the sentence names what was at fault. */
#include "harness.h"

#include <sys/stat.h>
#include <unistd.h>

#include "../libquant/loader.h"

extern const q_loader q_loader_safetensors;
#define CONFIG "{\"architectures\":[\"LlamaForCausalLM\"]}"

/* -------------------------------------------------------------------------------------------- making directories */

static char dir_path[512];

/* A fresh directory; its path is also in dir_path. */
static const char *make_dir(void) {
    static int count;
    snprintf(dir_path, sizeof dir_path, "%s/st-%d-%d", t_tmp(), (int)getpid(), count++);
    ck_assert_int_eq(mkdir(dir_path, 0700), 0);
    return dir_path;
}

static void put_bytes(const char *name, const void *data, size_t n) {
    char path[1024];
    FILE *f = fopen(t_path(path, sizeof path, dir_path, name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}
static void put_text(const char *name, const char *text) { put_bytes(name, text, strlen(text)); }

/* A container: the length, `n` bytes of header, and `data` bytes counting up from 0. */
static void put_container_n(const char *name, const char *header, size_t n, size_t data) {
    uint8_t *b = (uint8_t *)calloc(1, 8 + n + data);
    const uint64_t length = n;
    memcpy(b, &length, 8);
    memcpy(b + 8, header, n);
    for (size_t i = 0; i < data; i++) b[8 + n + i] = (uint8_t)i;
    put_bytes(name, b, 8 + n + data);
    free(b);
}
static void put_container(const char *name, const char *header, size_t data) {
    put_container_n(name, header, strlen(header), data);
}

static lq_status open_path(const char *path, bool map, q_directory **dir) {
    const q_load_options o = {.alloc = &q_alloc_libc, .map = map};
    return q_directory_open(path, &o, dir);
}

/* The path is refused with this code, mapped or not, and each of the words is in the sentence. */
static void refused(const char *path, lq_status code, const char *word, const char *word2) {
    for (int map = 0; map < 2; map++) {
        q_directory *dir = (q_directory *)&code;
        const lq_status s = open_path(path, map, &dir);
        ck_assert_msg(s == code, "%s: %s instead of %s: %s", word, lq_status_name(s), lq_status_name(code),
                      lq_error_detail());
        ck_assert_ptr_eq(dir, &code);
        ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "no '%s' in: %s", word, lq_error_detail());
        ck_assert_msg(!word2 || strstr(lq_error_detail(), word2), "no '%s' in: %s", word2, lq_error_detail());
    }
}

/* A directory of a config and one container with this header is refused. */
static void header_refused(const char *header, size_t data, lq_status code, const char *word, const char *word2) {
    make_dir();
    put_text("config.json", CONFIG);
    put_container("model.safetensors", header, data);
    refused(dir_path, code, word, word2);
}

static void config_refused(const char *config, lq_status code, const char *word) {
    make_dir();
    put_text("config.json", config);
    put_container("model.safetensors", "{}", 0);
    refused(dir_path, code, word, "config.json");
}

/* ------------------------------------------------------------------------------------------------ what opens */

static const char *pocket(char *buf, size_t n) { return t_path(buf, n, t_root(), "bench/data/pocket"); }

/* The hash of a tensor's bytes, through q_tensor_read in uneven pieces. */
static uint64_t tensor_hash(const q_directory *dir, const q_tensor *t) {
    uint8_t *b = (uint8_t *)malloc(t->bytes);
    for (uint64_t at = 0; at < t->bytes; at += 1013)
        ck_assert_int_eq(q_tensor_read(dir, t, at, b + at, Q_MIN((uint64_t)1013, t->bytes - at)), LQ_OK);
    if (t->data) ck_assert_int_eq(memcmp(t->data, b, t->bytes), 0);
    const uint64_t h = q_fnv64(b, t->bytes);
    free(b);
    return h;
}

static const struct golden {
    const char *name;
    uint32_t rank;
    uint64_t k, rows, offset, hash;
    float first[4];
} goldens[] = {
    {"model.norm.weight", 1, 256, 1, 11546560, 0xf590412df467e620u, {2.28125f, 2.078125f, 2.12109375f, 2.2734375f}},
    {"model.layers.0.input_layernorm.weight", 1, 256, 1, 2103232, 0xdb19ac61f3b70dc9u,
     {0.2198486328125f, 0.2479248046875f, 0.31494140625f, 0.413818359375f}},
    {"model.layers.3.self_attn.k_proj.weight", 2, 256, 128, 6956480, 0x90d50a86e233d5bbu,
     {-0.029510498046875f, 0.01171875f, 0.021148681640625f, -0.0645751953125f}},
    {"model.layers.5.mlp.down_proj.weight", 2, 768, 256, 11153344, 0x2212d0088ef30db0u,
     {0.11273193359375f, -0.022918701171875f, 0.068603515625f, -0.0006690025329589844f}},
};

START_TEST(test_pocket_tensors) {
    char path[1024];
    for (int map = 0; map < 2; map++) {
        q_directory *dir;
        ck_assert_int_eq(open_path(pocket(path, sizeof path), map, &dir), LQ_OK);
        ck_assert_str_eq(dir->container, "huggingface");
        ck_assert_int_eq(dir->names, Q_NAMES_HF);
        ck_assert_uint_eq(dir->n_tensors, 57);
        uint64_t end = 8 + 6072;
        for (uint32_t i = 0; i < dir->n_tensors; i++) {
            ck_assert_uint_eq(dir->tensors[i].offset, end); /* file order, no gaps */
            end += dir->tensors[i].bytes;
            ck_assert_int_eq(dir->tensors[i].data != NULL, map);
        }
        ck_assert_uint_eq(end, 13644224);
        for (size_t i = 0; i < Q_COUNT(goldens); i++) {
            const struct golden *g = &goldens[i];
            const q_tensor *t = q_directory_tensor(dir, q_str_of(g->name));
            ck_assert_ptr_nonnull(t);
            ck_assert_str_eq(t->type_name, "f16");
            ck_assert_str_eq(t->format->name, "f16");
            ck_assert_uint_eq(t->rank, g->rank);
            ck_assert_uint_eq(t->shape[0], g->k);
            ck_assert_uint_eq(t->shape[1], g->rows);
            ck_assert_uint_eq(t->shape[2], 1);
            ck_assert_uint_eq(t->rows, g->rows);
            ck_assert_uint_eq(t->row_bytes, 2 * g->k);
            ck_assert_uint_eq(t->offset, g->offset);
            ck_assert_uint_eq(tensor_hash(dir, t), g->hash);
            uint16_t h[4];
            ck_assert_int_eq(q_tensor_read(dir, t, 0, h, sizeof h), LQ_OK);
            for (int j = 0; j < 4; j++) ck_assert_float_eq(q_half_to_f32(h[j]), g->first[j]);
        }
        ck_assert_ptr_null(q_directory_tensor(dir, q_str_of("model.layers.6.mlp.up_proj.weight")));
        q_directory_close(dir);
    }
}
END_TEST

START_TEST(test_pocket_meta) {
    char path[1024];
    q_directory *dir;
    ck_assert_int_eq(open_path(pocket(path, sizeof path), true, &dir), LQ_OK);
    const q_meta *m = q_directory_meta(dir, "hidden_size");
    ck_assert_int_eq(m->type, Q_META_U64);
    ck_assert_int_eq(m->i, 256);
    ck_assert_double_eq(m->f, 256);
    m = q_directory_meta(dir, "rope_theta"); /* 10000.0 is not an integer */
    ck_assert_int_eq(m->type, Q_META_F64);
    ck_assert_double_eq(m->f, 10000);
    m = q_directory_meta(dir, "architectures");
    ck_assert_int_eq(m->type, Q_META_ARRAY);
    ck_assert_int_eq(m->item, Q_META_STRING);
    ck_assert_uint_eq(m->count, 1);
    ck_assert(q_str_is(m->strs[0], "LlamaForCausalLM"));
    m = q_directory_meta(dir, "tie_word_embeddings");
    ck_assert_int_eq(m->type, Q_META_BOOL);
    ck_assert_int_eq(m->i, 0);
    ck_assert(q_str_is(q_directory_meta(dir, "tokenizer_config.eos_token")->s, "</s>"));
    ck_assert_int_eq(q_directory_meta(dir, "tokenizer_config.add_bos_token")->i, 1);
    ck_assert_ptr_null(q_directory_meta(dir, "tokenizer_config"));
    ck_assert(q_str_is(dir->tokenizer_file, "tokenizer.model"));
    ck_assert_uint_eq(dir->tokenizer_bytes, 59829);
    ck_assert_uint_eq(q_fnv64(dir->tokenizer, dir->tokenizer_bytes), 0x14b620e47a8df323u);
    q_directory_close(dir);
}
END_TEST

/* The container's own path opens the directory that it belongs to. */
START_TEST(test_file_path) {
    char path[1024];
    q_directory *dir;
    t_path(path, sizeof path, t_root(), "bench/data/pocket/model.safetensors");
    ck_assert_int_eq(open_path(path, true, &dir), LQ_OK);
    ck_assert_uint_eq(dir->n_tensors, 57);
    ck_assert_ptr_nonnull(q_directory_meta(dir, "hidden_size"));
    q_directory_close(dir);

    make_dir();
    put_container("lone.safetensors", "{}", 0);
    refused(t_path(path, sizeof path, dir_path, "lone.safetensors"), LQ_E_FORMAT, "lone.safetensors", "config.json");
    put_text("config.json", CONFIG); /* with a configuration, any name will do */
    ck_assert_int_eq(open_path(path, false, &dir), LQ_OK);
    q_directory_close(dir);
    put_container("model.safetensors", "{}", 0); /* but not beside the directory's proper weights */
    refused(path, LQ_E_ARG, "lone.safetensors", NULL);
}
END_TEST

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," #end "]}"

/* Types, empty tensors, scalars, escapes, fields in any order, a header out of file order, padding. */
START_TEST(test_kinds) {
    make_dir();
    put_text("config.json", CONFIG);
    put_container("model.safetensors",
                  "{" T("c", "BF16", "2,1,3", 14, 26) ",\"__metadata__\":{\"format\":\"pt\",\"\":\"\"},"
                  T("a", "F32", "3", 0, 12) "," T("s", "I16", "", 12, 14) ","
                  "\"\\u0065mpty\\ud83d\\ude00\":{\"data_offsets\":[26,26],\"shape\":[5,0],\"dtype\":\"F16\"},"
                  T("i", "I64", "1", 26, 34) "," T("b", "BOOL", "2", 34, 36) "}   \n", 36);
    q_directory *dir;
    ck_assert_int_eq(open_path(dir_path, true, &dir), LQ_OK);
    static const char *const order[] = {"a", "s", "c", "empty\xF0\x9F\x98\x80", "i", "b"};
    static const uint64_t bytes[] = {12, 2, 12, 0, 8, 2};
    ck_assert_uint_eq(dir->n_tensors, 6);
    for (uint32_t i = 0; i < 6; i++) {
        ck_assert(q_str_is(dir->tensors[i].name, order[i]));
        ck_assert_uint_eq(dir->tensors[i].bytes, bytes[i]);
    }
    const q_tensor *t = dir->tensors;
    ck_assert_str_eq(t[0].format->name, "f32");
    ck_assert_uint_eq(t[1].rank, 0);
    ck_assert_ptr_null(t[1].format);
    ck_assert_str_eq(t[1].type_name, "i16");
    ck_assert_str_eq(t[2].format->name, "bf16");
    ck_assert_uint_eq(t[2].shape[0], 3);
    ck_assert_uint_eq(t[2].shape[1], 1);
    ck_assert_uint_eq(t[2].shape[2], 2);
    ck_assert_uint_eq(t[2].rows, 2);
    ck_assert_uint_eq(t[2].data[0], 14);
    ck_assert_uint_eq(t[3].shape[0], 0);
    ck_assert_uint_eq(t[3].shape[1], 5);
    ck_assert_ptr_null(t[4].format);
    ck_assert_str_eq(t[5].type_name, "bool");
    q_directory_close(dir);
}
END_TEST

START_TEST(test_meta_values) {
    make_dir();
    put_text("config.json",
             " {\"n\":-3,\"big\":9007199254740993,\"x\":1e3,\"none\":null,\"o\":{\"p\":{\"q\":\"\\u00e9\"},\"e\":{}},"
             "\"u\":[1,2],\"i\":[1,-2],\"f\":[1,2.5],\"b\":[true,false],\"s\":[\"a\",\"b\"],\"z\":[],"
             "\"m\":[{\"k\":1},null,[2,3]],\"quantization\":{\"quant_method\":\"gptq\",\"bits\":4}}\n");
    put_text("tokenizer_config.json",
             "{\"model_max_length\":1000000000000000019884624838656,\"list\":[1],"
             "\"bos_token\":{\"content\":\"<s>\",\"special\":true}}");
    put_text("generation_config.json", "not looked at");
    put_container("model.safetensors", "{}", 0);
    q_directory *dir;
    ck_assert_int_eq(open_path(dir_path, false, &dir), LQ_OK);
    const q_meta *m = q_directory_meta(dir, "n");
    ck_assert_int_eq(m->type, Q_META_I64);
    ck_assert_int_eq(m->i, -3);
    m = q_directory_meta(dir, "big"); /* 2^53 + 1 is not rounded */
    ck_assert_int_eq(m->type, Q_META_U64);
    ck_assert_uint_eq(m->u, 9007199254740993u);
    ck_assert_int_eq(q_directory_meta(dir, "x")->type, Q_META_F64);
    ck_assert_ptr_null(q_directory_meta(dir, "none"));
    ck_assert(q_str_is(q_directory_meta(dir, "o.p.q")->s, "\xC3\xA9"));
    const struct {
        const char *key;
        q_meta_type item;
        uint64_t count;
    } arrays[] = {{"u", Q_META_U64, 2}, {"i", Q_META_I64, 2}, {"f", Q_META_F64, 2}, {"b", Q_META_BOOL, 2},
                  {"s", Q_META_STRING, 2}, {"z", Q_META_STRING, 0}, {"m.2", Q_META_U64, 2}};
    for (size_t i = 0; i < Q_COUNT(arrays); i++) {
        m = q_directory_meta(dir, arrays[i].key);
        ck_assert_msg(m && m->type == Q_META_ARRAY, "%s", arrays[i].key);
        ck_assert_int_eq(m->item, arrays[i].item);
        ck_assert_uint_eq(m->count, arrays[i].count);
    }
    ck_assert_int_eq((int64_t)q_load64(q_directory_meta(dir, "i")->raw + 8), -2);
    double f;
    memcpy(&f, q_directory_meta(dir, "f")->raw + 8, 8);
    ck_assert_double_eq(f, 2.5);
    ck_assert_uint_eq(q_directory_meta(dir, "b")->raw[0], 1);
    ck_assert(q_str_is(q_directory_meta(dir, "s")->strs[1], "b"));
    ck_assert_int_eq(q_directory_meta(dir, "m.0.k")->i, 1);
    ck_assert_ptr_null(q_directory_meta(dir, "m.1"));
    ck_assert(q_str_is(q_directory_meta(dir, "quantization.quant_method")->s, "gptq"));
    m = q_directory_meta(dir, "tokenizer_config.model_max_length");
    ck_assert_int_eq(m->type, Q_META_F64);
    ck_assert_double_eq_tol(m->f / 1e30, 1.0, 1e-15);
    ck_assert_ptr_null(q_directory_meta(dir, "tokenizer_config.list"));
    ck_assert(q_str_is(q_directory_meta(dir, "tokenizer_config.bos_token.content")->s, "<s>"));
    ck_assert_uint_eq(dir->tokenizer_file.n, 0);
    ck_assert_ptr_null(dir->tokenizer);
    q_directory_close(dir);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ bad containers */

START_TEST(test_header_length) {
    const struct {
        uint64_t length, size; /* size of the whole file */
        lq_status code;
        const char *word;
    } cases[] = {
        {0, 0, LQ_E_TRUNCATED, "0 bytes"},
        {0, 7, LQ_E_TRUNCATED, "7 bytes"},
        {0, 8, LQ_E_TRUNCATED, "length"},
        {0, 64, LQ_E_TRUNCATED, "length"},
        {UINT64_MAX, 64, LQ_E_LIMIT, "18446744073709551615"},
        {100000001, 64, LQ_E_LIMIT, "100000001"},
        {57, 64, LQ_E_TRUNCATED, "57"},
        {56, 64, LQ_E_FORMAT, "'{'"},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        uint8_t b[64] = {0};
        memcpy(b, &cases[i].length, 8);
        make_dir();
        put_text("config.json", CONFIG);
        put_bytes("model.safetensors", b, cases[i].size);
        refused(dir_path, cases[i].code, cases[i].word, "model.safetensors");
    }
}
END_TEST

START_TEST(test_header_json) {
    const struct {
        const char *header, *word;
    } cases[] = {
        {" {}", "'{'"},
        {"[]", "'{'"},
        {"\xEF\xBB\xBF{}", "'{'"},
        {"{}x", "byte 10"},
        {"{}{}", "byte 10"},
        {"{\"a\"", "':' is expected"},
        {"{,}", "byte 9"},
        {"{\"a\":1}", "tensor 'a'"},
        {"{\"a\":{},}", "tensor 'a'"},
        {"{" T("a", "F32", "1", 0, 4) ",}", "a string is expected"},
        {"{" T("a", "F32", "1", 0, 4) " " T("b", "F32", "0", 4, 4) "}", "',' is expected"},
        {"{\"\xFF\":{}}", "invalid UTF-8"},
        {"{\"\xC0\x80\":{}}", "invalid UTF-8"},
        {"{\"\xED\xA0\x80\":{}}", "invalid UTF-8"},
        {"{\"\xF4\x90\x80\x80\":{}}", "invalid UTF-8"},
        {"{\"\xE2\x82\":{}}", "invalid UTF-8"},
        {"{\"\\ud800\":{}}", "lone surrogate"},
        {"{\"\\udc00\\ud800\":{}}", "lone surrogate"},
        {"{\"\\ud800\\u0041\":{}}", "lone surrogate"},
        {"{\"\\u0000\":{}}", "NUL"},
        {"{\"\\x41\":{}}", "escape"},
        {"{\"\\u12g4\":{}}", "escape"},
        {"{\"a\nb\":{}}", "control character"},
        {"{\"abc", "does not end"},
        {"{\"abc\\", "ends inside a string"},
        {"{\"\":{}}", "empty name"},
        {"{" T("a", "F32", "1", 0, 4) "," T("a", "F32", "0", 4, 4) "}", "\"a\" appears twice"},
        {"{" T("a", "F32", "1", 0, 4) "," T("\\u0061", "F32", "0", 4, 4) "}", "\"a\" appears twice"},
        {"{\"__metadata__\":{},\"__metadata__\":{}," T("a", "F32", "1", 0, 4) "}", "__metadata__"},
        {"{\"__metadata__\":{\"k\":\"1\",\"\\u006b\":\"2\"}," T("a", "F32", "1", 0, 4) "}", "\"k\" appears twice"},
        {"{\"__metadata__\":{\"k\":1}," T("a", "F32", "1", 0, 4) "}", "__metadata__"},
        {"{\"__metadata__\":{\"k\":{}}," T("a", "F32", "1", 0, 4) "}", "__metadata__"},
        {"{\"__metadata__\":[]," T("a", "F32", "1", 0, 4) "}", "__metadata__"},
        {"{" T("a", "F32", "1e0", 0, 4) "}", "tensor 'a'"},
        {"{" T("a", "F32", "1.0", 0, 4) "}", "plain unsigned"},
        {"{" T("a", "F32", "1", -0, 4) "}", "-0"},
        {"{" T("a", "F32", "-1", 0, 4) "}", "plain unsigned"},
        {"{" T("a", "F32", "01", 0, 4) "}", "begins with 0"},
        {"{" T("a", "F32", "18446744073709551616", 0, 4) "}", "plain unsigned"},
        {"{" T("a", "F32", "+1", 0, 4) "}", "value is expected"},
        {"{" T("a", "F32", "\\\"1\\\"", 0, 4) "}", "value is expected"},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++)
        header_refused(cases[i].header, 4, LQ_E_FORMAT, cases[i].word, "model.safetensors");

    make_dir(); /* a raw NUL, between values and in a string */
    put_text("config.json", CONFIG);
    put_container_n("model.safetensors", "{}\0\0\0\0\0\0", 8, 0);
    refused(dir_path, LQ_E_FORMAT, "byte 10", "model.safetensors");
    put_container_n("model.safetensors", "{\"a\0b\":{}}", 10, 0);
    refused(dir_path, LQ_E_FORMAT, "control character", "model.safetensors");
}
END_TEST

START_TEST(test_entries) {
    const struct {
        const char *header;
        lq_status code;
        const char *word;
    } cases[] = {
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1]}}", LQ_E_FORMAT, "'data_offsets' is missing"},
        {"{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", LQ_E_FORMAT, "'shape' is missing"},
        {"{\"t\":{\"shape\":[1],\"data_offsets\":[0,4]}}", LQ_E_FORMAT, "'dtype' is missing"},
        {"{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", LQ_E_FORMAT,
         "duplicate"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"more\":1}}", LQ_E_FORMAT, "'more'"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0]}}", LQ_E_FORMAT, "','"},
        {"{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,8]}}", LQ_E_FORMAT, "']'"},
        {"{\"t\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", LQ_E_FORMAT, "string"},
        {"{" T("t", "F32", "2", 0, 4) "}", LQ_E_FORMAT, "need 8"},
        {"{" T("t", "F16", "1", 0, 4) "}", LQ_E_FORMAT, "need 2"},
        {"{" T("t", "F32", "1,0", 0, 4) "}", LQ_E_FORMAT, "need 0"},
        {"{" T("t", "F32", "4294967296,4294967296", 0, 4) "}", LQ_E_FORMAT, "overflow"},
        {"{" T("t", "F32", "4611686018427387905", 0, 4) "}", LQ_E_FORMAT, "overflow"}, /* x 4 = 4 again */
        {"{" T("t", "F32", "4294967296,4294967296,0", 0, 0) "}", LQ_E_FORMAT, "overflow"},
        {"{" T("t", "F32", "1,1,1,1,1,1,1,1,1", 0, 4) "}", LQ_E_LIMIT, "8 dimensions"},
        {"{" T("t", "F8_E5M2", "4", 0, 4) "}", LQ_E_UNSUPPORTED, "F8_E5M2"},
        {"{" T("t", "F8_E8M0", "4", 0, 4) "}", LQ_E_UNSUPPORTED, "F8_E8M0"},
        {"{" T("t", "F4", "8", 0, 4) "}", LQ_E_UNSUPPORTED, "F4"},
        {"{" T("t", "f32", "1", 0, 4) "}", LQ_E_UNSUPPORTED, "f32"},
        {"{" T("t", "", "1", 0, 4) "}", LQ_E_UNSUPPORTED, "''"},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++)
        header_refused(cases[i].header, 4, cases[i].code, cases[i].word, "tensor 't'");
}
END_TEST

START_TEST(test_layout) {
    const struct {
        const char *header;
        size_t data;
        lq_status code;
        const char *word;
    } cases[] = {
        {"{" T("t", "F32", "1", 4, 0) "}", 4, LQ_E_FORMAT, "reversed"},
        {"{" T("u", "F32", "1", 0, 4) "," T("t", "F32", "1", 0, 4) "}", 4, LQ_E_FORMAT, "overlap"},
        {"{" T("t", "F32", "2", 0, 8) "," T("u", "F32", "1", 4, 8) "}", 8, LQ_E_FORMAT, "overlap"},
        {"{" T("t", "F32", "1", 4, 8) "}", 8, LQ_E_FORMAT, "4 unused bytes"},
        {"{" T("u", "F32", "1", 0, 4) "," T("t", "F32", "1", 5, 9) "}", 9, LQ_E_FORMAT, "1 unused bytes"},
        {"{" T("t", "F32", "1", 0, 4) "}", 5, LQ_E_FORMAT, "1 bytes after the last tensor"},
        {"{}", 4096, LQ_E_FORMAT, "4096 bytes after the last tensor"},
        {"{" T("t", "F32", "1", 4096, 4100) "}", 4, LQ_E_FORMAT, "tensor 't'"}, /* beyond the file */
        {"{" T("t", "U8", "4", 18446744073709551611, 18446744073709551615) "}", 4, LQ_E_FORMAT, "tensor 't'"},
        /* cut short */
        {"{" T("u", "F32", "1", 0, 4) "," T("t", "F32", "2", 4, 12) "}", 11, LQ_E_TRUNCATED, "tensor 't'"},
        {"{" T("t", "U8", "1152921504606846976", 0, 1152921504606846976) "}", 4, LQ_E_TRUNCATED, "tensor 't'"},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++)
        header_refused(cases[i].header, cases[i].data, cases[i].code, cases[i].word, "model.safetensors");
}
END_TEST

/* Twenty thousand tensors in the worst order are sorted and found; the same with one duplicate is refused. */
START_TEST(test_many) {
    enum { N = 20000 };
    char *h = (char *)malloc(N * 64);
    for (int twice = 0; twice < 2; twice++) {
        size_t n = (size_t)sprintf(h, "{");
        for (int i = N - 1; i >= 0; i--)
            n += (size_t)sprintf(h + n, "\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}%s",
                                 twice && i == 7 ? 8 : i, i, i + 1, i ? "," : "}");
        make_dir();
        put_text("config.json", CONFIG);
        put_container("model.safetensors", h, N);
        if (twice) {
            refused(dir_path, LQ_E_FORMAT, "\"t8\" appears twice", "model.safetensors");
            break;
        }
        q_directory *dir;
        ck_assert_int_eq(open_path(dir_path, true, &dir), LQ_OK);
        for (int i = 0; i < N; i++) {
            char name[16];
            snprintf(name, sizeof name, "t%d", i);
            ck_assert(q_str_is(dir->tensors[i].name, name));
            ck_assert_uint_eq(dir->tensors[i].data[0], (uint8_t)i);
        }
        ck_assert_ptr_eq(q_directory_tensor(dir, q_str_of("t12345")), &dir->tensors[12345]);
        q_directory_close(dir);
    }
    free(h);
}
END_TEST

/* Free text is limited in number as everything else is. */
START_TEST(test_many_notes) {
    enum { N = Q_LIMIT_KEYS };
    char *h = (char *)malloc((size_t)N * 16 + 64);
    for (int over = 0; over < 2; over++) {
        size_t n = (size_t)sprintf(h, "{\"__metadata__\":{");
        for (int i = 0; i < N + over; i++) n += (size_t)sprintf(h + n, "%s\"k%d\":\"\"", i ? "," : "", i);
        sprintf(h + n, "}}");
        make_dir();
        put_text("config.json", CONFIG);
        put_container("model.safetensors", h, 0);
        if (over) {
            refused(dir_path, LQ_E_LIMIT, "more than 65536 entries", "model.safetensors");
            break;
        }
        q_directory *dir;
        ck_assert_msg(open_path(dir_path, true, &dir) == LQ_OK, "%s", lq_error_detail());
        q_directory_close(dir);
    }
    free(h);
}
END_TEST

/* ------------------------------------------------------------------------------------------------ shards */

#define INDEX(total, map) "{\"metadata\":{\"total_size\":" total ",\"other\":[{}]},\"weight_map\":{" map "}}"
#define ONE "model-00001-of-00002.safetensors"
#define TWO "model-00002-of-00002.safetensors"
#define MAP "\"a\":\"" ONE "\",\"b\":\"" TWO "\",\"c\":\"" ONE "\""

/* Tensors a (3 floats, bytes 0 to 11) and c (bytes 12 to 19) in the first shard, b (bytes 0 to 3) in the second. */
static void make_shards(const char *index) {
    make_dir();
    put_text("config.json", CONFIG);
    put_container(ONE, "{" T("a", "F32", "3", 0, 12) "," T("c", "F32", "2", 12, 20) "}", 20);
    put_container(TWO, "{" T("b", "F32", "1", 0, 4) "}", 4);
    put_text("model.safetensors.index.json", index);
}

START_TEST(test_shards) {
    /* The bundled model cut in two is the bundled model. */
    char path[1024];
    q_directory *whole, *dir;
    ck_assert_int_eq(open_path(pocket(path, sizeof path), true, &whole), LQ_OK);
    make_dir();
    put_text("config.json", CONFIG);
    char index[16384] = "{\"weight_map\":{", part[2][12288] = {"{", "{"};
    uint64_t at[2] = {0, 0};
    for (uint32_t i = 0; i < whole->n_tensors; i++) {
        const q_tensor *t = &whole->tensors[i];
        const int s = i % 3 == 0; /* interleaved, the later name first */
        char shape[64];
        if (t->rank == 1) snprintf(shape, sizeof shape, "%d", (int)t->shape[0]);
        else snprintf(shape, sizeof shape, "%d,%d", (int)t->shape[1], (int)t->shape[0]);
        sprintf(index + strlen(index), "%s\"%.*s\":\"%s\"", i ? "," : "", Q_STR_ARG(t->name), s ? TWO : ONE);
        sprintf(part[s] + strlen(part[s]), "%s\"%.*s\":{\"dtype\":\"F16\",\"shape\":[%s],\"data_offsets\":[%d,%d]}",
                at[s] ? "," : "", Q_STR_ARG(t->name), shape, (int)at[s], (int)(at[s] + t->bytes));
        at[s] += t->bytes;
    }
    strcat(index, "}}");
    put_text("model.safetensors.index.json", index);
    for (int s = 0; s < 2; s++) {
        strcat(part[s], "}");
        const uint64_t n = strlen(part[s]);
        uint8_t *b = (uint8_t *)malloc(8 + n + at[s]), *p = b + 8 + n;
        memcpy(b, &n, 8);
        memcpy(b + 8, part[s], n);
        for (uint32_t i = 0; i < whole->n_tensors; i++) {
            if ((i % 3 == 0) != s) continue;
            memcpy(p, whole->tensors[i].data, whole->tensors[i].bytes);
            p += whole->tensors[i].bytes;
        }
        put_bytes(s ? TWO : ONE, b, 8 + n + at[s]);
        free(b);
    }
    for (int map = 0; map < 2; map++) {
        ck_assert_int_eq(open_path(dir_path, map, &dir), LQ_OK);
        ck_assert_uint_eq(dir->n_files, 2);
        ck_assert_uint_eq(dir->n_tensors, whole->n_tensors);
        for (uint32_t i = 0; i < whole->n_tensors; i++) {
            const q_tensor *x = &whole->tensors[i], *y = q_directory_tensor(dir, x->name);
            ck_assert_ptr_nonnull(y);
            ck_assert_uint_eq(y->file, i % 3 == 0); /* files in the order of their names */
            ck_assert_mem_eq(x->shape, y->shape, sizeof x->shape);
            ck_assert_uint_eq(tensor_hash(whole, x), tensor_hash(dir, y));
        }
        q_directory_close(dir);
    }
    q_directory_close(whole);
    t_path(path, sizeof path, dir_path, TWO); /* a shard's own path opens the set */
    ck_assert_int_eq(open_path(path, false, &dir), LQ_OK);
    ck_assert_uint_eq(dir->n_tensors, 57);
    q_directory_close(dir);
}
END_TEST

START_TEST(test_bad_index) {
    q_directory *dir;
    make_shards(INDEX("24", MAP));
    ck_assert_int_eq(open_path(dir_path, true, &dir), LQ_OK);
    q_directory_close(dir);
    const struct {
        const char *index;
        const char *word;
    } cases[] = {
        {INDEX("25", MAP), "total_size is 25"},
        {INDEX("24.0", MAP), "total_size"},
        {INDEX("24,\"total_size\":24", MAP), "duplicate"},
        {INDEX("24", "\"a\":\"../../x.safetensors\""), "../../x.safetensors"},
        {INDEX("24", "\"a\":\"/etc/x.safetensors\""), "/etc/x.safetensors"},
        {INDEX("24", "\"a\":\"https://host/x.safetensors\""), "https://"},
        {INDEX("24", "\"a\":\"..\\\\x.safetensors\""), "plain name"},
        {INDEX("24", "\"a\":\"c:x.safetensors\""), "plain name"},
        {INDEX("24", "\"a\":\".safetensors\""), "plain name"},
        {INDEX("24", "\"a\":\"..\""), "plain name"},
        {INDEX("24", "\"a\":\"\""), "plain name"},
        {INDEX("24", "\"a\":\"config.json\""), "config.json"},
        {INDEX("24", "\"a\":\"gone.safetensors\""), "gone.safetensors"},
        {INDEX("24", "\"a\":1"), "string"},
        {INDEX("24", MAP ",\"\\u0061\":\"" TWO "\""), "'a'"},
        {INDEX("24", MAP ",\"a\":\"" ONE "\""), "'a' is listed twice"},
        {INDEX("24", MAP ",\"d\":\"" ONE "\""), "'d' is not in"},
        {INDEX("24", "\"a\":\"" ONE "\",\"b\":\"" ONE "\",\"c\":\"" ONE "\""), "'b' is not in"},
        {INDEX("24", "\"a\":\"" TWO "\",\"b\":\"" TWO "\",\"c\":\"" ONE "\""), "'a' is not in"},
        {INDEX("24", "\"a\":\"" ONE "\",\"b\":\"" TWO "\""), "'c' is in a shard but not listed"},
        {INDEX("24", MAP) "x", "after the value"},
        {"{\"weight_map\":{" MAP "},\"weight_map\":{" MAP "}}", "duplicate"},
        {"{\"metadata\":{}}", "weight_map"},
        {"{\"weight_map\":{}}", "weight_map"},
        {"{\"more\":[1,2,}", "value is expected"},
        {"", "'{' is expected"},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        make_shards(cases[i].index);
        refused(dir_path, LQ_E_FORMAT, cases[i].word, "model.safetensors.index.json");
    }
    make_shards(INDEX("24", MAP)); /* the same tensor in two shards */
    put_container(TWO, "{" T("b", "F32", "1", 0, 4) "," T("a", "F32", "1", 4, 8) "}", 8);
    refused(dir_path, LQ_E_FORMAT, "\"a\" appears twice", dir_path);
    make_shards(INDEX("24", MAP)); /* two sets of weights */
    put_container("model.safetensors", "{}", 0);
    refused(dir_path, LQ_E_INCONSISTENT, "model.safetensors", "index");
    make_shards(INDEX("24", MAP)); /* a shard that is a directory */
    char path[1024];
    ck_assert_int_eq(remove(t_path(path, sizeof path, dir_path, TWO)), 0);
    ck_assert_int_eq(mkdir(path, 0700), 0);
    refused(dir_path, LQ_E_FORMAT, TWO, "directory");
}
END_TEST

/* ---------------------------------------------------------------------------------------- directories, configs */

START_TEST(test_pickles) {
    static const char *const names[] = {"pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt"};
    for (size_t i = 0; i < Q_COUNT(names); i++) {
        make_dir();
        put_text("config.json", CONFIG);
        put_text(names[i], "\x80\x02}q\x01.");
        refused(dir_path, LQ_E_UNSUPPORTED, "pickle", dir_path);
    }
    make_dir();
    put_text("config.json", CONFIG);
    refused(dir_path, LQ_E_FORMAT, "model.safetensors", dir_path);
    put_text("adapter_model.safetensors", "");
    refused(dir_path, LQ_E_FORMAT, "model.safetensors", dir_path);
    /* Weights that vanish once the loader was chosen. */
    const q_load_options o = {.alloc = &q_alloc_libc};
    q_directory *none = NULL;
    ck_assert_int_eq(q_loader_safetensors.open(dir_path, &o, &none), LQ_E_FORMAT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "has neither model.safetensors nor model.safetensors.index.json"));
    ck_assert_ptr_null(none);
    make_dir();
    put_container("model.safetensors", "{}", 0);
    refused(dir_path, LQ_E_FORMAT, "config.json", dir_path);
}
END_TEST

START_TEST(test_bad_config) {
    const struct {
        const char *config, *word;
    } cases[] = {
        {"", "object is expected"},
        {"[]", "object is expected"},
        {"\xEF\xBB\xBF{}", "object is expected"},
        {"{} {}", "byte 3"},
        {"{\"a\":1,\"a\":2}", "duplicate"},
        {"{\"o\":{\"a\":1,\"\\u0061\":2}}", "duplicate"},
        {"{\"a\":tru}", "byte 5"},
        {"{\"a\":-0}", "-0"},
        {"{\"a\":01}", "begins with 0"},
        {"{\"a\":9223372036854775808}", "64 bits"},
        {"{\"a\":-9223372036854775809}", "64 bits"},
        {"{\"a\":1e999}", "beyond the range"},
        {"{\"a\":NaN}", "byte 5"},
        {"{\"a\":1.}", "digit"},
        {"{\"a\":\"\\ud800\"}", "lone surrogate"},
        {"{\"a\":\"\\u0000\"}", "NUL"},
        {"{\"a\":[1,]}", "value is expected"},
        {"{\"a\":{\"b\":1]}", "',' is expected"},
        {"{\"a\":", "text ends"},
        {"{\"\":1}", "empty key"},
        {"{\"a\":{\"b\":1},\"a.b\":2}", "\"a.b\" appears twice"},
        {"{\"tokenizer_config\":{\"eos_token\":\"x\"}}", "tokenizer_config.eos_token"},
        {"{\"tokenizer_config.eos_token\":\"x\"}", "tokenizer_config.eos_token"},
    };
    for (size_t i = 0; i < Q_COUNT(cases); i++) config_refused(cases[i].config, LQ_E_FORMAT, cases[i].word);

    enum { DEEP = 10000 };
    char *deep = (char *)malloc(5 + DEEP + 2);
    memcpy(deep, "{\"a\":", 5);
    memset(deep + 5, '[', DEEP);
    deep[5 + DEEP] = 0;
    config_refused(deep, LQ_E_LIMIT, "64 levels");
    memset(deep + 5, 'k', DEEP); /* a key that grows too long when joined */
    deep[2] = 'k', deep[3] = 'k', deep[4] = 'k';
    memcpy(deep + 2000, "\":1}", 5);
    config_refused(deep, LQ_E_LIMIT, "longer than 1024");
    free(deep);

    char *many = (char *)malloc(65537 * 12 + 2); /* keys beyond the limit */
    size_t n = 0;
    for (int i = 0; i <= 65536; i++) n += (size_t)sprintf(many + n, "%c\"%x\":1", i ? ',' : '{', i);
    strcpy(many + n, "}");
    config_refused(many, LQ_E_LIMIT, "65536 keys");
    free(many);

    make_dir();
    put_text("config.json", CONFIG);
    put_text("tokenizer_config.json", "{\"a\":}");
    put_container("model.safetensors", "{}", 0);
    refused(dir_path, LQ_E_FORMAT, "tokenizer_config.json", "byte 5");
}
END_TEST

/* ------------------------------------------------------------------------------------------------ memory */

static struct {
    long left; /* allocations until one fails */
    long live;
} budget;
static void *budget_alloc(void *user, size_t bytes, size_t align) {
    Q_UNUSED(user);
    if (budget.left-- == 0) return NULL;
    budget.live++;
    return q_alloc_libc.alloc(NULL, bytes, align);
}
static void budget_free(void *user, void *p, size_t bytes) {
    Q_UNUSED(user);
    budget.live--;
    q_alloc_libc.free(NULL, p, bytes);
}

/* Whichever allocation fails, the open fails cleanly and gives everything back. */
START_TEST(test_allocations) {
    make_shards(INDEX("24", MAP));
    put_text("tokenizer.model", "bytes");
    put_text("tokenizer_config.json", "{\"eos_token\":\"x\",\"long\":123456789012345678901234}");
    const q_alloc a = {budget_alloc, budget_free, NULL};
    const q_load_options o = {.alloc = &a};
    lq_status s = LQ_E_NOMEM;
    long k = 0;
    for (; s != LQ_OK && k < 1000; k++) {
        q_directory *dir;
        budget.left = k;
        s = q_directory_open(dir_path, &o, &dir);
        if (s == LQ_OK) q_directory_close(dir);
        else ck_assert_int_eq(s, LQ_E_NOMEM);
        ck_assert_int_eq(budget.live, 0);
    }
    ck_assert_int_eq(s, LQ_OK);
    ck_assert_int_gt(k, 10);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("safetensors");
    const struct {
        const char *name;
        const TTest *test;
    } tests[] = {
        {"pocket_tensors", test_pocket_tensors}, {"pocket_meta", test_pocket_meta}, {"file_path", test_file_path},
        {"kinds", test_kinds}, {"meta_values", test_meta_values}, {"header_length", test_header_length},
        {"header_json", test_header_json}, {"entries", test_entries}, {"layout", test_layout}, {"many", test_many},
        {"many_notes", test_many_notes}, {"shards", test_shards}, {"bad_index", test_bad_index},
        {"pickles", test_pickles}, {"bad_config", test_bad_config}, {"allocations", test_allocations},
    };
    for (size_t i = 0; i < Q_COUNT(tests); i++) {
        TCase *c = tcase_create(tests[i].name);
        tcase_set_timeout(c, 60);
        tcase_add_test(c, tests[i].test);
        suite_add_tcase(s, c);
    }
    return s;
}

HARNESS_MAIN(suite)
