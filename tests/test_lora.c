/* test_lora.c: adapters of low rank: merged as PEFT merges them, the same bits from either form of file onto either form of
 * base, and what every bad one gets. */
#include "harness.h"

#include <math.h>
#include <sys/stat.h>

#include "../libquant/lora.h"
#include "help_model.h"

static const q_alloc *const A = &q_alloc_libc;
static char base[1024], pocket[1200], hf[1200], gguf[1200], golden[1200];
static lq_ctx *ctx;

static const char *in(const char *name) {
    static char buf[64][1400]; /* more than a test wants at once */
    static int at;
    at = (at + 1) % 64;
    return t_path(buf[at], sizeof buf[at], base, name);
}

static void setup(void) {
    static tiny t;
    snprintf(base, sizeof base, "%s/lora-%ld", t_tmp(), (long)getpid());
    t_path(pocket, sizeof pocket, t_root(), "bench/data/pocket");
    t_path(golden, sizeof golden, t_root(), "tests/golden/lora");
    t_path(hf, sizeof hf, base, "model");
    t_path(gguf, sizeof gguf, base, "model.gguf");
    ck_assert_int_eq(mkdir(base, 0777), 0);
    ck_assert_int_eq(mkdir(hf, 0777), 0);
    tiny_init(&t, "f16");
    tiny_write_hf(&t, hf);
    tiny_write(&t, gguf);
    const lq_options o = {.size = sizeof o, .threads = 2};
    ck_assert_int_eq(lq_open(&o, &ctx), LQ_OK);
}
static void teardown(void) {
    lq_close(ctx);
    t_remove(base);
}

/* ---- merging */

static lq_quantize_result merge(const char *src, const char *dst, const char *scheme, const char *const *paths, const float *scales,
                                uint32_t n, uint32_t threads) {
    const lq_quantize_options o = {.size = sizeof o, .scheme = scheme, .threads = threads, .force = 1, .loras = paths,
                                   .lora_scales = scales, .n_loras = n};
    lq_quantize_result r = {.size = sizeof r};
    ck_assert_msg(lq_quantize(ctx, src, dst, &o, &r) == LQ_OK, "%s", lq_error_detail());
    return r;
}

static q_directory *open_dir(const char *path) {
    const q_load_options o = {.alloc = A, .map = true};
    q_directory *d;
    ck_assert_msg(q_directory_open(path, &o, &d) == LQ_OK, "%s", lq_error_detail());
    return d;
}

/* Tensors of two models that differ; all names and formats are alike. */
static uint32_t differ(const char *one, const char *two) {
    q_directory *x = open_dir(one), *y = open_dir(two);
    uint32_t n = 0;
    ck_assert_uint_eq(x->n_tensors, y->n_tensors);
    for (uint32_t i = 0; i < x->n_tensors; i++) {
        const q_tensor *t = &x->tensors[i], *u = q_directory_tensor(y, t->name);
        ck_assert(u && u->format == t->format && u->bytes == t->bytes);
        n += memcmp(t->data, u->data, (size_t)t->bytes) != 0;
    }
    q_directory_close(x);
    q_directory_close(y);
    return n;
}

static uint64_t fnv_of(const char *dir, const char *name) {
    q_directory *d = open_dir(dir);
    const q_tensor *t = q_directory_tensor(d, q_str_of(name));
    ck_assert_msg(t && strcmp(t->type_name, "f32") == 0, "%s", name);
    const uint64_t h = q_fnv64(t->data, (size_t)t->bytes);
    q_directory_close(d);
    return h;
}

/* PEFT's own merge of an adapter that it wrote, to the bit. */
START_TEST(as_peft_merges) {
    const char *const paths[] = {golden};
    char list[1300], name[128];
    unsigned long long hash;
    uint32_t n = 0;
    merge(pocket, in("plain/"), "f32", NULL, NULL, 0, 2);
    const lq_quantize_result r = merge(pocket, in("merged/"), "f32", paths, NULL, 1, 2);
    FILE *f = fopen(t_path(list, sizeof list, t_root(), "tests/golden/lora.txt"), "r");
    ck_assert_ptr_nonnull(f);
    for (; fscanf(f, "%127s %llx", name, &hash) == 2; n++)
        ck_assert_msg(fnv_of(in("merged"), name) == hash, "%s is not as PEFT has it", name);
    fclose(f);
    ck_assert_uint_eq(n, 8);
    ck_assert_uint_eq(r.adapted, n);
    ck_assert_uint_eq(differ(in("plain"), in("merged")), n);
}
END_TEST

