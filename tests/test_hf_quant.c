/* test_hf_quant.c: quantized Hugging Face directories (GPTQ, AWQ, bitsandbytes, compressed-tensors): what their weights decode to, against
 * independent code (golden/make_hf_quant.py), and what every bad one gets.
 *
 * The directories are seeds of a fuzz target, golden/fuzz-hf/quant-NAME: a byte, config.json, NUL, model.safetensors. Bad ones
 * are good ones with one thing changed. All methods share the same few helpers: hence more than 800 lines. */
#include "harness.h"
#include "help_model.h"

#include <sys/stat.h>
#include <unistd.h>

#include "../libquant/loader.h"

static char dir_path[512], config[8192], said[4096];
static uint8_t weights[1 << 16];
static size_t n_weights;

static void load_seed(const char *name) {
    static uint8_t all[1 << 16];
    char path[512];
    snprintf(path, sizeof path, "%s/tests/golden/fuzz-hf/quant-%s", t_root(), name);
    FILE *f = fopen(path, "rb");
    ck_assert_msg(f != NULL, "%s", path);
    const size_t n = fread(all, 1, sizeof all, f);
    ck_assert_int_eq(fclose(f), 0);
    ck_assert(n > 2 && n < sizeof all);
    const size_t c = strlen((const char *)all + 1);
    ck_assert(c < sizeof config && c + 2 < n);
    memcpy(config, all + 1, c + 1);
    n_weights = n - c - 2;
    memcpy(weights, all + c + 2, n_weights);
}

static void put(const char *name, const void *data, size_t n) {
    char path[1024];
    FILE *f = fopen(t_path(path, sizeof path, dir_path, name), "wb");
    ck_assert_ptr_nonnull(f);
    ck_assert_uint_eq(fwrite(data, 1, n, f), n);
    ck_assert_int_eq(fclose(f), 0);
}

static void hear(void *user, lq_log_level level, const char *message) {
    Q_UNUSED(user);
    Q_UNUSED(level);
    const size_t n = strlen(said);
    snprintf(said + n, sizeof said - n, "%s\n", message);
}
static const q_log ears = {hear, NULL};

static void make_dir(void) {
    if (dir_path[0]) return;
    snprintf(dir_path, sizeof dir_path, "%s/hf-quant-%d", t_tmp(), (int)getpid());
    ck_assert_int_eq(mkdir(dir_path, 0700), 0);
}

/* What is in config and weights as a directory, opened. */
static lq_status open_it(bool map, const q_alloc *a, q_directory **dir) {
    make_dir();
    put("config.json", config, strlen(config));
    put("model.safetensors", weights, n_weights);
    said[0] = 0;
    const q_load_options o = {.alloc = a, .log = &ears, .map = map};
    return q_directory_open(dir_path, &o, dir);
}

/* ---- changing one thing */

static void edit_config(const char *from, const char *to) {
    char *at = strstr(config, from), rest[8192];
    ck_assert_msg(at != NULL, "config.json has no %s", from);
    snprintf(rest, sizeof rest, "%s", at + strlen(from));
    snprintf(at, sizeof config - (size_t)(at - config), "%s%s", to, rest);
}

/* In the header, keeping its length: what is longer than before eats the padding at its end. */
static void edit_header(const char *from, const char *to) {
    const size_t n = (size_t)q_load64(weights), a = strlen(from), b = strlen(to);
    for (size_t i = 8; i + a <= 8 + n; i++) {
        if (memcmp(weights + i, from, a) != 0) continue;
        const size_t rest = 8 + n - i - a;
        if (b > a) for (size_t j = 0; j < b - a; j++) ck_assert_int_eq(weights[8 + n - 1 - j], ' ');
        memmove(weights + i + b, weights + i + a, Q_MIN(rest, 8 + n - i - b));
        memcpy(weights + i, to, b);
        if (b < a) memset(weights + 8 + n - (a - b), ' ', a - b);
        return;
    }
    ck_abort_msg("the header has no %s", from);
}

/* One more tensor at the end. */
static void add_tensor(const char *name, const char *dtype, const char *shape, const void *data, size_t bytes) {
    char entry[256];
    const size_t n = (size_t)q_load64(weights), at = n_weights - 8 - n;
    size_t end = 8 + n;
    while (weights[end - 1] != '}') end--;
    const size_t e = (size_t)snprintf(entry, sizeof entry, ",\"%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}}       ",
                                      name, dtype, shape, at, at + bytes);
    const size_t more = (e - 1) / 8 * 8; /* the data stays aligned, spaces may be cut */
    ck_assert(e < sizeof entry && n_weights + more + bytes < sizeof weights);
    memmove(weights + 8 + n + more, weights + 8 + n, at);
    memset(weights + end - 1, ' ', 8 + n + more - (end - 1));
    memcpy(weights + end - 1, entry, more + 1);
    const uint64_t longer = n + more;
    memcpy(weights, &longer, 8);
    n_weights += more + bytes;
    memcpy(weights + n_weights - bytes, data, bytes);
}

static uint8_t *data_of(const char *tensor) {
    const size_t n = (size_t)q_load64(weights);
    static char header[1 << 14];
    char key[128];
    unsigned long begin;
    memcpy(header, weights + 8, n);
    header[n] = 0;
    snprintf(key, sizeof key, "\"%s\":", tensor);
    const char *at = strstr(header, key);
    ck_assert_msg(at != NULL, "no %s", tensor);
    ck_assert_int_eq(sscanf(strstr(at, "data_offsets\":[") + 15, "%lu", &begin), 1);
    return weights + 8 + n + begin;
}

/* A container as it grows. */
typedef struct box {
    char header[1 << 15];
    size_t n, bytes;
    uint8_t *data;
} box;
static void *box_add(box *b, q_str name, const char *dtype, uint64_t rows, uint64_t k, size_t bytes) {
    char shape[48];
    if (rows) snprintf(shape, sizeof shape, "%lu,%lu", (unsigned long)rows, (unsigned long)k);
    else snprintf(shape, sizeof shape, "%lu", (unsigned long)k);
    b->n += (size_t)snprintf(b->header + b->n, sizeof b->header - b->n, "%c\"%.*s\":{\"dtype\":\"%s\",\"shape\":[%s],\"data_offsets\":[%zu,%zu]}",
                             b->n ? ',' : '{', (int)name.n, name.p, dtype, shape, b->bytes, b->bytes + bytes);
    b->bytes += bytes;
    ck_assert(b->bytes < 1 << 20 && b->n < sizeof b->header - 300);
    return b->data + b->bytes - bytes;
}
static void box_write(box *b) {
    const uint64_t n = b->n + 1;
    uint8_t *all = malloc(8 + n + b->bytes);
    memcpy(all, &n, 8);
    memcpy(all + 8, b->header, b->n);
    all[8 + b->n] = '}';
    memcpy(all + 8 + n, b->data, b->bytes);
    put("model.safetensors", all, 8 + n + b->bytes);
    free(all);
}

/* ---- good ones */

/* The weights by input, row by row; rows read singly and out of order are the same bytes. */
static float *decode(const q_directory *dir, const q_tensor *t) {
    const uint64_t k = t->shape[0], rows = t->rows;
    uint8_t *all = malloc(t->bytes), *row = malloc(t->row_bytes);
    float *y = malloc(rows * k * sizeof *y), *mixed = malloc(k * sizeof *mixed);
    ck_assert_msg(q_tensor_read(dir, t, 0, all, t->bytes) == LQ_OK, "%s", lq_error_detail());
    for (uint64_t i = 0; i < rows; i++) {
        const uint64_t r = i * 5 % rows; /* rows are no multiple of 5 */
        ck_assert_int_eq(q_tensor_read(dir, t, r * t->row_bytes, row, t->row_bytes), LQ_OK);
        ck_assert(memcmp(row, all + r * t->row_bytes, t->row_bytes) == 0);
        q_decode_row(t->format, row, (int64_t)k, mixed);
        for (uint64_t j = 0; j < k; j++) y[r * k + (uint64_t)(t->view && t->view->order ? t->view->order[j] : (int32_t)j)] = mixed[j];
    }
    if (dir->idle) ((q_directory *)(uintptr_t)dir)->idle((q_directory *)(uintptr_t)dir); /* and can be read again */
    uint8_t middle[7];
    ck_assert_int_eq(q_tensor_read(dir, t, t->row_bytes - 3, middle, 7), LQ_OK);
    ck_assert(memcmp(middle, all + t->row_bytes - 3, 7) == 0);
    free(all);
    free(row);
    free(mixed);
    return y;
}

