/* test_bind.c: what a model file must say to be opened: hyper-parameters, shapes, names, vocabulary,
 * and the same for Hugging Face directories. Each case breaks one thing and expects the code and the culprit's
 * name in the sentence. */
#include "harness.h"
#include "help_model.h"

#include "../include/libquant.h"

#include <sys/stat.h>
#include <unistd.h>

static lq_ctx *ctx;
static char path[4096];
static tiny t;

static void setup(void) {
    ck_assert_int_eq(lq_open(NULL, &ctx), LQ_OK);
    t_path(path, sizeof path, t_tmp(), "m.gguf");
    tiny_init(&t, "f16");
}
static void teardown(void) { lq_close(ctx); }

static lq_status open_it(void) {
    lq_model *m = NULL;
    tiny_write(&t, path);
    const lq_status s = lq_model_open(ctx, path, NULL, &m);
    ck_assert((s == LQ_OK) == (m != NULL));
    lq_model_close(m);
    return s;
}
#define REFUSED(code, word)                                                                                  \
    do {                                                                                                     \
        const lq_status s_ = open_it();                                                                      \
        ck_assert_msg(s_ == (code), "got %s (%s)", lq_status_name(s_), s_ ? lq_error_detail() : "accepted"); \
        ck_assert_msg(strstr(lq_error_detail(), word), "'%s' does not name '%s'", lq_error_detail(), word);  \
    } while (0)

START_TEST(whole_model_opens) { ck_assert_msg(open_it() == LQ_OK, "%s", lq_error_detail()); }
END_TEST

static const struct {
    const char *key;
    double v;
} bad_numbers[] = {
    {"llama.attention.head_count", 0},
    {"llama.attention.head_count_kv", 8},
    {"llama.attention.head_count_kv", 3},
    {"llama.attention.head_count_kv", 0},
    {"llama.block_count", 2147483648.0},
    {"llama.block_count", 0},
    {"llama.rope.dimension_count", 32},
    {"llama.rope.dimension_count", 15},
    {"llama.context_length", 0},
    {"llama.context_length", 1099511627776.0}, {"llama.embedding_length", 65},
    {"llama.feed_forward_length", 0},
    {"llama.vocab_size", 0},
};
START_TEST(bad_integer_is_refused) {
    tiny_u32(&t, bad_numbers[_i].key, (uint64_t)bad_numbers[_i].v);
    const lq_status s = open_it();
    ck_assert_msg(s == LQ_E_INCONSISTENT, "%s = %g: %s", bad_numbers[_i].key, bad_numbers[_i].v, lq_status_name(s));
    ck_assert(strlen(lq_error_detail()) > 20);
}
END_TEST

static const double bad_eps[] = {0.0, -1e-5, 1.0};
START_TEST(bad_epsilon_is_refused) {
    tiny_f32(&t, "llama.attention.layer_norm_rms_epsilon", _i == 3 ? (double)__builtin_nanf("") : bad_eps[_i]);
    REFUSED(LQ_E_INCONSISTENT, "layer_norm_rms_epsilon");
}
END_TEST
START_TEST(negative_rope_base_is_refused) {
    tiny_f32(&t, "llama.rope.freq_base", -10000);
    REFUSED(LQ_E_INCONSISTENT, "rope.freq_base");
}
END_TEST
START_TEST(float_for_integer_is_refused) {
    tiny_f32(&t, "llama.block_count", 2);
    REFUSED(LQ_E_INCONSISTENT, "llama.block_count");
}
END_TEST
START_TEST(text_for_number_is_refused) {
    tiny_str(&t, "llama.embedding_length", "64");
    REFUSED(LQ_E_INCONSISTENT, "llama.embedding_length");
}
END_TEST
START_TEST(missing_key_is_named) {
    static const char *const keys[] = {"llama.context_length", "llama.embedding_length", "llama.block_count",
                                       "llama.feed_forward_length", "llama.attention.head_count",
                                       "llama.attention.layer_norm_rms_epsilon", "general.architecture",
                                       "tokenizer.ggml.model", "tokenizer.ggml.tokens"};
    for (size_t i = 0; i < Q_COUNT(keys); i++) {
        tiny_init(&t, "f16");
        tiny_drop_key(&t, keys[i]);
        const lq_status s = open_it();
        ck_assert_msg(s == LQ_E_INCONSISTENT || s == LQ_E_UNSUPPORTED, "%s: %s", keys[i], lq_status_name(s));
        ck_assert_msg(strstr(lq_error_detail(), keys[i]), "'%s' does not name %s", lq_error_detail(), keys[i]);
    }
}
END_TEST
START_TEST(optional_keys_have_defaults) {
    tiny_drop_key(&t, "llama.rope.freq_base");
    tiny_drop_key(&t, "llama.rope.dimension_count");
    tiny_drop_key(&t, "llama.vocab_size");
    ck_assert_msg(open_it() == LQ_OK, "%s", lq_error_detail());
}
END_TEST
START_TEST(experts_are_refused) {
    tiny_u32(&t, "llama.expert_count", 8);
    REFUSED(LQ_E_UNSUPPORTED, "llama.expert_count");
}
END_TEST
START_TEST(unknown_hyper_parameter_is_refused) {
    tiny_f32(&t, "llama.attention.some_new_trick", 3);
    REFUSED(LQ_E_UNSUPPORTED, "some_new_trick");
}
END_TEST
START_TEST(rope_scaling_is_refused) {
    tiny_str(&t, "llama.rope.scaling.type", "warp");
    REFUSED(LQ_E_UNSUPPORTED, "rope.scaling.type");
}
END_TEST
START_TEST(unknown_architecture_is_refused) {
    tiny_str(&t, "general.architecture", "starfish");
    REFUSED(LQ_E_UNSUPPORTED, "starfish");
}
END_TEST