/* The same adapter as a GGUF file: names and rows in its convention. */
static void write_gguf_form(const char *peft, const char *path, double alpha) {
    static char names[64][96];
    q_out_tensor outs[64] = {0};
    float *data[64];
    q_directory *d;
    q_lora_part *parts;
    q_arena arena = {.alloc = A};
    uint32_t n, k = 0;
    const q_load_options o = {.alloc = A, .adapter = true};
    ck_assert_int_eq(q_directory_open(peft, &o, &d), LQ_OK);
    ck_assert_msg(q_lora_read(&arena, d, &parts, &n) == LQ_OK, "%s", lq_error_detail());
    static const char *const from[] = {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                                       "mlp.up_proj", "mlp.down_proj"};
    static const char *const to[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};
    for (uint32_t i = 0; i < n; i++) {
        int layer;
        char part[64];
        ck_assert_int_eq(sscanf(parts[i].target.p, "model.layers.%d.%63[a-z_.]", &layer, part), 2);
        size_t w = 0;
        while (strncmp(part, from[w], strlen(from[w])) != 0) w++;
        for (int b = 0; b < 2; b++, k++) {
            const q_tensor *t = b ? parts[i].b : parts[i].a;
            snprintf(names[k], sizeof names[k], "blk.%d.%s.weight.lora_%c", layer, to[w], 'a' + b);
            outs[k] = (q_out_tensor){.name = q_str_of(names[k]), .format = q_format_find("f32"), .rank = 2,
                                     .shape = {t->shape[0], t->shape[1], 1, 1, 1, 1, 1, 1}};
            data[k] = malloc((size_t)(t->shape[0] * t->rows) * sizeof(float));
            uint8_t *raw = malloc((size_t)t->bytes);
            ck_assert_int_eq(q_tensor_read(d, t, 0, raw, t->bytes), LQ_OK);
            const uint64_t head = 64, rank = t->shape[0];
            for (uint64_t r = 0; r < t->rows; r++) {
                /* rotary pairs side by side, the factor (which may differ by module) in B */
                const uint64_t at = !b || w > 1 ? r : r / head * head + r % 2 * (head / 2) + r % head / 2;
                q_decode_row(t->format, raw + at * t->row_bytes, (int64_t)t->shape[0], data[k] + r * t->shape[0]);
                for (uint64_t j = 0; b && j < rank; j++) data[k][r * rank + j] *= (float)(parts[i].factor / (alpha / (double)rank));
            }
            free(raw);
        }
    }
    const q_meta meta[] = {{.key = q_str_of("general.architecture"), .type = Q_META_STRING, .count = 1, .s = q_str_of("llama")},
                           {.key = q_str_of("general.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of("adapter")},
                           {.key = q_str_of("adapter.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of("lora")},
                           {.key = q_str_of("adapter.lora.alpha"), .type = Q_META_F32, .count = 1, .f = alpha}};
    q_writer *w;
    ck_assert_msg(q_writer_gguf.open(A, path, true, meta, Q_COUNT(meta), outs, k, &w) == LQ_OK, "%s", lq_error_detail());
    for (uint32_t i = 0; i < k; i++) {
        ck_assert_int_eq(q_writer_gguf.write(w, data[i], outs[i].shape[0] * outs[i].shape[1] * sizeof(float)), LQ_OK);
        free(data[i]);
    }
    ck_assert_int_eq(q_writer_gguf.commit(w, NULL), LQ_OK);
    q_directory_close(d);
    q_arena_free(&arena);
}

/* Two forms of the adapter, two of the base, any number of threads. */
START_TEST(forms_agree) {
    char form[1400];
    const char *const peft[] = {golden}, *const other[] = {t_path(form, sizeof form, base, "adapter.gguf")};
    write_gguf_form(golden, form, 8);
    merge(pocket, in("base.gguf"), "f32", NULL, NULL, 0, 2);
    static const char *const schemes[] = {"f32", "q4_0"};
    for (size_t i = 0; i < Q_COUNT(schemes); i++) {
        ck_assert_uint_eq(merge(pocket, in("1.gguf"), schemes[i], peft, NULL, 1, 1).adapted, 8);
        merge(pocket, in("2.gguf"), schemes[i], other, NULL, 1, 3);
        merge(in("base.gguf"), in("3.gguf"), schemes[i], peft, NULL, 1, 2);
        merge(in("base.gguf"), in("4.gguf"), schemes[i], other, NULL, 1, 2);
        for (int j = 2; j <= 4; j++) {
            char name[16];
            snprintf(name, sizeof name, "%d.gguf", j);
            ck_assert_msg(differ(in("1.gguf"), in(name)) == 0, "%s as %s", name, schemes[i]);
        }
    }
    merge(pocket, in("dir/"), "f32", other, NULL, 1, 2); /* rows stay in the order of Hugging Face */
    merge(pocket, in("dir2/"), "f32", peft, NULL, 1, 2);
    ck_assert_uint_eq(differ(in("dir"), in("dir2")), 0);
}
END_TEST

static const q_meta *key(const q_directory *d, const char *name) {
    const q_meta *m = q_directory_meta(d, name);
    ck_assert_msg(m != NULL, "%s", name);
    return m;
}

/* Scales, several at once, and what the file then says. */
START_TEST(scales_and_keys) {
    const char *const paths[] = {golden, golden};
    const float none[] = {0, 0}, halves[] = {0.5f, 0.5f}, one[] = {1};
    merge(pocket, in("base.gguf"), "f32", NULL, NULL, 0, 2);
    ck_assert_uint_eq(merge(pocket, in("0.gguf"), "f32", paths, none, 2, 2).adapted, 0);
    ck_assert_uint_eq(differ(in("base.gguf"), in("0.gguf")), 0);
    merge(pocket, in("1.gguf"), "f32", paths, one, 1, 2);
    merge(pocket, in("2.gguf"), "f32", paths, halves, 2, 2);
    q_directory *x = open_dir(in("1.gguf")), *y = open_dir(in("2.gguf"));
    for (uint32_t i = 0; i < x->n_tensors; i++)
        for (uint64_t j = 0; j < x->tensors[i].bytes / 4; j++) {
            const float a = q_bits_f32(q_load32(x->tensors[i].data + 4 * j)), b = q_bits_f32(q_load32(y->tensors[i].data + 4 * j));
            ck_assert_msg(fabsf(a - b) <= 1e-6f * fmaxf(1, fabsf(a)), "%.*s: %g, %g", Q_STR_ARG(x->tensors[i].name), (double)a, (double)b);
        }
    ck_assert(q_str_is(key(y, "libquant.lora.1.name")->s, "lora") && key(y, "libquant.lora.1.scale")->f == 0.5);
    ck_assert_ptr_null(q_directory_meta(x, "libquant.lora.1.name"));
    q_directory_close(x);
    q_directory_close(y);
    merge(in("2.gguf"), in("3.gguf"), "f32", paths, one, 1, 2); /* a third one onto what was merged */
    x = open_dir(in("3.gguf"));
    ck_assert(key(x, "libquant.lora.1.scale")->f == 0.5 && key(x, "libquant.lora.2.scale")->f == 1);
    q_directory_close(x);
}
END_TEST

/* ---- bad input */

typedef struct mat {
    const char *name, *dtype; /* "F32" */
    uint64_t rows, cols;
    float first;
} mat;
static uint64_t item_bytes(const char *dtype) { return strcmp(dtype, "F32") == 0 || strcmp(dtype, "I32") == 0 ? 4 : 2; }

static void write_peft(const char *dir, const char *config, const mat *m, size_t n) {
    char path[1400];
    static char header[8192];
    uint64_t at = 0, len = 0;
    mkdir(dir, 0777);
    FILE *f = fopen(t_path(path, sizeof path, dir, "adapter_config.json"), "wb");
    fputs(config, f);
    fclose(f);
    f = fopen(t_path(path, sizeof path, dir, "adapter_model.safetensors"), "wb");
    len += (uint64_t)snprintf(header, sizeof header, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = 0; i < n; i++) {
        const uint64_t bytes = m[i].rows * m[i].cols * item_bytes(m[i].dtype);
        len += (uint64_t)snprintf(header + len, sizeof header - len, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%d,%d],\"data_offsets\":[%llu,%llu]}",
                                  m[i].name, m[i].dtype, (int)m[i].rows, (int)m[i].cols, (unsigned long long)at,
                                  (unsigned long long)(at + bytes));
        at += bytes;
    }
    len += (uint64_t)snprintf(header + len, sizeof header - len, "}");
    fwrite(&len, 8, 1, f);
    fwrite(header, 1, len, f);
    for (size_t i = 0; i < n; i++)
        for (uint64_t j = 0; j < m[i].rows * m[i].cols; j++) {
            const float v = j == 0 ? m[i].first : (float)((int)(j * 7 % 13) - 6) / 64;
            const uint16_t h = q_f32_to_half(v);
            fwrite(item_bytes(m[i].dtype) == 4 ? (const void *)&v : &h, item_bytes(m[i].dtype), 1, f);
        }
    fclose(f);
}

#define Q "base_model.model.model.layers.0.self_attn.q_proj."
#define L1 "base_model.model.model.layers.1.mlp.down_proj."
#define GOOD "\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"bias\":\"none\""
#define QA {Q "lora_A.weight", "F32", 2, 64, 0.5f}
#define QB {Q "lora_B.weight", "F32", 64, 2, 0.5f}

static const struct bad {
    const char *what, *config; /* NULL: GOOD */
    mat m[4];                  /* none: QA, QB */
    lq_status status;
    const char *says;
} bad[] = {
    {"no module", NULL, {{"base_model.model.lora_A.weight", "F32", 2, 64, 0}, {"base_model.model.lora_B.weight", "F32", 64, 2, 0}},
     LQ_E_UNSUPPORTED, "'base_model.model.lora_A.weight' is not one of"},
    {"rank 0 in the configuration", "{\"peft_type\":\"LORA\",\"r\":0,\"lora_alpha\":4}", {{0}}, LQ_E_INCONSISTENT, "at least rank 1"},
    {"rank -1", "{\"peft_type\":\"LORA\",\"r\":-1,\"lora_alpha\":4}", {{0}}, LQ_E_INCONSISTENT, "at least rank 1"},
    {"rank 2.5", "{\"peft_type\":\"LORA\",\"r\":2.5,\"lora_alpha\":4}", {{0}}, LQ_E_INCONSISTENT, "'r' is missing or not an integer"},
    {"no rank", "{\"peft_type\":\"LORA\",\"lora_alpha\":4}", {{0}}, LQ_E_INCONSISTENT, "'r' is missing"},
    {"no alpha", "{\"peft_type\":\"LORA\",\"r\":2}", {{0}}, LQ_E_INCONSISTENT, "'lora_alpha' is missing"},
    {"alpha 0", "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":0}", {{0}}, LQ_E_INCONSISTENT, "'lora_alpha' is 0"},
    {"alpha NaN", "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":NaN}", {{0}}, LQ_E_FORMAT, "adapter_config.json"},
    {"alpha 1e999", "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1e999}", {{0}}, LQ_E_FORMAT, "adapter_config.json"},
    {"alpha text", "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":\"4\"}", {{0}}, LQ_E_INCONSISTENT, "'lora_alpha' is missing or not a number"},
    {"alpha of a pattern 0", "{" GOOD ",\"alpha_pattern\":{\"q_proj\":0}}", {{0}}, LQ_E_INCONSISTENT, "'alpha_pattern' is 0"},
    {"rank of a pattern", "{" GOOD ",\"rank_pattern\":{\"q_proj\":3}}", {{0}}, LQ_E_INCONSISTENT, "has rank 2; adapter_config.json says 3"},
    {"an expression", "{" GOOD ",\"rank_pattern\":{\"(q|k)_proj\":3}}", {{0}}, LQ_E_UNSUPPORTED, "pattern '(q|k)_proj'"},
    {"a key twice", "{" GOOD ",\"r\":2}", {{0}}, LQ_E_FORMAT, "adapter_config.json"},
    {"no JSON", "r = 2", {{0}}, LQ_E_FORMAT, "adapter_config.json"},
    {"no type", "{\"r\":2,\"lora_alpha\":4}", {{0}}, LQ_E_INCONSISTENT, "'peft_type' is missing"},
    {"another type", "{\"peft_type\":\"IA3\",\"r\":2,\"lora_alpha\":4}", {{0}}, LQ_E_UNSUPPORTED, "'peft_type' is 'IA3'"},
    {"a bit off", "{" GOOD ",\"use_rslora\":false,\"use_rslorc\":true}", {{0}}, LQ_E_UNSUPPORTED, "use_rslorc"},
    {"DoRA", "{" GOOD ",\"use_dora\":true}", {{0}}, LQ_E_UNSUPPORTED, "'use_dora' is 'true'"},
    {"biases", "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"bias\":\"all\"}", {{0}}, LQ_E_UNSUPPORTED, "'bias' is 'all'"},
    {"modules", "{" GOOD ",\"modules_to_save\":[\"lm_head\"]}", {{0}}, LQ_E_UNSUPPORTED, "'modules_to_save' is 'a list'"},
    {"transposed", "{" GOOD ",\"fan_in_fan_out\":true}", {{0}}, LQ_E_UNSUPPORTED, "fan_in_fan_out"},
    {"a changed base", "{" GOOD ",\"init_lora_weights\":\"pissa_niter_4\"}", {{0}}, LQ_E_UNSUPPORTED, "'pissa_niter_4'"},
    {"layers twice", "{" GOOD ",\"layer_replication\":[[0,1],[0,1]]}", {{0}}, LQ_E_UNSUPPORTED, "layer_replication"},
    {"a field of tomorrow", "{" GOOD ",\"use_more\":{\"of\":7}}", {{0}}, LQ_E_UNSUPPORTED, "'use_more.of' is not understood"},
    {"rank 0 in the tensors", NULL, {{Q "lora_A.weight", "F32", 0, 64, 0}, {Q "lora_B.weight", "F32", 64, 0, 0}}, LQ_E_INCONSISTENT, "has rank 0"},
    {"ranks of A and B", NULL, {QA, {Q "lora_B.weight", "F32", 64, 3, 0}}, LQ_E_INCONSISTENT, "lora_A.weight' has rank 2, '" Q "lora_B.weight' 3"},
    {"another rank than said", NULL, {{Q "lora_A.weight", "F32", 3, 64, 0}, {Q "lora_B.weight", "F32", 64, 3, 0}}, LQ_E_INCONSISTENT, "has rank 3; adapter_config.json says 2"},
    {"A alone", NULL, {QA}, LQ_E_INCONSISTENT, "has no '" Q "lora_B.weight'"},
    {"B alone", NULL, {QB}, LQ_E_INCONSISTENT, "has no '" Q "lora_A.weight'"},
    {"inputs", NULL, {{Q "lora_A.weight", "F32", 2, 32, 0}, QB}, LQ_E_INCONSISTENT, "32 inputs and 64 outputs"},
    {"outputs", NULL, {QA, {Q "lora_B.weight", "F32", 32, 2, 0}}, LQ_E_INCONSISTENT, "64 inputs and 32 outputs"},
    {"no such layer", NULL, {{"base_model.model.model.layers.2.self_attn.q_proj.lora_A.weight", "F32", 2, 64, 0},
                             {"base_model.model.model.layers.2.self_attn.q_proj.lora_B.weight", "F32", 64, 2, 0}},
     LQ_E_INCONSISTENT, "'model.layers.2.self_attn.q_proj.weight' is no tensor of the model"},
    {"no such module", NULL, {{"base_model.model.model.layers.0.self_attn.w_pack.lora_A.weight", "F32", 2, 64, 0},
                              {"base_model.model.model.layers.0.self_attn.w_pack.lora_B.weight", "F32", 64, 2, 0}},
     LQ_E_INCONSISTENT, "w_pack.weight' is no tensor of the model"},
    {"a layer's zeros", NULL, {{"base_model.model.model.layers.00.self_attn.q_proj.lora_A.weight", "F32", 2, 64, 0},
                               {"base_model.model.model.layers.00.self_attn.q_proj.lora_B.weight", "F32", 64, 2, 0}},
     LQ_E_INCONSISTENT, "is no tensor of the model"},
    {"a huge layer", NULL, {{"base_model.model.model.layers.99999999999.self_attn.q_proj.lora_A.weight", "F32", 2, 64, 0},
                            {"base_model.model.model.layers.99999999999.self_attn.q_proj.lora_B.weight", "F32", 64, 2, 0}},
     LQ_E_INCONSISTENT, "is no tensor of the model"},
    {"a norm", NULL, {{"base_model.model.model.layers.0.input_layernorm.lora_A.weight", "F32", 2, 64, 0},
                      {"base_model.model.model.layers.0.input_layernorm.lora_B.weight", "F32", 1, 2, 0}},
     LQ_E_UNSUPPORTED, "is not a single matrix"},
    {"an embedding", NULL, {{"base_model.model.model.embed_tokens.lora_A.weight", "F32", 2, 64, 0},
                            {"base_model.model.model.embed_tokens.lora_B.weight", "F32", 262, 2, 0}},
     LQ_E_UNSUPPORTED, "is a table of embeddings"},
    {"an embedding as PEFT has it", NULL, {QA, QB, {"base_model.model.model.embed_tokens.lora_embedding_A", "F32", 2, 262, 0}},
     LQ_E_UNSUPPORTED, "'base_model.model.model.embed_tokens.lora_embedding_A' is not one of"},
    {"DoRA's magnitudes", NULL, {QA, QB, {Q "lora_magnitude_vector", "F32", 1, 64, 0}}, LQ_E_UNSUPPORTED, "lora_magnitude_vector"},
    {"no prefix", NULL, {{"model.layers.0.self_attn.q_proj.lora_A.weight", "F32", 2, 64, 0}}, LQ_E_UNSUPPORTED, "is not one of base_model.model."},
    {"integers", NULL, {{Q "lora_A.weight", "I32", 2, 64, 0}, QB}, LQ_E_UNSUPPORTED, "i32"},
    {"NaN in A", NULL, {{Q "lora_A.weight", "F32", 2, 64, NAN}, QB}, LQ_E_INCONSISTENT, "'" Q "lora_A.weight' has a value that is not finite in row 0, column 0"},
    {"infinity in B", NULL, {QA, {Q "lora_B.weight", "F16", 64, 2, INFINITY}}, LQ_E_INCONSISTENT, "'" Q "lora_B.weight' has a value that is not finite"},
    {"another base", "{" GOOD ",\"libquant\":{\"base\":{\"hash\":\"0123456789abcdef\"}}}", {{0}}, LQ_E_INCONSISTENT, "hash '0123456789abcdef'"},
    {"a hash of another kind", "{" GOOD ",\"libquant\":{\"base\":{\"hash\":5}}}", {{0}}, LQ_E_INCONSISTENT, "is not a string"},
};

static void refused(const char *what, const char *src, const char *path, lq_status status, const char *says) {
    const char *const paths[] = {path};
    const lq_quantize_options o = {.size = sizeof o, .scheme = "q8_0", .loras = paths, .n_loras = 1};
    const lq_status s = lq_quantize(ctx, src, in("out.gguf"), &o, NULL);
    ck_assert_msg(s == status, "%s: %s, %s", what, lq_status_name(s), s ? lq_error_detail() : "");
    ck_assert_msg(strstr(lq_error_detail(), says) && strstr(lq_error_detail(), path), "%s: %s", what, lq_error_detail());
    ck_assert_int_ne(access(in("out.gguf"), F_OK), 0);
}

START_TEST(bad_directories) {
    const mat both[] = {QA, QB};
    for (size_t i = 0; i < Q_COUNT(bad); i++) {
        const struct bad *b = &bad[i];
        size_t n = 0;
        while (n < Q_COUNT(b->m) && b->m[n].name) n++;
        write_peft(in("adapter"), b->config ? b->config : "{" GOOD "}", n ? b->m : both, n ? n : 2);
        refused(b->what, hf, in("adapter"), b->status, b->says);
    }
    write_peft(in("adapter"), "{" GOOD "}", both, 0);
    refused("nothing", hf, in("adapter"), LQ_E_INCONSISTENT, "touches nothing");
    write_peft(in("adapter"), "{" GOOD "}", both, 2);
    truncate(in("adapter/adapter_model.safetensors"), 300);
    refused("cut short", hf, in("adapter"), LQ_E_TRUNCATED, "adapter_model.safetensors");
    refused("no adapter", hf, in("nothing"), LQ_E_IO, "nothing");
    refused("a model's directory", hf, hf, LQ_E_FORMAT, "adapter_config.json");
    refused("a model's file", hf, gguf, LQ_E_INCONSISTENT, "general.type");
    unlink(in("adapter/adapter_model.safetensors"));
    FILE *f = fopen(in("adapter/adapter_model.bin"), "wb");
    fclose(f);
    refused("pickle", hf, in("adapter"), LQ_E_UNSUPPORTED, "pickled");
}
END_TEST

/* What a model is asked that is an adapter; options that are wrong; outputs that are inputs; the right hash. */
START_TEST(uses) {
    const mat both[] = {QA, QB};
    lq_model *m;
    write_peft(in("adapter"), "{" GOOD "}", both, 2);
    ck_assert_int_eq(lq_model_open(ctx, in("adapter"), NULL, &m), LQ_E_ARG);
    ck_assert_msg(strstr(lq_error_detail(), "is an adapter"), "%s", lq_error_detail());
    const char *const paths[] = {in("adapter"), NULL};
    const float scales[] = {INFINITY, 1};
    lq_quantize_options o = {.size = sizeof o, .scheme = "q8_0", .loras = paths, .n_loras = 2, .dry_run = 1};
    ck_assert_int_eq(lq_quantize(ctx, hf, in("x.gguf"), &o, NULL), LQ_E_ARG);
    o.n_loras = 1, o.lora_scales = scales;
    ck_assert_int_eq(lq_quantize(ctx, hf, in("x.gguf"), &o, NULL), LQ_E_ARG);
    o.loras = NULL;
    ck_assert_int_eq(lq_quantize(ctx, hf, in("x.gguf"), &o, NULL), LQ_E_ARG);
    o.n_loras = 65;
    ck_assert_int_eq(lq_quantize(ctx, hf, in("x.gguf"), &o, NULL), LQ_E_ARG);
    o = (lq_quantize_options){.size = sizeof o, .scheme = "f32", .loras = paths, .n_loras = 1, .force = 1};
    ck_assert_int_eq(lq_quantize(ctx, hf, in("adapter/"), &o, NULL), LQ_E_ARG);
    ck_assert_msg(strstr(lq_error_detail(), "directory of an input"), "%s", lq_error_detail());
    ck_assert_int_eq(lq_quantize(ctx, gguf, in("adapter/adapter_config.json"), &o, NULL), LQ_E_ARG);
    ck_assert_msg(strstr(lq_error_detail(), "one of the inputs"), "%s", lq_error_detail());
    write_peft(in("adapter"), "{" GOOD ",\"libquant\":{\"base\":{\"hash\":\"0\"}}}", both, 2);
    ck_assert_int_eq(lq_quantize(ctx, hf, in("x.gguf"), &o, NULL), LQ_E_INCONSISTENT);
    const char *right = strstr(lq_error_detail(), "the model's is ");
    char config[256];
    snprintf(config, sizeof config, "{" GOOD ",\"libquant\":{\"base\":{\"hash\":\"%.16s\"}}}", right + strlen("the model's is "));
    write_peft(in("adapter"), config, both, 2);
    ck_assert_msg(lq_quantize(ctx, hf, in("x.gguf"), &o, NULL) == LQ_OK, "%s", lq_error_detail());
}
END_TEST

/* Keys of a GGUF adapter, one of them wrong. */
START_TEST(bad_files) {
    static const struct {
        const char *key, *text; /* text NULL: the key is left out, or is the number */
        double number;
        lq_status status;
        const char *says;
    } keys[] = {{"general.type", NULL, 0, LQ_E_INCONSISTENT, "general.type"},
                {"general.type", "model", 0, LQ_E_UNSUPPORTED, "'general.type' is 'model'"},
                {"adapter.type", "control", 0, LQ_E_UNSUPPORTED, "'adapter.type' is 'control'"},
                {"general.architecture", "gemma", 0, LQ_E_INCONSISTENT, "architecture 'gemma', the model is 'llama'"},
                {"general.architecture", NULL, 0, LQ_E_INCONSISTENT, "general.architecture"},
                {"adapter.lora.alpha", "4", 0, LQ_E_INCONSISTENT, "adapter.lora.alpha"},
                {"adapter.lora.alpha", NULL, 0, LQ_E_INCONSISTENT, "adapter.lora.alpha"},
                {"adapter.lora.alpha", NULL, NAN, LQ_E_INCONSISTENT, "is nan"},
                {"adapter.lora.alpha", NULL, INFINITY, LQ_E_INCONSISTENT, "is inf"},
                {"adapter.lora.alpha", NULL, 1e-45, LQ_OK, ""},
                {"adapter.alora.invocation_tokens", "1", 0, LQ_E_UNSUPPORTED, "alora"},
                {"adapter.lora.task_name", "poems", 0, LQ_OK, ""}};
    const char *const paths[] = {in("a.gguf")};
    const lq_quantize_options o = {.size = sizeof o, .scheme = "q8_0", .loras = paths, .n_loras = 1, .dry_run = 1};
    float zeros[256] = {0};
    const q_format *f32 = q_format_find("f32");
    for (size_t i = 0; i < Q_COUNT(keys); i++) {
        q_meta meta[5] = {{.key = q_str_of("general.architecture"), .type = Q_META_STRING, .count = 1, .s = q_str_of("llama")},
                          {.key = q_str_of("general.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of("adapter")},
                          {.key = q_str_of("adapter.type"), .type = Q_META_STRING, .count = 1, .s = q_str_of("lora")},
                          {.key = q_str_of("adapter.lora.alpha"), .type = Q_META_F32, .count = 1, .f = 4}};
        const q_out_tensor outs[] = {{.name = q_str_of("blk.1.attn_k.weight.lora_a"), .format = f32, .rank = 2, .shape = {64, 2, 1, 1, 1, 1, 1, 1}},
                                     {.name = q_str_of("blk.1.attn_k.weight.lora_b"), .format = f32, .rank = 2, .shape = {2, 32, 1, 1, 1, 1, 1, 1}}};
        uint32_t n = 0, k = 4;
        while (n < 4 && !q_str_is(meta[n].key, keys[i].key)) n++;
        if (n == k) k++;
        meta[n] = (q_meta){.key = q_str_of(keys[i].key), .count = 1, .type = keys[i].text ? Q_META_STRING : Q_META_F32,
                           .s = q_str_of(keys[i].text ? keys[i].text : ""), .f = keys[i].number};
        if (!keys[i].text && keys[i].number == 0) meta[n] = meta[--k];
        q_writer *w;
        ck_assert_msg(q_writer_gguf.open(A, paths[0], true, meta, k, outs, 2, &w) == LQ_OK, "%s", lq_error_detail());
        ck_assert_int_eq(q_writer_gguf.write(w, zeros, 64 * 2 * 4), LQ_OK);
        ck_assert_int_eq(q_writer_gguf.write(w, zeros, 32 * 2 * 4), LQ_OK);
        ck_assert_int_eq(q_writer_gguf.commit(w, NULL), LQ_OK);
        const lq_status s = lq_quantize(ctx, i % 2 ? hf : gguf, in("x.gguf"), &o, NULL);
        ck_assert_msg(s == keys[i].status && (s == LQ_OK || strstr(lq_error_detail(), keys[i].says)), "%s: %s", keys[i].key, lq_error_detail());
    }
}
END_TEST

/* Factors: alpha / rank, its root, and patterns by the ends of names. */
START_TEST(factors) {
    static const struct {
        const char *more;
        double q, down;
    } cases[] = {{"", 2, 2}, {",\"use_rslora\":true", 4 / 1.4142135623730951, 4 / 1.4142135623730951},
                 {",\"alpha_pattern\":{\"q_proj\":6,\"layers.0.self_attn.q_proj\":7}", 3, 2},
                 {",\"alpha_pattern\":{\"^q_proj\":6,\"_proj\":9,\"model.layers.1.mlp.down_proj\":5}", 2, 2.5},
                 {",\"alpha_pattern\":{\"^model.layers.0.self_attn.q_proj\":1.5,\"mlp.down.proj\":5}", 0.75, 2.5}};
    const mat all[] = {{L1 "lora_A.weight", "F16", 2, 96, 0}, {L1 "lora_B.weight", "F16", 64, 2, 0}, QA, QB};
    for (size_t i = 0; i < Q_COUNT(cases); i++) {
        char config[512];
        q_directory *d;
        q_lora_part *parts;
        q_arena arena = {.alloc = A};
        uint32_t n;
        snprintf(config, sizeof config, "{" GOOD "%s}", cases[i].more);
        write_peft(in("adapter"), config, all, 4);
        const q_load_options o = {.alloc = A, .adapter = true};
        ck_assert_msg(q_directory_open(in("adapter"), &o, &d) == LQ_OK, "%s", lq_error_detail());
        ck_assert_msg(q_lora_read(&arena, d, &parts, &n) == LQ_OK, "%s", lq_error_detail());
        ck_assert_uint_eq(n, 2);
        ck_assert(q_str_is(parts[0].target, "model.layers.1.mlp.down_proj.weight"));
        ck_assert_msg(fabs(parts[0].factor - cases[i].down) < 1e-12 && fabs(parts[1].factor - cases[i].q) < 1e-12, "%s: %g, %g",
                      cases[i].more, parts[1].factor, parts[0].factor);
        q_directory_close(d);
        q_arena_free(&arena);
    }
}
END_TEST

/* ---- unmerged */

enum { TOKENS = 40, VOCAB = 4096 };
typedef struct how {
    const char *const *paths;
    const float *scales;
    uint32_t n, threads, batch, quantized; /* quantized: activations as kernels like */
    const char *load_as;
} how;

static lq_model *open_model(lq_ctx *c, const char *path, const how *h) {
    const lq_model_options o = {.size = sizeof o, .loras = h->paths, .lora_scales = h->scales, .n_loras = h->n, .load_as = h->load_as};
    lq_model *m;
    ck_assert_msg(lq_model_open(c, path, &o, &m) == LQ_OK, "%s", lq_error_detail());
    return m;
}

/* Logits of all positions but those of a first part, then of three tokens alone. */
static float *logits(const char *path, how h) {
    const uint32_t n = TOKENS;
    const lq_session_options o = {.size = sizeof o, .context = 64, .batch = h.batch ? h.batch : TOKENS, .max_logits = TOKENS,
                                  .threads = h.threads ? h.threads : 2, .activations = h.quantized ? NULL : "f32"};
    lq_model *m = open_model(ctx, path, &h);
    lq_session *s;
    int32_t ids[TOKENS];
    float *out = malloc(sizeof *out * VOCAB * TOKENS);
    for (uint32_t i = 0; i < n; i++) ids[i] = (int32_t)(i * 97 % 4000 + 5);
    ck_assert_msg(lq_session_open(m, &o, &s) == LQ_OK, "%s", lq_error_detail());
    for (uint32_t at = 0, step; at < n; at += step) {
        step = at ? 1 : n - 3;
        ck_assert_msg(t_decode(s, ids + at, step, 0) == LQ_OK, "%s", lq_error_detail());
        for (uint32_t r = 0; r < step; r++) {
            const float *row;
            ck_assert_int_eq(lq_logits(s, r, &row), LQ_OK);
            memcpy(out + (at + r) * VOCAB, row, sizeof *row * VOCAB);
        }
    }
    lq_session_close(s);
    lq_model_close(m);
    return out;
}

/* The largest difference, over the largest logit. */
static double distance(float *a, float *b, bool free_a, bool free_b) {
    float most = 0, d = 0; /* differences of near values are exact, or nearly; of doubles gcc 12 for Arm fails to compile the loop */
    for (size_t i = 0; i < (size_t)VOCAB * TOKENS; i++) {
        most = fmaxf(most, fabsf(a[i]));
        d = fmaxf(d, fabsf(a[i] - b[i]));
    }
    if (free_a) free(a);
    if (free_b) free(b);
    return (double)d / (double)most;
}

START_TEST(runs_unmerged) {
    char form[1400];
    const char *const peft[] = {golden, golden}, *const other[] = {t_path(form, sizeof form, base, "adapter.gguf")};
    const float none[] = {0, 0}, halves[] = {0.5f, 0.5f}, mixed[] = {1, -0.25f};
    write_gguf_form(golden, form, 8);
    merge(pocket, in("merged.gguf"), "f32", peft, NULL, 1, 2);
    merge(pocket, in("mixed.gguf"), "f32", peft, mixed, 2, 2);
    float *plain = logits(pocket, (how){0}), *one = logits(pocket, (how){.paths = peft, .n = 1});
    ck_assert_double_gt(distance(plain, one, false, false), 1e-2); /* it is no small change */
    ck_assert_double_le(distance(logits(in("merged.gguf"), (how){0}), one, true, false), 1e-4);
    ck_assert_double_le(distance(logits(in("mixed.gguf"), (how){0}), logits(pocket, (how){.paths = peft, .scales = mixed, .n = 2}), true, true), 1e-4);
    ck_assert_double_le(distance(logits(pocket, (how){.paths = peft, .scales = halves, .n = 2}), one, true, false), 1e-5);
    ck_assert(distance(logits(pocket, (how){.paths = peft, .scales = none, .n = 2}), plain, true, true) == 0);
    ck_assert(distance(logits(pocket, (how){.paths = other, .n = 1}), one, true, false) == 0);
    ck_assert(distance(logits(pocket, (how){.paths = peft, .n = 1, .threads = 5}), one, true, false) == 0);
    ck_assert(distance(logits(pocket, (how){.paths = peft, .n = 1, .batch = 7, .threads = 1}), one, true, true) == 0);
}
END_TEST

/* Beside weights of few bits, packed and not, which the adapter does not round. */
START_TEST(runs_beside_quantized) {
    const char *const peft[] = {golden};
    const how as = {.paths = peft, .n = 1, .load_as = "q8_0", .quantized = 1};
    how h = as;
    merge(pocket, in("merged.gguf"), "q8_0", peft, NULL, 1, 2);
    float *one = logits(pocket, as);
    h.threads = 3, h.batch = 5;
    ck_assert(distance(logits(pocket, h), one, true, false) == 0);
    ck_assert_double_le(distance(logits(in("merged.gguf"), (how){.quantized = 1}), one, true, true), 0.1);
}
END_TEST


/* What the plan says of a session with adapters is what it takes; nothing stays. */
START_TEST(plan_is_use) {
    static const lq_allocator hook = {live_alloc, live_free, NULL};
    const char *const peft[] = {golden};
    const lq_options o = {.size = sizeof o, .threads = 2, .allocator = &hook};
    lq_ctx *c;
    ck_assert_int_eq(lq_open(&o, &c), LQ_OK);
    const size_t empty = live_bytes;
    lq_model *without = open_model(c, pocket, &(how){0}), *m = open_model(c, pocket, &(how){.paths = peft, .n = 1});
    lq_plan_info p = {.size = sizeof p}, q = p;
    lq_model_info a = {.size = sizeof a}, b = a;
    const lq_session_options so = {.size = sizeof so, .context = 64, .batch = 8};
    ck_assert_int_eq(lq_model_plan(without, &so, &p), LQ_OK);
    ck_assert_int_eq(lq_model_plan(m, &so, &q), LQ_OK);
    ck_assert_int_eq(lq_model_info_get(without, &a), LQ_OK);
    ck_assert_int_eq(lq_model_info_get(m, &b), LQ_OK);
    const uint64_t stored = 2 * (4 * (256 + 256) + 2 * (256 + 128) + 4 * (256 + 256)) + (4 + 1) * (768 + 256); /* A and B */
    ck_assert_uint_ge(q.weights - p.weights, stored * sizeof(float));
    ck_assert_uint_le(q.weights - p.weights, stored * sizeof(float) + 16 * 64 + 64);
    ck_assert_uint_eq(b.bytes_per_token - a.bytes_per_token, q.weights - p.weights - 64); /* a header before the block */
    uint64_t beside[2]; /* what sessions take that is not in these figures: the session itself, its pool */
    for (int i = 0; i < 2; i++) {
        const size_t before = live_bytes;
        lq_session *s;
        ck_assert_int_eq(lq_session_open(i ? m : without, &so, &s), LQ_OK);
        beside[i] = live_bytes - before - (i ? q.kv + q.activations : p.kv + p.activations);
        lq_session_close(s);
    }
    ck_assert_uint_gt(q.activations, p.activations);
    ck_assert_msg(beside[1] <= beside[0] + (96 << 10), "%lld, %lld", (long long)beside[0], (long long)beside[1]); /* arenas grow in steps */
    lq_model_close(m);
    lq_model_close(without);
    ck_assert_uint_eq(live_bytes, empty);
    lq_close(c);
}
END_TEST

START_TEST(run_refusals) {
    const mat out[] = {{"base_model.model.lm_head.lora_A.weight", "F32", 2, 64, 0}, {"base_model.model.lm_head.lora_B.weight", "F32", 262, 2, 0}};
    const mat both[] = {QA, QB};
    const char *const paths[] = {in("adapter")};
    const lq_model_options o = {.size = sizeof o, .loras = paths, .n_loras = 1};
    lq_model *m;
    write_peft(in("adapter"), "{" GOOD "}", out, 2);
    ck_assert_int_eq(lq_model_open(ctx, hf, &o, &m), LQ_E_UNSUPPORTED);
    ck_assert_msg(strstr(lq_error_detail(), "output.weight") && strstr(lq_error_detail(), "merge"), "%s", lq_error_detail());
    ck_assert_uint_eq(merge(hf, in("x.gguf"), "f32", paths, NULL, 1, 2).adapted, 1);
    write_peft(in("adapter"), "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":0}", both, 2);
    ck_assert_int_eq(lq_model_open(ctx, hf, &o, &m), LQ_E_INCONSISTENT);
    write_peft(in("adapter"), "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4}", both, 2);
    const float huge[] = {3e38f};
    lq_model_options h = o;
    h.lora_scales = huge;
    ck_assert_int_eq(lq_model_open(ctx, hf, &h, &m), LQ_E_INCONSISTENT);
    ck_assert_msg(lq_model_open(ctx, hf, &o, &m) == LQ_OK, "%s", lq_error_detail());
    lq_session *s;
    lq_calibrate_result r = {.size = sizeof r};
    int32_t ids[64] = {0};
    ck_assert_int_eq(lq_session_open(m, NULL, &s), LQ_OK);
    ck_assert_int_eq(lq_calibrate(s, ids, 64, in("stats.gguf"), NULL, &r), LQ_E_UNSUPPORTED);
    ck_assert_msg(strstr(lq_error_detail(), "adapters"), "%s", lq_error_detail());
    lq_session_close(s);
    lq_model_close(m);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("lora");
    TCase *t = tcase_create("lora");
    tcase_add_checked_fixture(t, setup, teardown);
    tcase_set_timeout(t, 120);
    tcase_add_test(t, as_peft_merges);
    tcase_add_test(t, forms_agree);
    tcase_add_test(t, scales_and_keys);
    tcase_add_test(t, bad_directories);
    tcase_add_test(t, bad_files);
    tcase_add_test(t, uses);
    tcase_add_test(t, factors);
    tcase_add_test(t, runs_unmerged);
    tcase_add_test(t, runs_beside_quantized);
    tcase_add_test(t, plan_is_use);
    tcase_add_test(t, run_refusals);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