START_TEST(test_golden) {
    char path[512], name[64], tensor[64], format[32], line[256];
    unsigned long rows, k;
    unsigned long long hash;
    int cases = 0;
    snprintf(path, sizeof path, "%s/tests/golden/hf_quant.txt", t_root());
    FILE *f = fopen(path, "r");
    ck_assert_ptr_nonnull(f);
    while (fgets(line, sizeof line, f)) {
        ck_assert_int_eq(sscanf(line, "%63s %63s %31s %lu %lu %llx", name, tensor, format, &rows, &k, &hash), 6);
        load_seed(name);
        for (int map = 0; map < 2; map++) {
            q_directory *dir = NULL;
            ck_assert_msg(open_it(map, &q_alloc_libc, &dir) == LQ_OK, "%s: %s", name, lq_error_detail());
            const q_tensor *t = q_directory_tensor(dir, q_str_of(tensor));
            ck_assert_msg(t != NULL, "%s: no %s", name, tensor);
            ck_assert_str_eq(t->type_name, format);
            ck_assert_msg(t->shape[0] == k && t->rows == rows && t->rank == 2, "%s", name);
            float *y = decode(dir, t);
            const uint64_t got = q_fnv64(y, rows * k * sizeof *y);
            ck_assert_msg(got == hash, "%s: %s decodes to other values (%016llx)", name, tensor, (unsigned long long)got);
            free(y);
            q_directory_close(dir);
        }
        cases++;
    }
    ck_assert_int_eq(fclose(f), 0);
    ck_assert_int_ge(cases, 25);
}
END_TEST

/* What is not as it should be but can be read is told. */
static const struct {
    const char *seed, *word;
} told[] = {
    {"gptq4", ""}, {"gptq4-mislabelled", "those of gptq: "}, {"gptq4-mislabelled-v2", "those of gptq_v2: "},
    {"gptq4-zero16", "beyond all codes"}, {"gptq4-g128-v2", ""}, {"ct-int4-act", ""}, {"awq-llm", ""}, {"awq-gemv", ""},
    {"bnb-nf4-cut", "1 tensors ('m.weight') are decoded to bf16 as they are read, and take about 4 times"},
    {"bnb-fp4-cut", "decoded to f32 as they are read, and take about 8 times"}, {"ct-int8-asym", ""}, {"bnb-nf4", ""},
};
START_TEST(test_told) {
    q_directory *dir = NULL;
    load_seed(told[_i].seed);
    ck_assert_int_eq(open_it(false, &q_alloc_libc, &dir), LQ_OK);
    if (told[_i].word[0]) ck_assert_msg(strstr(said, told[_i].word) != NULL, "%s: said %s", told[_i].seed, said);
    else ck_assert_str_eq(said, "");
    q_directory_close(dir);
}
END_TEST

/* Scales of activations do not belong to the weights: told once, with their number; the model is the same. */
static const char *const with_activations[] = {"fp8", "fp8-tensor", "ct-fp8", "ct-fp8-block", "ct-w8a8", "ct-int4"};
START_TEST(test_activations) {
    static const char *const names[] = {"m.input_scale", "m.input_zero_point", "m.input_global_scale", "m.activation_scale"};
    const char *seed = with_activations[_i];
    const float scale = 0.25f;
    const int8_t zero = 3;
    float *y[2];
    uint64_t n = 0;
    for (int more = 0; more < 2; more++) {
        q_directory *dir = NULL;
        load_seed(seed);
        for (size_t i = 0; more && i < Q_COUNT(names); i++)
            add_tensor(names[i], i == 1 ? "I8" : "F32", i == 3 ? "[]" : "[1]", i == 1 ? (const void *)&zero : (const void *)&scale, i == 1 ? 1 : 4);
        ck_assert_msg(open_it(true, &q_alloc_libc, &dir) == LQ_OK, "%s: %s", seed, lq_error_detail());
        if (!more) ck_assert_ptr_null(strstr(said, "activations"));
        else {
            ck_assert_msg(strstr(said, "4 tensors of fixed scales of activations ('m.input_scale' is the first) are not used") == said &&
                          strchr(said, '\n')[1] == 0, "%s: said %s", seed, said);
        }
        ck_assert_uint_eq(dir->n_tensors, 1);
        n = dir->tensors[0].shape[0] * dir->tensors[0].rows;
        y[more] = decode(dir, &dir->tensors[0]);
        q_directory_close(dir);
    }
    ck_assert(memcmp(y[0], y[1], n * sizeof *y[0]) == 0);
    free(y[0]);
    free(y[1]);
}
END_TEST

START_TEST(test_auto_fp8) { /* one scale for all, under AutoFP8's name */
    q_directory *dir = NULL;
    float *y[2];
    for (int i = 0; i < 2; i++) {
        load_seed("fp8-tensor");
        if (i) edit_header("m.weight_scale_inv", "m.weight_scale");
        ck_assert_msg(open_it(true, &q_alloc_libc, &dir) == LQ_OK, "%s", lq_error_detail());
        y[i] = decode(dir, &dir->tensors[0]);
        q_directory_close(dir);
    }
    ck_assert(memcmp(y[0], y[1], 8 * 32 * sizeof *y[0]) == 0);
    free(y[0]);
    free(y[1]);
}
END_TEST