START_TEST(wrong_shape_is_refused) {
    tiny_tensor(&t, "blk.1.ffn_up.weight")->shape[1] = 95;
    REFUSED(LQ_E_INCONSISTENT, "blk.1.ffn_up.weight");
}
END_TEST
START_TEST(missing_tensor_is_named) {
    tiny_drop_tensor(&t, "blk.1.ffn_down.weight");
    REFUSED(LQ_E_INCONSISTENT, "blk.1.ffn_down.weight");
}
END_TEST
START_TEST(misspelt_tensor_suggests_the_nearest) {
    tiny_drop_tensor(&t, "blk.1.ffn_down.weight");
    tiny_add(&t, "blk.1.ffn_dwon.weight", "f16", 96, 64);
    REFUSED(LQ_E_INCONSISTENT, "blk.1.ffn_dwon.weight");
}
END_TEST
START_TEST(extra_tensor_is_refused) {
    tiny_add(&t, "blk.0.attn_gate.weight", "f32", 64, 64);
    REFUSED(LQ_E_UNSUPPORTED, "blk.0.attn_gate.weight");
}
END_TEST
START_TEST(more_layers_than_tensors_is_refused) {
    tiny_u32(&t, "llama.block_count", 3);
    REFUSED(LQ_E_INCONSISTENT, "blk.2.");
}
END_TEST
START_TEST(missing_output_means_tied) {
    tiny_drop_tensor(&t, "output.weight");
    ck_assert_msg(open_it() == LQ_OK, "%s", lq_error_detail());
}
END_TEST

START_TEST(vocabulary_larger_than_embedding_is_refused) {
    tiny_u32(&t, "llama.vocab_size", 261);
    tiny_tensor(&t, "token_embd.weight")->shape[1] = 261;
    tiny_tensor(&t, "output.weight")->shape[1] = 261;
    REFUSED(LQ_E_INCONSISTENT, "261");
}
END_TEST
START_TEST(token_arrays_of_unequal_length_are_refused) {
    tiny_key(&t, "tokenizer.ggml.scores")->count = 261;
    REFUSED(LQ_E_INCONSISTENT, "tokenizer.ggml.scores");
}
END_TEST
START_TEST(special_id_outside_vocabulary_is_refused) {
    static const char *const keys[] = {"tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"};
    tiny_u32(&t, keys[_i], 262);
    REFUSED(LQ_E_INCONSISTENT, keys[_i]);
}
END_TEST