/* What describes the weights in a file of its own, as it was before config.json did. */
static const struct {
    const char *seed, *file, *edit, *edit2, *config, *tensor; /* edits of the file; config.json, NULL = the seed's; a tensor renamed */
    lq_status code;
    const char *word, *word2;
} besides[] = {
    {"gptq4", "quantize_config.json", .config = "{}", .word = "quantize_config.json"},
    {"gptq4-row", "quantize_config.json", "\"quant_method\": \"gptq\", ", "", "{\"quantization_config\": null}", .word = "as of the method gptq"},
    {"awq-row", "quant_config.json", "\"quant_method\": \"awq\", ", "", "{}", .word = "as of the method awq"},
    {"gptq4", "quantize_config.json", .word = ""},
    {"gptq4", "quantize_config.json", "\"bits\": 4", "\"bits\": 8", .word = "says otherwise in 1 fields ('bits'), and holds"},
    {"gptq4", "quantize_config.json", "\"desc_act\": false, \"sym\": false", "\"desc_act\": true, \"sym\": 0",
     .word = "in 2 fields ('desc_act')"},
    {"gptq4", "quantize_config.json", "\"damp_percent\": 0.01", "\"checkpoint_format\": \"gptq\"", .word = ""},
    {"gptq4", "quantize_config.json", .config = "{}", .tensor = "m.qweight", .code = LQ_E_INCONSISTENT, .word = "no quantization_config"},
    {"ct-fp8", "quantize_config.json", .config = "{}", .code = LQ_E_INCONSISTENT, .word = "no quantization_config"},
    {"gptq4", "quantize_config.json", "\"bits\": 4", "\"bits\": 5", "{}", .code = LQ_E_UNSUPPORTED, .word = "/quantize_config.json, in the place", .word2 = "bits"},
    {"gptq4", "quantize_config.json", "{", "[", "{}", .code = LQ_E_FORMAT, .word = "/quantize_config.json"},
    {"gptq4", "quantize_config.json", "{", "{\"\": 1, ", "{}", .code = LQ_E_FORMAT, .word = "/quantize_config.json"},
    {"gptq4", "quantize_config.json", "{", "[", .word = "quantize_config.json is not used", .word2 = "/quantize_config.json"},
    {"gptq4", "quantize_config.json", "{", "{\"\": 1, ", .word = "quantize_config.json is not used", .word2 = "/quantize_config.json"},
};
START_TEST(test_beside) {
    char plain[8192];
    q_directory *dir = NULL;
    float *y[2] = {NULL, NULL};
    uint64_t n = 0;
    load_seed(besides[_i].seed);
    make_dir();
    ck_assert_int_eq(open_it(true, &q_alloc_libc, &dir), LQ_OK);
    y[0] = decode(dir, &dir->tensors[0]);
    q_directory_close(dir);
    snprintf(plain, sizeof plain, "%s", config);
    edit_config("{\"quantization_config\": ", "");
    config[strlen(config) - 1] = 0;
    if (besides[_i].edit) edit_config(besides[_i].edit, besides[_i].edit2);
    put(besides[_i].file, config, strlen(config));
    snprintf(config, sizeof config, "%s", besides[_i].config ? besides[_i].config : plain);
    if (besides[_i].tensor) edit_header(besides[_i].tensor, "m.pweight");
    for (int map = 0; map < 2; map++) {
        dir = NULL;
        const lq_status s = open_it(map, &q_alloc_libc, &dir);
        ck_assert_msg(s == besides[_i].code, "%s (%s)", lq_status_name(s), s ? lq_error_detail() : "opened");
        const char *text = s ? lq_error_detail() : said;
        if (besides[_i].word[0]) ck_assert_msg(strstr(text, besides[_i].word) != NULL, "%s", text);
        else ck_assert_str_eq(text, "");
        if (besides[_i].word2) ck_assert_msg(strstr(text, besides[_i].word2) != NULL, "%s", text);
        if (s != LQ_OK) continue;
        n = dir->tensors[0].shape[0] * dir->tensors[0].rows;
        y[1] = decode(dir, &dir->tensors[0]);
        ck_assert(memcmp(y[0], y[1], n * sizeof *y[0]) == 0);
        free(y[1]);
        if (map) ck_assert_int_eq(q_directory_spares(dir, t_path(plain, sizeof plain, dir_path, besides[_i].file)), LQ_E_ARG);
        q_directory_close(dir);
    }
    free(y[0]);
    char path[1024];
    ck_assert_int_eq(unlink(t_path(path, sizeof path, dir_path, besides[_i].file)), 0);
}
END_TEST

START_TEST(test_beside_each_other) { /* the first is used; what is told of the second does not name config.json */
    char path[1024];
    q_directory *dir;
    load_seed("gptq4");
    make_dir();
    edit_config("{\"quantization_config\": ", "");
    config[strlen(config) - 1] = 0;
    put("quantize_config.json", config, strlen(config));
    edit_config("\"bits\": 4", "\"bits\": 8");
    put("quant_config.json", config, strlen(config));
    snprintf(config, sizeof config, "{}");
    ck_assert_msg(open_it(true, &q_alloc_libc, &dir) == LQ_OK, "%s", lq_error_detail());
    q_directory_close(dir);
    ck_assert_msg(strstr(said, "/quant_config.json is not used: quantize_config.json says otherwise in 1 fields ('bits')") != NULL, "%s",
                  said);
    put("quant_config.json", "[", 1);
    ck_assert_msg(open_it(true, &q_alloc_libc, &dir) == LQ_OK, "%s", lq_error_detail());
    q_directory_close(dir);
    ck_assert_msg(strstr(said, "quant_config.json is not used: ") != NULL, "%s", said);
    ck_assert_int_eq(unlink(t_path(path, sizeof path, dir_path, "quant_config.json")), 0);
    ck_assert_int_eq(unlink(t_path(path, sizeof path, dir_path, "quantize_config.json")), 0);
}
END_TEST

START_TEST(test_beside_floats) { /* nothing is quantized: the file says nothing of the model */
    static const char *const texts[] = {"{\"bits\": 4}", "{\"bits\": "};
    static box b;
    q_directory *dir;
    make_dir();
    b.data = calloc(1, 1 << 10);
    memset(box_add(&b, q_str_of("m.weight"), "F16", 2, 4, 16), 0, 16);
    box_write(&b);
    put("config.json", "{}", 2);
    for (size_t i = 0; i < Q_COUNT(texts); i++) {
        put("quantize_config.json", texts[i], strlen(texts[i]));
        said[0] = 0;
        const q_load_options o = {.alloc = &q_alloc_libc, .log = &ears};
        ck_assert_msg(q_directory_open(dir_path, &o, &dir) == LQ_OK, "%s", lq_error_detail());
        ck_assert_ptr_nonnull(strstr(said, i ? "quantize_config.json is not used: /" : "quantize_config.json is not used: no tensor is quantized"));
        ck_assert_str_eq(dir->container, "huggingface");
        q_directory_close(dir);
    }
    free(b.data);
}
END_TEST

START_TEST(test_awq_names) { /* llm-awq has been a name of all three layouts; where there is none, tensors tell */
    static const char *const edits[][3] = {
        {"awq-row", "\"autoawq\"", "\"llm-awq\""}, {"awq-g64", "\"gemm\"", "\"llm-awq\""}, {"awq-gemv", "\"GEMV\"", "\"llm-awq\""},
        {"awq-g64", ", \"version\": \"gemm\"", ""}, {"awq-gemv", ", \"version\": \"GEMV\"", ""},
        {"awq-fast", ", \"version\": \"gemv_fast\"", ""}, {"awq-fast", "gemv_fast", "llm-awq"}, {"awq-llm", "\"gemm\"", "\"gemv\""},
    };
    for (size_t i = 0; i < Q_COUNT(edits); i++) {
        q_directory *dir = NULL;
        load_seed(edits[i][0]);
        edit_config(edits[i][1], edits[i][2]);
        ck_assert_msg(open_it(true, &q_alloc_libc, &dir) == LQ_OK, "%s: %s", edits[i][0], lq_error_detail());
        ck_assert_str_eq(said, "");
        q_directory_close(dir);
    }
}
END_TEST

START_TEST(test_rounded_scales) { /* what a half does not hold is told, and rounded */
    q_directory *dir = NULL;
    load_seed("ct-int4-act");
    const uint32_t x = q_f32_bits(0.0123456f);
    memcpy(data_of("m.weight_scale"), &x, 4);
    ck_assert_int_eq(open_it(true, &q_alloc_libc, &dir), LQ_OK);
    ck_assert_msg(strstr(said, "m.weight_scale") && strstr(said, "halves"), "said %s", said);
    uint8_t head[2];
    ck_assert_int_eq(q_tensor_read(dir, &dir->tensors[0], 0, head, 2), LQ_OK);
    ck_assert_uint_eq(q_load16(head), q_f32_to_half(0.0123456f));
    q_directory_close(dir);
}
END_TEST

/* ---- bad ones */