START_TEST(nan_weight_opens_but_is_found_by_the_check) {
    t.poison = __builtin_nanf("");
    t.poison_tensor = "blk.0.ffn_up.weight";
    tiny_write(&t, path);
    lq_model *m = NULL;
    const lq_model_options o = {.size = sizeof o, .check_tensors = 1};
    ck_assert_int_eq(lq_model_open(ctx, path, &o, &m), LQ_E_INCONSISTENT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "blk.0.ffn_up.weight"));
    ck_assert_int_eq(lq_model_open(ctx, path, NULL, &m), LQ_OK);
    lq_session *s;
    ck_assert_int_eq(lq_session_open(m, NULL, &s), LQ_OK);
    const int32_t ids[] = {1, 100, 101};
    ck_assert_int_eq(t_decode(s, ids, 3, 2), LQ_E_NUMERIC); /* never a token */
    int32_t id = -7;
    const lq_sampler greedy = {.size = sizeof greedy};
    ck_assert_int_eq(lq_sample(s, LQ_ROW_LAST, &greedy, &id), LQ_E_ARG);
    ck_assert_int_eq(id, -7);
    lq_session_close(s);
    lq_model_close(m);
}
END_TEST

/* ---- Hugging Face configurations: the bundled weights under an edited config.json */

static char dir[4096];
static void hf_dir(const char *config) {
    char from[4200], to[4200];
    snprintf(dir, sizeof dir, "%s/hf", t_tmp());
    mkdir(dir, 0755);
    static const char *const files[] = {"model.safetensors", "tokenizer.model", "tokenizer_config.json"};
    for (size_t i = 0; i < Q_COUNT(files); i++) {
        snprintf(from, sizeof from, "%s/bench/data/pocket/%s", t_root(), files[i]);
        snprintf(to, sizeof to, "%s/%s", dir, files[i]);
        unlink(to);
        ck_assert_int_eq(symlink(from, to), 0);
    }
    snprintf(to, sizeof to, "%s/config.json", dir);
    FILE *f = fopen(to, "w");
    ck_assert_ptr_nonnull(f);
    fputs(config, f);
    fclose(f);
}
#define CONFIG(more) CONFIG_OF("llama", more)
#define CONFIG_OF(type, more)                                                                                      \
    "{\"architectures\":[\"LlamaForCausalLM\"],\"model_type\":\"" type "\",\"intermediate_size\":768,"             \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"rms_norm_eps\":1e-05,\"max_position_embeddings\":256,"  \
    "\"vocab_size\":4096,\"num_hidden_layers\":6,\"bos_token_id\":1,\"eos_token_id\":2" more "}"