typedef struct bad {
    const char *seed;
    const char *from, *to;     /* in config.json */
    const char *hfrom, *hto;   /* in the header */
    const char *tensor;        /* its value at `at` becomes `value` */
    uint32_t at, value;
    const char *text, *text2;  /* of the same length, in the data */
    lq_status code;
    const char *word, *word2;
} bad;
static const bad bads[] = {
    /* GPTQ */
    {"gptq4", .from = "\"bits\": 4", .to = "\"bits\": 5", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.bits", .word2 = "5"},
    {"gptq4", .from = "\"bits\": 4", .to = "\"bits\": 9", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.bits"},
    {"gptq4", .from = "\"bits\": 4", .to = "\"bits\": \"4\"", .code = LQ_E_INCONSISTENT, .word = "quantization_config.bits"},
    {"gptq4", .from = "\"bits\": 4, ", .to = "", .code = LQ_E_INCONSISTENT, .word = "quantization_config.bits", .word2 = "missing"},
    {"gptq4", .from = "\"bits\": 4", .to = "\"bits\": 3", .code = LQ_E_INCONSISTENT, .word = "m.qweight"},
    {"gptq4", .from = "\"bits\": 4", .to = "\"bits\": 2", .code = LQ_E_INCONSISTENT, .word = "m.qzeros", .word2 = "shape"},
    {"gptq4", .from = "\"group_size\": 32", .to = "\"group_size\": 96", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "divide"},
    {"gptq4", .from = "\"group_size\": 32", .to = "\"group_size\": 16", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.group_size"},
    {"gptq4", .from = "\"group_size\": 32", .to = "\"group_size\": 0", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.group_size"},
    {"gptq4", .from = "\"group_size\": 32", .to = "\"group_size\": -2", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.group_size"},
    {"gptq4", .from = "\"group_size\": 32", .to = "\"group_size\": 64", .code = LQ_E_INCONSISTENT, .word = "m.qzeros", .word2 = "shape"},
    {"gptq4", .from = "\"desc_act\": false", .to = "\"desc_act\": 1", .code = LQ_E_INCONSISTENT, .word = "desc_act"},
    {"gptq4", .from = "\"sym\"", .to = "\"symm\"", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.symm"},
    {"gptq4", .from = "\"sym\"", .to = "\"checkpoint_format\": \"marlin\", \"sym\"", .code = LQ_E_UNSUPPORTED, .word = "marlin"},
    {"gptq4", .from = "\"sym\"", .to = "\"dynamic\": {\"+:.*down.*\": {\"bits\": 8}}, \"sym\"", .code = LQ_E_UNSUPPORTED, .word = "dynamic"},
    {"gptq4", .tensor = "m.g_idx", .at = 5, .value = 4, .code = LQ_E_INCONSISTENT, .word = "m.g_idx", .word2 = "group 4"},
    {"gptq4", .tensor = "m.g_idx", .at = 5, .value = 0xFFFFFFFF, .code = LQ_E_INCONSISTENT, .word = "m.g_idx", .word2 = "group -1"},
    {"gptq4", .tensor = "m.g_idx", .at = 5, .value = 2, .code = LQ_E_INCONSISTENT, .word = "m.g_idx", .word2 = "more than 32"},
    {"gptq2-act", .hfrom = "m.g_idx", .hto = "m.g_idy", .code = LQ_E_INCONSISTENT, .word = "m.g_idx", .word2 = "desc_act"},
    {"gptq4", .hfrom = "m.qzeros", .hto = "m.qzeroz", .code = LQ_E_INCONSISTENT, .word = "m.qzeros", .word2 = "missing"},
    {"gptq4", .hfrom = "\"m.qzeros\":{\"dtype\":\"I32\",\"shape\":[4,2]", .hto = "\"m.qzeros\":{\"dtype\":\"I32\",\"shape\":[2,4]",
     .code = LQ_E_INCONSISTENT, .word = "m.qzeros", .word2 = "shape"},
    {"gptq4", .hfrom = "\"m.scales\":{\"dtype\":\"F16\"", .hto = "\"m.scales\":{\"dtype\":\"I16\"", .code = LQ_E_INCONSISTENT, .word = "m.scales"},
    {"gptq4", .hfrom = "\"m.qweight\":{\"dtype\":\"I32\"", .hto = "\"m.qweight\":{\"dtype\":\"F32\"", .code = LQ_E_INCONSISTENT, .word = "m.qweight"},
    {"gptq4-row", .tensor = "m.scales", .at = 3, .value = 0x47800000 /* 65536 */, .code = LQ_E_NUMERIC, .word = "m.scales"},
    {"gptq8", .tensor = "m.qzeros", .value = 0xFFFFFFFF, .code = LQ_E_UNSUPPORTED, .word = "m.qzeros", .word2 = "256"},
    /* AWQ */
    {"awq-g64", .from = "\"bits\": 4", .to = "\"bits\": 3", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.bits"},
    {"awq-row", .from = "\"w_bit\": 4", .to = "\"w_bit\": 8", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.w_bit"},
    {"awq-g64", .from = "\"bits\": 4, ", .to = "", .code = LQ_E_INCONSISTENT, .word = "quantization_config.bits", .word2 = "missing"},
    {"awq-g64", .from = "\"group_size\": 64", .to = "\"group_size\": 32", .code = LQ_E_INCONSISTENT, .word = "m.scales"},
    {"awq-g64", .from = "\"group_size\": 64", .to = "\"group_size\": 96", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "divide"},
    {"awq-g64", .from = "\"group_size\": 64", .to = "\"group_size\": 8", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.group_size"},
    {"awq-g64", .from = "\"gemm\"", .to = "\"gemv\"", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "those of gemm, but quantization_config.version says gemv: "},
    {"awq-g64", .from = "\"gemm\"", .to = "\"marlin\"", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.version", .word2 = "marlin"},
    {"awq-g64", .from = "\"version\": \"gemm\"", .to = "\"format\": \"exllama\"", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.format", .word2 = "exllama"},
    {"awq-row", .from = "\"autoawq\"", .to = "\"ipex\"", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.backend", .word2 = "ipex"},
    {"awq-g64", .from = "\"zero_point\": true", .to = "\"zero_point\": false", .code = LQ_E_UNSUPPORTED, .word = "zero_point"},
    {"awq-g64", .hfrom = "\"shape\":[128,3]", .hto = "\"shape\":[96,4]", .code = LQ_E_INCONSISTENT, .word = "m."},
    {"awq-g64", .hfrom = "m.scales", .hto = "m.scalez", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "missing"},
    {"awq-g64", .from = "awq", .to = "gptq", .code = LQ_E_UNSUPPORTED, .word = "quantization_config."},
    {"awq-llm", .from = "\"bits\": 4", .to = "\"bits\": 3", .code = LQ_E_UNSUPPORTED, .word = "quantization_config.bits"},
    {"awq-llm", .from = ", \"backend\": \"llm-awq\"", .to = "", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "those of gemv_fast"},
    {"awq-llm", .from = "\"group_size\": 64", .to = "\"group_size\": 32", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "shape"},
    {"awq-llm", .from = "\"group_size\": 64", .to = "\"group_size\": -1", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "shape"},
    {"awq-llm", .from = "\"group_size\": 64", .to = "\"group_size\": 128", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "divide"},
    {"awq-llm", .hfrom = "m.scaled_zeros", .hto = "m.scaled_zeroz", .code = LQ_E_INCONSISTENT, .word = "m.scaled_zeros", .word2 = "missing"},
    {"awq-llm", .hfrom = "m.scales", .hto = "m.scalez", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "missing"},
    {"awq-llm", .hfrom = "m.qweight", .hto = "m.qweighs", .code = LQ_E_INCONSISTENT, .word = "m.scale"},
    {"awq-llm", .hfrom = "\"I16\"", .hto = "\"F16\"", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "unknown"},
    {"awq-llm", .hfrom = "[6,192]", .hto = "[12,96]", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "multiples of 64"},
    {"awq-llm", .hfrom = "[6,192]", .hto = "[3,384]", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "shape"},
    {"awq-llm", .hfrom = "[6,192]", .hto = "[1152]", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "unknown"},
    {"awq-llm", .tensor = "m.scaled_zeros", .value = 0xAE663C00, .code = LQ_E_UNSUPPORTED, .word = "m.scaled_zeros", .word2 = "output 0 of group 0"},
    {"awq-llm", .tensor = "m.scaled_zeros", .at = 12, .value = 0xFC00, .code = LQ_E_UNSUPPORTED, .word = "m.scaled_zeros", .word2 = "output 0 of group 1"},
    {"awq-llm", .tensor = "m.scaled_zeros", .value = 0x7E00, .code = LQ_E_UNSUPPORTED, .word = "m.scaled_zeros", .word2 = "nan"},
    {"awq-llm", .tensor = "m.scales", .value = 0x3C003C00, .code = LQ_E_UNSUPPORTED, .word = "m.scaled_zeros", .word2 = "output 1 of group 0"},
    {"awq-llm", .tensor = "m.scales", .value = 0, .code = LQ_E_UNSUPPORTED, .word = "m.scaled_zeros", .word2 = "output 1 of group 0"},
    {"awq-llm", .tensor = "m.scales", .value = 0x7C00, .code = LQ_E_UNSUPPORTED, .word = "m.scaled_zeros", .word2 = "inf"},
    {"awq-llm", .from = "quantization_config", .to = "quantizationconfig", .code = LQ_E_INCONSISTENT, .word = "m.", .word2 = "no quantization_config"},
    {"awq-fast", .from = "\"group_size\": 128", .to = "\"group_size\": 64", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "shape"},
    {"awq-fast", .from = "\"group_size\": 128", .to = "\"group_size\": 256", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "of 2 groups"},
    {"awq-fast", .hfrom = "\"m.qzeros\":{\"dtype\":\"F16\"", .hto = "\"m.qzeros\":{\"dtype\":\"I16\"", .code = LQ_E_INCONSISTENT, .word = "m.qzeros", .word2 = "i16"},
    {"awq-gemv", .from = "\"GEMV\"", .to = "\"gemm\"", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "those of gemv, "},
    {"awq-gemv", .from = "\"GEMV\"", .to = "\"GEMV_FAST\"", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "says gemv_fast"},
    {"awq-gemv", .from = "\"group_size\": 32", .to = "\"group_size\": 96", .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "shape"},
    {"awq-gemv", .hfrom = "\"m.qzeros\":{\"dtype\":\"I32\",\"shape\":[16,4]", .hto = "\"m.qzeros\":{\"dtype\":\"I32\",\"shape\":[4,16]",
     .code = LQ_E_INCONSISTENT, .word = "m.qzeros", .word2 = "shape"},
    {"awq-gemv", .tensor = "m.scales", .at = 2, .value = 0x3C003C00, .code = LQ_E_INCONSISTENT, .word = "m.scales", .word2 = "of 6 groups"},
    /* bitsandbytes */
    {"bnb-nf4", .hfrom = "m.weight.absmax", .hto = "m.weight.absmay", .code = LQ_E_INCONSISTENT, .word = "m.weight.absmax"},
    {"bnb-nf4", .hfrom = "\"m.weight.absmax\":{\"dtype\":\"F32\",\"shape\":[16]", .hto = "\"m.weight.absmax\":{\"dtype\":\"F64\",\"shape\":[8]",
     .code = LQ_E_INCONSISTENT, .word = "m.weight.absmax"},
    {"bnb-nf4", .tensor = "m.weight.quant_state.bitsandbytes__nf4", .value = 0x22222222, .code = LQ_E_FORMAT, .word = "quant_state"},
    {"bnb-nf4", .text = "\"blocksize\": 64", .text2 = "\"blocksize\": 0 ", .code = LQ_E_INCONSISTENT, .word = "quant_state", .word2 = "blocksize"},
    {"bnb-nf4", .text = "\"blocksize\": 64", .text2 = "\"blocksize\": 96", .code = LQ_E_INCONSISTENT, .word = "quant_state", .word2 = "96"},
    {"bnb-nf4", .text = "\"blocksize\": 64", .text2 = "\"blocksize\": 16", .code = LQ_E_UNSUPPORTED, .word = "quant_state", .word2 = "16"},
    {"bnb-nf4", .text = "\"blocksize\": 64", .text2 = "\"blocksize\": 32", .code = LQ_E_INCONSISTENT, .word = "m.weight.absmax"},
    {"bnb-nf4", .text = "\"blocksize\": 64", .text2 = "\"blokksize\": 64", .code = LQ_E_UNSUPPORTED, .word = "blokksize"},
    {"bnb-nf4", .text = "[16, 64]", .text2 = "[64, 64]", .code = LQ_E_INCONSISTENT, .word = "m.weight"},
    {"bnb-nf4", .text = "[16, 64]", .text2 = "[-6, 64]", .code = LQ_E_INCONSISTENT, .word = "shape"},
    {"bnb-nf4", .text = "\"nf4\"", .text2 = "\"fp4\"", .code = LQ_E_INCONSISTENT, .word = "quant_type"},
    {"bnb-nf4", .tensor = "m.weight.quant_map", .at = 3, .value = 0x3F000000, .code = LQ_E_UNSUPPORTED, .word = "m.weight.quant_map", .word2 = "level 3"},
    {"bnb-nf4-dq", .hfrom = "m.weight.nested_absmax", .hto = "m.weight.nested_absmay", .code = LQ_E_INCONSISTENT, .word = "m.weight.nested_absmax"},
    {"bnb-nf4-dq", .text = "\"nested_blocksize\": 256", .text2 = "\"nested_blocksize\": 16 ", .code = LQ_E_INCONSISTENT, .word = "m.weight.nested_absmax"},
    {"bnb-nf4-dq", .text = "nested_offset", .text2 = "nested_offzet", .code = LQ_E_UNSUPPORTED, .word = "nested_offzet"},
    {"bnb-int8", .hfrom = "m.SCB", .hto = "m.SCC", .code = LQ_E_INCONSISTENT, .word = "m.weight_format"},
    {"bnb-int8", .hfrom = "\"m.SCB\":{\"dtype\":\"F32\"", .hto = "\"m.SCB\":{\"dtype\":\"I32\"", .code = LQ_E_INCONSISTENT, .word = "m.SCB"},
    /* compressed-tensors, floats of 8 bits */
    {"ct-int4", .from = "\"num_bits\": 4", .to = "\"num_bits\": 8", .code = LQ_E_INCONSISTENT, .word = "m.weight_packed", .word2 = "4 bits"},
    {"ct-int4", .from = "\"num_bits\": 4", .to = "\"num_bits\": 5", .code = LQ_E_UNSUPPORTED, .word = "group_0.weights.num_bits"},
    {"ct-int4", .from = "\"group_size\": 64", .to = "\"group_size\": 32", .code = LQ_E_INCONSISTENT, .word = "m.weight_packed", .word2 = "groups of 64"},
    {"ct-int4", .from = "\"group_size\": 64", .to = "\"group_size\": null", .code = LQ_E_INCONSISTENT, .word = "group_size"},
    {"ct-int4", .from = "\"symmetric\": true", .to = "\"symmetric\": false", .code = LQ_E_INCONSISTENT, .word = "m.weight_packed"},
    {"ct-int4", .from = "\"output_activations\": null", .to = "\"output_activations\": {\"num_bits\": 8}", .code = LQ_E_UNSUPPORTED, .word = "output_activations"},
    {"ct-int4", .from = "\"kv_cache_scheme\": null", .to = "\"kv_cache_scheme\": {\"num_bits\": 8}", .code = LQ_E_UNSUPPORTED, .word = "kv_cache_scheme"},
    {"ct-int4", .from = "\"sparsity_config\": {}", .to = "\"sparsity_config\": {\"format\": \"sparse-24\"}", .code = LQ_E_UNSUPPORTED, .word = "sparse-24"},
    {"ct-int4", .from = "{\"group_0\": ", .to = "{\"W4A16\": [\"Linear\"], \"group_0\": ", .code = LQ_E_UNSUPPORTED, .word = "W4A16"},
    {"ct-int4", .tensor = "m.weight_shape", .at = 2, .value = 96, .code = LQ_E_INCONSISTENT, .word = "m.weight_packed"},
    {"ct-int4", .tensor = "m.weight_shape", .at = 2, .value = 0, .code = LQ_E_INCONSISTENT, .word = "m.weight_shape"},
    {"ct-int4-asym", .hfrom = "\"m.weight_zero_point\":{\"dtype\":\"I32\",\"shape\":[3,2]", .hto = "\"m.weight_zero_point\":{\"dtype\":\"I32\",\"shape\":[2,3]",
     .code = LQ_E_INCONSISTENT, .word = "m.weight_zero_point"},
    {"ct-w8a8", .hfrom = "m.weight_scale", .hto = "m.weight_skale", .code = LQ_E_INCONSISTENT, .word = "m.weight_scale"},
    {"ct-w8a8", .from = "\"type\": \"int\"", .to = "\"type\": \"float\"", .code = LQ_E_INCONSISTENT, .word = "m.weight"},
    {"fp8", .from = "[16, 16]", .to = "[16, 0]", .code = LQ_E_UNSUPPORTED, .word = "weight_block_size"},
    {"fp8", .from = "[16, 16]", .to = "[16]", .code = LQ_E_INCONSISTENT, .word = "weight_block_size"},
    {"fp8", .from = "[16, 16]", .to = "[8, 16]", .code = LQ_E_INCONSISTENT, .word = "m.weight_scale_inv"},
    {"fp8", .from = "e4m3", .to = "e5m2", .code = LQ_E_UNSUPPORTED, .word = "e5m2"},
    {"fp8", .hfrom = "m.weight_scale_inv", .hto = "m.weight_scale_jnv", .code = LQ_E_INCONSISTENT, .word = "m.weight_scale_inv"},
    {"ct-int4", .from = "\"group_size\": 64", .to = "\"group_size\": 48", .code = LQ_E_UNSUPPORTED, .word = "group_0.weights.group_size"},
    {"ct-fp8", .from = "\"num_bits\": 8", .to = "\"num_bits\": 4", .code = LQ_E_UNSUPPORTED, .word = "floats of 4 bits"},
    {"ct-fp8-block", .from = "[16, 16]", .to = "[16, 0]", .code = LQ_E_UNSUPPORTED, .word = "block_structure"},
    {"ct-fp8-block", .from = "[16, 16]", .to = "\"16x16\"", .code = LQ_E_UNSUPPORTED, .word = "block_structure"},
    {"ct-fp8-block", .from = "[16, 16]", .to = "[16, 8]", .code = LQ_E_INCONSISTENT, .word = "m.weight_scale"},
    {"ct-w8a8", .tensor = "m.weight_zero_point", .value = 1, .code = LQ_E_INCONSISTENT, .word = "m.weight", .word2 = "asymmetric"},
    {"ct-int8-asym", .from = "\"symmetric\": false", .to = "\"symmetric\": true", .code = LQ_E_INCONSISTENT, .word = "m.weight", .word2 = "asymmetric"},
    {"ct-int8-asym", .hfrom = "\"m.weight_zero_point\":{\"dtype\":\"I8\"", .hto = "\"m.weight_zero_point\":{\"dtype\":\"U8\"", .code = LQ_E_INCONSISTENT, .word = "m.weight_zero_point"},
    {"ct-int8-asym", .hfrom = "\"m.weight_zero_point\":{\"dtype\":\"I8\",\"shape\":[8,1]", .hto = "\"m.weight_zero_point\":{\"dtype\":\"I8\",\"shape\":[2,4]",
     .code = LQ_E_INCONSISTENT, .word = "m.weight_zero_point", .word2 = "shape"},
    {"ct-int8-group", .hfrom = "\"m.weight_scale\":{\"dtype\":\"F16\",\"shape\":[4,2]", .hto = "\"m.weight_scale\":{\"dtype\":\"F16\",\"shape\":[8,1]",
     .code = LQ_E_INCONSISTENT, .word = "m.weight_scale", .word2 = "shape"},
    {"ct-int8-group", .from = "\"group_size\": 32", .to = "\"group_size\": 64", .code = LQ_E_INCONSISTENT, .word = "m.weight", .word2 = "groups of 32"},
    {"bnb-nf4-cut", .text = "\"bfloat16\"", .text2 = "\"bfloat17\"", .code = LQ_E_UNSUPPORTED, .word = "quant_state", .word2 = "dtype"},
    {"bnb-nf4-cut", .text = "[16, 36]", .text2 = "[16, 35]", .code = LQ_E_INCONSISTENT, .word = "m.weight"},
    {"ct-int4-act", .tensor = "m.weight_g_idx", .at = 7, .value = 2, .code = LQ_E_INCONSISTENT, .word = "m.weight_g_idx"},
    {"ct-int4-act", .hfrom = "m.weight_g_idx", .hto = "m.weight_g_idy", .code = LQ_E_INCONSISTENT, .word = "m.weight_packed", .word2 = "without weight_g_idx"},
    {"ct-int4-act", .hfrom = "\"m.weight_scale\":{\"dtype\":\"F32\",\"shape\":[8,2]", .hto = "\"m.weight_scale\":{\"dtype\":\"F32\",\"shape\":[2,8]",
     .code = LQ_E_INCONSISTENT, .word = "m.weight_scale", .word2 = "groups"},
    {"awq-g64", .hfrom = "\"m.qweight\":{\"dtype\":\"I32\"", .hto = "\"m.qweight\":{\"dtype\":\"F32\"", .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "unknown"},
    {"bnb-int8", .hfrom = "\"m.weight\":{\"dtype\":\"I8\"", .hto = "\"m.weight\":{\"dtype\":\"U8\"", .code = LQ_E_INCONSISTENT, .word = "m.weight"},
    {"bnb-nf4-dq", .text = "\"nested_dtype\": \"float32\"", .text2 = "\"nested_dtype\": \"float16\"", .code = LQ_E_UNSUPPORTED, .word = "nested_dtype"},
    /* other methods */
    {"fp8", .hfrom = "\"F8_E4M3\"", .hto = "\"U8\"", .code = LQ_E_INCONSISTENT, .word = "m.weight_scale_inv"},
    {"awq-g64", .from = "\"awq\", \"bits\": 4, \"group_size\": 64, \"zero_point\": true, \"version\": \"gemm\", \"modules_to_not_convert\": null",
     .to = "\"gptq\", \"bits\": 4, \"group_size\": 64", .code = LQ_E_INCONSISTENT, .word = "m."},
    {"gptq4", .from = "\"gptq\", \"bits\": 4, \"group_size\": 32, \"desc_act\": false, \"sym\": false, \"damp_percent\": 0.01, "
     "\"static_groups\": false, \"true_sequential\": true, \"model_name_or_path\": null, ", .to = "\"awq\", \"bits\": 4, \"group_size\": 32, ",
     .code = LQ_E_INCONSISTENT, .word = "m.qweight", .word2 = "unknown"},
    {"bnb-nf4", .from = "\"load_in_4bit\": true", .to = "\"load_in_8bit_\": true", .code = LQ_E_UNSUPPORTED, .word = "load_in_8bit_"},
    {"bnb-int8", .from = "\"_load_in_8bit\": true, \"load_in_8bit\": true", .to = "\"_load_in_4bit\": true", .code = LQ_E_INCONSISTENT, .word = "m.SCB", .word2 = "load_in_8bit"},
    {"bnb-nf4", .from = "\"bnb_4bit_quant_type\": \"nf4\"", .to = "\"bnb_4bit_quant_type\": \"fp4\"", .code = LQ_E_INCONSISTENT, .word = "bitsandbytes__nf4"},
    {"ct-int4", .hfrom = "m.weight_packed", .hto = "m.weight_packet", .code = LQ_E_INCONSISTENT, .word = "m.weight_"},
    {"gptq4", .from = "quantization_config", .to = "quantizationconfig", .code = LQ_E_INCONSISTENT, .word = "m.", .word2 = "no quantization_config"},
    {"gptq4", .from = "gptq", .to = "hqq", .code = LQ_E_UNSUPPORTED, .word = "hqq", .word2 = "gptq"},
    {"gptq4", .from = "\"quant_method\": \"gptq\", ", .to = "", .code = LQ_E_UNSUPPORTED, .word = "quant_method"},
    {"gptq4", .hfrom = "m.qweight", .hto = "m.qweighs", .code = LQ_E_INCONSISTENT, .word = "m."},
};
START_TEST(test_bad) {
    const bad *b = &bads[_i];
    q_directory *dir = NULL;
    load_seed(b->seed);
    if (b->from) edit_config(b->from, b->to);
    if (b->hfrom) edit_header(b->hfrom, b->hto);
    if (b->tensor) memcpy(data_of(b->tensor) + 4 * (size_t)b->at, &b->value, 4);
    if (b->text) {
        size_t i = 8 + (size_t)q_load64(weights);
        while (i < n_weights && memcmp(weights + i, b->text, strlen(b->text)) != 0) i++;
        ck_assert_msg(i < n_weights && strlen(b->text) == strlen(b->text2), "no %s", b->text);
        memcpy(weights + i, b->text2, strlen(b->text2));
    }
    const lq_status s = open_it(_i & 1, &q_alloc_libc, &dir);
    ck_assert_msg(s == b->code, "%s, %s%s%s: %s instead of %s (%s)", b->seed, b->to ? b->to : "", b->hto ? b->hto : "",
                  b->tensor ? b->tensor : "", lq_status_name(s), lq_status_name(b->code), s ? lq_error_detail() : "opened");
    ck_assert(!dir);
    ck_assert_msg(strstr(lq_error_detail(), dir_path) != NULL, "'%s' does not name the folder", lq_error_detail());
    ck_assert_msg(strstr(lq_error_detail(), b->word) != NULL, "'%s' does not name '%s'", lq_error_detail(), b->word);
    if (b->word2) ck_assert_msg(strstr(lq_error_detail(), b->word2) != NULL, "'%s' does not name '%s'", lq_error_detail(), b->word2);
}
END_TEST

/* ---- a whole model */

/* A matrix of AWQ's other layouts that is longer than a strip, its codes put where the steps of the packing take them. */
START_TEST(test_awq_strips) {
    enum { IN = 1024, OUT = 1004, GROUPS = 8 };
    static const char *const configs[] = {"gemv", "gemv_fast"};
    const bool fast = _i == 1;
    static box b;
    static uint8_t codes[OUT * IN], zeros[OUT * GROUPS];
    static uint16_t scales[OUT * GROUPS];
    uint64_t seed = 11, wrong = 0;
    b.n = b.bytes = 0;
    b.data = calloc(1, 1 << 20);
    uint8_t *words = box_add(&b, q_str_of("m.qweight"), fast ? "I16" : "I32", fast ? OUT / 4 : OUT, fast ? IN : IN / 8, OUT * IN / 2);
    uint16_t *s = box_add(&b, q_str_of("m.scales"), "F16", fast ? GROUPS : OUT, fast ? OUT : GROUPS, sizeof scales);
    uint8_t *z = box_add(&b, q_str_of("m.qzeros"), fast ? "F16" : "I32", fast ? GROUPS : OUT, fast ? OUT : GROUPS / 8,
                         fast ? sizeof scales : sizeof scales / 4);
    for (uint32_t o = 0; o < OUT; o++) {
        for (uint32_t i = 0; i < IN; i++) {
            /* The pairs of each eight of 32 in turn; evens of every eight of these, then odds; 64 of each of four outputs. */
            const uint32_t pair = i % 8 / 2, x = i % 32 / 8 * 2 + i % 2, place = 8 * pair + (x % 2 ? 4 : 0) + x / 2;
            const uint32_t at = fast ? o / 4 * 4 * IN + i / 64 * 256 + o % 4 * 64 + i % 64 / 32 * 32 + place : o * IN + i;
            codes[o * IN + i] = t_rand(&seed) & 15;
            words[at / 2] |= (uint8_t)(codes[o * IN + i] << at % 2 * 4);
        }
        for (uint32_t g = 0; g < GROUPS; g++) {
            const uint32_t at = o * GROUPS + g;
            scales[at] = q_f32_to_half(0.02f + 0.01f * t_uniform(&seed));
            zeros[at] = t_rand(&seed) & 15;
            s[fast ? g * OUT + o : at] = scales[at];
            if (fast) q_store16(z + 2 * (g * OUT + o), q_f32_to_half(-q_half_to_f32(scales[at]) * (float)zeros[at]));
            else z[at / 2] |= (uint8_t)(zeros[at] << at % 2 * 4);
        }
    }
    snprintf(dir_path, sizeof dir_path, "%s/hf-strips-%d-%d", t_tmp(), (int)getpid(), _i);
    ck_assert_int_eq(mkdir(dir_path, 0700), 0);
    snprintf(config, sizeof config, "{\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":128,"
             "\"version\":\"%s\"}}", configs[_i]);
    put("config.json", config, strlen(config));
    box_write(&b);
    const q_load_options options = {.alloc = &q_alloc_libc};
    q_directory *dir;
    ck_assert_msg(q_directory_open(dir_path, &options, &dir) == LQ_OK, "%s", lq_error_detail());
    const q_tensor *t = q_directory_tensor(dir, q_str_of("m.weight"));
    ck_assert(t && t->shape[0] == IN && t->rows == OUT && t->view->strip < OUT);
    float *y = decode(dir, t);
    for (uint32_t i = 0; i < OUT * IN; i++)
        wrong += y[i] != q_half_to_f32(scales[i / 128]) * (float)(codes[i] - zeros[i / 128]);
    ck_assert_uint_eq(wrong, 0);
    free(y);
    free(b.data);
    q_directory_close(dir);
}
END_TEST

/* The matrix of a layer as random codes of GPTQ with act-order, and as the floats that these are. */
static void add_pair(const q_tensor *t, box *gptq, box *plain, uint64_t *seed) {
    const uint64_t in = t->shape[0], out = t->rows, groups = in / 32;
    char names[4][128];
    q_str part[4];
    static const char *const ends[] = {"qweight", "qzeros", "scales", "g_idx"};
    for (int i = 0; i < 4; i++) {
        snprintf(names[i], sizeof names[i], "%.*s.%s", (int)t->name.n - 7, t->name.p, ends[i]);
        part[i] = q_str_of(names[i]);
    }
    uint32_t *qweight = box_add(gptq, part[0], "I32", in / 8, out, in / 2 * out);
    uint32_t *qzeros = box_add(gptq, part[1], "I32", groups, out / 8, groups * out / 2);
    uint16_t *scales = box_add(gptq, part[2], "F16", groups, out, groups * out * 2);
    int32_t *g_idx = box_add(gptq, part[3], "I32", 0, in, in * 4);
    float *w = box_add(plain, t->name, "F32", out, in, in * out * 4);
    for (uint64_t i = 0; i < in / 8 * out; i++) qweight[i] = (uint32_t)t_rand(seed);
    for (uint64_t i = 0; i < groups * out / 8; i++) qzeros[i] = (uint32_t)t_rand(seed) & 0x77777777;
    for (uint64_t i = 0; i < groups * out; i++) scales[i] = q_f32_to_half(0.02f + 0.01f * t_uniform(seed));
    for (uint64_t i = 0; i < in; i++) g_idx[i] = (int32_t)(i % groups); /* as unordered as can be */
    for (uint64_t o = 0; o < out; o++)
        for (uint64_t i = 0; i < in; i++) {
            const uint64_t g = (uint64_t)g_idx[i];
            const int code = (int)(qweight[i / 8 * out + o] >> i % 8 * 4 & 15), zero = (int)(qzeros[g * out / 8 + o / 8] >> o % 8 * 4 & 15) + 1;
            w[o * in + i] = q_half_to_f32(scales[g * out + o]) * (float)(code - zero);
        }
}

/* An allocator that has so many blocks left, and knows how many are out. */
typedef struct miser {
    uint64_t left, held;
} miser;
static void *stingy(void *user, size_t n, size_t align) {
    miser *m = user;
    if (m->left == 0) return NULL;
    m->left--;
    m->held++;
    return aligned_alloc(align, (n + align - 1) / align * align);
}
static void give(void *user, void *p, size_t n) {
    miser *m = user;
    Q_UNUSED(n);
    if (p) m->held--;
    free(p);
}
static int count_bytes(void *user, const void *data, size_t n) {
    Q_UNUSED(data);
    *(size_t *)user += n;
    return 0;
}

/* Logits of five tokens in float32. An open session allocates nothing, also to save what it has. */
static void logits_of(const char *path, float *out) {
    lq_ctx *ctx;
    lq_model *m = NULL;
    lq_session *s;
    miser blocks = {.left = UINT64_MAX};
    const int32_t ids[5] = {1, 100, 261, 7, 30};
    const lq_session_options o = {.size = sizeof o, .activations = "f32"};
    const lq_allocator alloc = {stingy, give, &blocks};
    ck_assert_int_eq(lq_open(&(lq_options){.size = sizeof(lq_options), .allocator = &alloc}, &ctx), LQ_OK);
    ck_assert_msg(lq_model_open(ctx, path, NULL, &m) == LQ_OK, "%s", lq_error_detail());
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    const uint64_t left = blocks.left;
    size_t saved = 0;
    ck_assert_int_eq(t_decode(s, ids, 5, 4), LQ_OK);
    ck_assert_int_eq(lq_seq_save(s, 0, count_bytes, &saved), LQ_OK);
    ck_assert(saved > 0 && blocks.left == left);
    const float *l = NULL;
    ck_assert_int_eq(lq_logits(s, 0, &l), LQ_OK);
    memcpy(out, l, 262 * sizeof *out);
    lq_session_close(s);
    lq_model_close(m);
    lq_close(ctx);
    ck_assert_uint_eq(blocks.held, 0);
}

START_TEST(test_whole_model) {
    static tiny t;
    static box gptq, plain;
    char paths[3][512], gguf[520];
    uint64_t seed = 5;
    for (int i = 0; i < 3; i++) {
        snprintf(paths[i], sizeof paths[i], "%s/whole-%d-%d", t_tmp(), (int)getpid(), i);
        ck_assert_int_eq(mkdir(paths[i], 0700), 0);
        tiny_init(&t, "f16");
        tiny_write_hf(&t, paths[i]); /* two of them lose their weights again */
    }
    gptq.data = calloc(1, 1 << 20);
    plain.data = calloc(1, 1 << 20);
    const q_load_options o = {.alloc = &q_alloc_libc, .map = true};
    q_directory *dir;
    ck_assert_int_eq(q_directory_open(paths[0], &o, &dir), LQ_OK);
    for (uint32_t i = 0; i < dir->n_tensors; i++) {
        const q_tensor *x = &dir->tensors[i];
        if (x->name.n > 12 && memcmp(x->name.p + x->name.n - 12, "_proj.weight", 12) == 0) {
            add_pair(x, &gptq, &plain, &seed);
            continue;
        }
        memcpy(box_add(&gptq, x->name, "F16", x->rank > 1 ? x->rows : 0, x->shape[0], x->bytes), x->data, x->bytes);
        memcpy(box_add(&plain, x->name, "F16", x->rank > 1 ? x->rows : 0, x->shape[0], x->bytes), x->data, x->bytes);
    }
    q_directory_close(dir);
    snprintf(dir_path, sizeof dir_path, "%s", paths[1]);
    box_write(&plain);
    snprintf(dir_path, sizeof dir_path, "%s", paths[2]);
    box_write(&gptq);
    char path[600], text[4096];
    FILE *f = fopen(t_path(path, sizeof path, dir_path, "config.json"), "r+");
    text[fread(text, 1, sizeof text - 1, f)] = 0;
    ck_assert_int_eq(fseek(f, (long)(strrchr(text, '}') - text), SEEK_SET), 0);
    fprintf(f, ",\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32,\"desc_act\":true,\"sym\":false}}\n");
    ck_assert_int_eq(fclose(f), 0);

    float want[262], got[262];
    logits_of(paths[1], want);
    logits_of(paths[2], got);
    for (int i = 0; i < 262; i++) ck_assert_float_eq_tol(got[i], want[i], 1e-4f);
    snprintf(gguf, sizeof gguf, "%s.gguf", paths[2]);
    lq_ctx *ctx;
    ck_assert_int_eq(lq_open(NULL, &ctx), LQ_OK);
    lq_quantize_options q = {.size = sizeof q, .scheme = "f32", .threads = 2};
    ck_assert_int_eq(lq_quantize(ctx, paths[2], gguf, &q, NULL), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "huggingface gptq"));
    q.requantize = 1;
    ck_assert_msg(lq_quantize(ctx, paths[2], gguf, &q, NULL) == LQ_OK, "%s", lq_error_detail());
    lq_close(ctx);
    logits_of(gguf, got);
    for (int i = 0; i < 262; i++) ck_assert_float_eq_tol(got[i], want[i], 1e-4f);
    free(gptq.data);
    free(plain.data);
}
END_TEST

/* Every allocation refused in turn: the same code, nothing left behind. */
static const char *const all_seeds[] = {"gptq4", "gptq2-act", "awq-g64", "awq-llm", "awq-gemv", "bnb-nf4-dq", "bnb-int8", "ct-int4-asym", "ct-w8a8", "fp8", "bnb-nf4-dq-cut", "ct-int8-asym-group"};
START_TEST(test_memory) {
    uint64_t k = 0;
    lq_status s = LQ_E_NOMEM;
    for (; s == LQ_E_NOMEM && k < 2000; k++) {
        miser m = {.left = k};
        const q_alloc a = {stingy, give, &m};
        q_directory *dir = NULL;
        load_seed(all_seeds[_i]);
        make_dir();
        if (_i == 0) { /* described beside config.json */
            const size_t n = strlen("{\"quantization_config\": ");
            put("quantize_config.json", config + n, strlen(config) - n - 1);
            snprintf(config, sizeof config, "{}");
        }
        s = open_it(false, &a, &dir);
        if (s == LQ_OK) {
            const q_tensor *t = &dir->tensors[0];
            uint8_t *row = malloc(t->bytes);
            s = q_tensor_read(dir, t, 0, row, t->row_bytes);
            if (s == LQ_OK) s = q_tensor_read(dir, t, 0, row, t->bytes);
            free(row);
            q_directory_close(dir);
        }
        ck_assert_msg(s == LQ_OK || s == LQ_E_NOMEM, "after %d: %s", (int)k, lq_error_detail());
        ck_assert_uint_eq(m.held, 0);
    }
    ck_assert_int_eq(s, LQ_OK);
    ck_assert_uint_gt(k, 10);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("hf_quant");
    TCase *c = tcase_create("all");
    tcase_add_test(c, test_golden);
    tcase_add_loop_test(c, test_told, 0, (int)Q_COUNT(told));
    tcase_add_loop_test(c, test_activations, 0, (int)Q_COUNT(with_activations));
    tcase_add_test(c, test_auto_fp8);
    tcase_add_loop_test(c, test_beside, 0, (int)Q_COUNT(besides));
    tcase_add_test(c, test_beside_floats);
    tcase_add_test(c, test_beside_each_other);
    tcase_add_test(c, test_awq_names);
    tcase_add_test(c, test_rounded_scales);
    tcase_add_loop_test(c, test_bad, 0, (int)Q_COUNT(bads));
    tcase_add_loop_test(c, test_awq_strips, 0, 2);
    tcase_add_test(c, test_whole_model);
    tcase_add_loop_test(c, test_memory, 0, (int)Q_COUNT(all_seeds));
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