static const struct {
    const char *config;
    lq_status code;
    const char *word;
} hf_cases[] = {
    {CONFIG(",\"hidden_size\":256"), LQ_OK, ""},
    {CONFIG(",\"hidden_size\":256,\"rope_scaling\":null,\"sliding_window\":null"), LQ_OK, ""},
    {CONFIG(""), LQ_E_INCONSISTENT, "hidden_size"},
    {CONFIG(",\"hidden_size\":\"256\""), LQ_E_INCONSISTENT, "hidden_size"},
    {CONFIG(",\"hidden_size\":256.0"), LQ_E_INCONSISTENT, "hidden_size"},
    {CONFIG(",\"hidden_size\":512"), LQ_E_INCONSISTENT, "512"},
    {CONFIG_OF("mistral", ",\"hidden_size\":256"), LQ_OK, ""},
    {CONFIG_OF("lmama", ",\"hidden_size\":256"), LQ_E_UNSUPPORTED, "model_type"},
    {CONFIG(",\"hidden_size\":256,\"hidden_act\":\"gelu\""), LQ_E_UNSUPPORTED, "hidden_act"},
    {CONFIG(",\"hidden_size\":256,\"attention_bias\":true"), LQ_E_UNSUPPORTED, "attention_bias"},
    {CONFIG(",\"hidden_size\":256,\"sliding_window\":4096"), LQ_E_UNSUPPORTED, "sliding_window"},
    {CONFIG(",\"hidden_size\":256,\"rope_scaling\":{\"type\":\"warp\",\"factor\":2.0}"), LQ_E_UNSUPPORTED,
     "rope_scaling"},
    {CONFIG(",\"hidden_size\":256,\"rope_scaling\":{\"rope_type\":\"yarn\"}"), LQ_E_INCONSISTENT, "rope_scaling"},
    {CONFIG(",\"hidden_size\":256,\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":2.0}"), LQ_OK, ""},
    {CONFIG(",\"hidden_size\":256,\"rope_scaling\":\"yarn\""), LQ_E_UNSUPPORTED, "rope_scaling"},
    {CONFIG(",\"hidden_size\":256,\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"wobble\":1}"), LQ_E_UNSUPPORTED,
     "wobble"},
    {CONFIG(",\"hidden_size\":256,\"quantization_config\":{\"quant_method\":\"hqq\"}"), LQ_E_UNSUPPORTED,
     "quantization_config"},
    {CONFIG(",\"hidden_size\":256,\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,\"group_size\":32}"),
     LQ_E_INCONSISTENT, "quantization_config"},
    {CONFIG(",\"hidden_size\":256,\"rope_parameters\":{\"rope_theta\":10000.0,\"rope_type\":\"default\"}"), LQ_OK, ""},
    {CONFIG(",\"hidden_size\":256,\"rope_theta\":5000,\"rope_parameters\":{\"rope_theta\":10000.0}"), LQ_E_INCONSISTENT,
     "rope_parameters.rope_theta"},
    {CONFIG(",\"hidden_size\":256,\"rope_parameters\":{\"rope_theta\":-1}"), LQ_E_INCONSISTENT,
     "rope_parameters.rope_theta"},
    {CONFIG(",\"hidden_size\":256,\"wobble\":1"), LQ_E_UNSUPPORTED, "wobble"},
    {CONFIG(",\"hidden_size\":256,\"tie_word_embeddings\":true"), LQ_E_INCONSISTENT, "lm_head.weight"},
    {CONFIG(",\"hidden_size\":256,\"tie_word_embeddings\":false"), LQ_OK, ""},
    {"{\"architectures\":[\"FishForCausalLM\"]}", LQ_E_UNSUPPORTED, "FishForCausalLM"},
    {"{\"architectures\":[]}", LQ_E_INCONSISTENT, "architectures"},
    {"{}", LQ_E_INCONSISTENT, "architectures"},
};
START_TEST(hf_config) {
    hf_dir(hf_cases[_i].config);
    lq_model *m = NULL;
    const lq_status s = lq_model_open(ctx, dir, NULL, &m);
    lq_model_close(m);
    ck_assert_msg(s == hf_cases[_i].code, "%s: %s (%s)", hf_cases[_i].config, lq_status_name(s), lq_error_detail());
    if (s)
        ck_assert_msg(strstr(lq_error_detail(), hf_cases[_i].word), "'%s' lacks '%s'", lq_error_detail(),
                      hf_cases[_i].word);
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("bind");
    TCase *c = tcase_create("gguf");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_test(c, whole_model_opens);
    tcase_add_loop_test(c, bad_integer_is_refused, 0, (int)Q_COUNT(bad_numbers));
    tcase_add_loop_test(c, bad_epsilon_is_refused, 0, 4);
    tcase_add_test(c, negative_rope_base_is_refused);
    tcase_add_test(c, float_for_integer_is_refused);
    tcase_add_test(c, text_for_number_is_refused);
    tcase_add_test(c, missing_key_is_named);
    tcase_add_test(c, optional_keys_have_defaults);
    tcase_add_test(c, experts_are_refused);
    tcase_add_test(c, unknown_hyper_parameter_is_refused);
    tcase_add_test(c, rope_scaling_is_refused);
    tcase_add_test(c, unknown_architecture_is_refused);
    tcase_add_test(c, wrong_shape_is_refused);
    tcase_add_test(c, missing_tensor_is_named);
    tcase_add_test(c, misspelt_tensor_suggests_the_nearest);
    tcase_add_test(c, extra_tensor_is_refused);
    tcase_add_test(c, more_layers_than_tensors_is_refused);
    tcase_add_test(c, missing_output_means_tied);
    tcase_add_test(c, vocabulary_larger_than_embedding_is_refused);
    tcase_add_test(c, token_arrays_of_unequal_length_are_refused);
    tcase_add_loop_test(c, special_id_outside_vocabulary_is_refused, 0, 2);
    tcase_add_test(c, nan_weight_opens_but_is_found_by_the_check);
    suite_add_tcase(s, c);
    c = tcase_create("hugging face");
    tcase_add_checked_fixture(c, setup, teardown);
    tcase_add_loop_test(c, hf_config, 0, (int)Q_COUNT(hf_cases));
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
