/* test_recipe.c: what each scheme gives each tensor, what a recipe's text may say, and what it is refused for. */
#include "harness.h"

#include "../libquant/format.h"
#include "../libquant/memory.h"
#include "../libquant/recipe.h"

enum { LAYERS = 32 };
static const q_alloc *const A = &q_alloc_libc;

static q_recipe *find(const char *name) {
    q_recipe *r = NULL;
    ck_assert_msg(q_recipe_find(A, name, &r) == LQ_OK, "%s: %s", name, lq_error_detail());
    return r;
}
static q_recipe *parse(const char *text) {
    q_recipe *r = NULL;
    ck_assert_msg(q_recipe_parse(A, "mine", text, strlen(text), &r) == LQ_OK, "%s", lq_error_detail());
    return r;
}

/* The tensor of a role in a model of 32 layers, 4 query heads per key-value head, rows of 4096. */
static q_recipe_tensor tensor(char *name, size_t n, const char *role, int32_t layer) {
    if (layer < 0) snprintf(name, n, "%s.weight", role);
    else snprintf(name, n, "blk.%d.%s.weight", layer, role);
    return (q_recipe_tensor){.name = q_str_of(name), .role = role, .layer = layer, .layers = LAYERS, .gqa = 4,
                             .rank = strstr(role, "norm") ? 1 : 2, .k = 4096};
}
static q_recipe_choice choose(const q_recipe *r, const q_recipe_tensor *t) {
    q_recipe_choice c;
    ck_assert_msg(q_recipe_choose(r, t, &c) == LQ_OK, "%s", lq_error_detail());
    return c;
}
static const char *format_of(const q_recipe *r, const char *role, int32_t layer) {
    char name[64];
    const q_recipe_tensor t = tensor(name, sizeof name, role, layer);
    return choose(r, &t).format->name;
}

/* The formats of a role by layer as a text: "q6_k x4, q4_k x2, ...". */
static const char *runs(const q_recipe *r, const char *role, bool importance) {
    static char text[1024];
    text[0] = 0;
    const char *last = NULL;
    int n = 0;
    for (int32_t i = 0; i <= LAYERS; i++) {
        char name[64];
        q_recipe_tensor t = tensor(name, sizeof name, role, i);
        t.importance = importance;
        const char *f = i < LAYERS ? choose(r, &t).format->name : NULL;
        if (last && (!f || strcmp(f, last) != 0)) {
            const size_t at = strlen(text);
            snprintf(text + at, sizeof text - at, "%s%s x%d", at ? ", " : "", last, n);
            n = 0;
        }
        last = f;
        n++;
    }
    return text;
}

static const char *const matrices[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};

/* One row per scheme: the usual format, then the roles that differ. */
static const struct {
    const char *scheme, *usual, *output, *attn_v, *attn_output, *ffn_down;
    uint64_t file_type;
} schemes[] = {
    {"f32", "f32", "f32", NULL, NULL, NULL, 0},
    {"f16", "f16", "f16", NULL, NULL, NULL, 1},
    {"bf16", "bf16", "bf16", NULL, NULL, NULL, 32},
    {"q8_0", "q8_0", "q8_0", NULL, NULL, NULL, 7},
    {"q4_0", "q4_0", "q6_k", NULL, NULL, NULL, 2},
    {"q4_1", "q4_1", "q6_k", NULL, NULL, NULL, 3},
    {"q5_0", "q5_0", "q6_k", NULL, NULL, NULL, 8},
    {"q5_1", "q5_1", "q6_k", NULL, NULL, NULL, 9},
    {"q6_k", "q6_k", "q6_k", NULL, NULL, NULL, 18},
    {"q2_k", "q2_k", "q6_k", "q4_k x32", "q3_k x32", "q3_k x32", 10},
    {"q3_k_m", "q3_k", "q6_k", "q5_k x2, q4_k x30", "q4_k x32", "q5_k x2, q4_k x30", 12},
    {"q4_k_s", "q4_k", "q6_k", "q5_k x4, q4_k x28", NULL, "q5_k x4, q4_k x28", 14},
#define PAIR(low) low " x2, q6_k x1, " low " x2, q6_k x1, "
#define MORE(low) "q6_k x4, " PAIR(low) PAIR(low) PAIR(low) low " x2, q6_k x1, " low " x2, q6_k x5"
    {"q4_k_m", "q4_k", "q6_k", MORE("q4_k"), NULL, MORE("q4_k"), 15},
    {"q5_k_m", "q5_k", "q6_k", MORE("q5_k"), NULL, MORE("q5_k"), 17},
    {"iq4_nl", "iq4_nl", "q6_k", "q5_k x32", NULL, "q5_k x4, iq4_nl x28", 25},
    {"iq4_xs", "iq4_xs", "q6_k", "q5_k x32", NULL, "q5_k x4, iq4_xs x28", 30},
};

START_TEST(mixes) {
    const char *scheme = schemes[_i].scheme;
    q_recipe *r = find(scheme);
    ck_assert_int_eq(q_recipe_file_type(r), (int)schemes[_i].file_type);
    ck_assert_str_eq(q_recipe_by_file_type(schemes[_i].file_type), scheme);
    ck_assert_str_eq(format_of(r, "token_embd", -1), schemes[_i].usual);
    ck_assert_str_eq(format_of(r, "output", -1), schemes[_i].output);
    ck_assert_str_eq(format_of(r, "output_norm", -1), "f32");
    ck_assert_str_eq(format_of(r, "attn_norm", 3), "f32");
    for (size_t m = 0; m < Q_COUNT(matrices); m++) {
        const char *want = m == 2   ? schemes[_i].attn_v
                           : m == 3 ? schemes[_i].attn_output
                           : m == 6 ? schemes[_i].ffn_down
                                    : NULL;
        char uniform[32];
        snprintf(uniform, sizeof uniform, "%s x32", schemes[_i].usual);
        ck_assert_msg(strcmp(runs(r, matrices[m], false), want ? want : uniform) == 0, "%s %s: %s", scheme, matrices[m],
                      runs(r, matrices[m], false));
    }
    /* Tied: the embedding is the output matrix too. */
    char name[64];
    q_recipe_tensor t = tensor(name, sizeof name, "token_embd", -1);
    t.tied = true;
    ck_assert_str_eq(choose(r, &t).format->name, schemes[_i].output);
    q_recipe_close(r);
}
END_TEST

START_TEST(every_scheme_is_listed) {
    uint32_t files = 0;
    for (uint32_t i = 0; i < q_recipe_count(); i++) files += !q_recipe_is_directory(i);
    ck_assert_uint_eq(files, Q_COUNT(schemes));
    ck_assert_ptr_null(q_recipe_name(q_recipe_count(), NULL));
    for (uint32_t i = 0; i < q_recipe_count(); i++) {
        const char *about = NULL, *name = q_recipe_name(i, &about);
        ck_assert_ptr_nonnull(name);
        ck_assert_uint_gt(strlen(about), 10);
        ck_assert_ptr_null(strchr(about, '\n'));
        bool known = false;
        for (size_t j = 0; j < Q_COUNT(schemes); j++) known |= strcmp(name, schemes[j].scheme) == 0;
        if (q_recipe_is_directory(i)) { /* what a GGUF file has instead is one of the table */
            q_recipe *r = find(name);
            const char *instead = NULL;
            ck_assert_ptr_nonnull(q_recipe_method(r, &instead));
            ck_assert_ptr_nonnull(instead);
            for (size_t j = 0; j < Q_COUNT(schemes); j++) known |= strstr(instead, schemes[j].scheme) != NULL;
            q_recipe_close(r);
        }
        ck_assert_msg(known, "scheme %s is not in the test's table", name);
    }
    ck_assert_ptr_null(q_recipe_by_file_type(11));
}
END_TEST

START_TEST(conditions_on_heads_and_importance) {
    q_recipe *r = find("q2_k");
    char name[64];
    q_recipe_tensor t = tensor(name, sizeof name, "attn_v", 0);
    t.gqa = 2;
    ck_assert_str_eq(choose(r, &t).format->name, "q3_k");
    q_recipe_close(r);
    r = find("iq4_xs");
    ck_assert_str_eq(choose(r, &t).format->name, "iq4_xs");
    ck_assert_str_eq(runs(r, "ffn_down", true), "iq4_xs x32");
    q_recipe_close(r);
}
END_TEST

START_TEST(conditions_on_tying) {
    q_recipe *r = parse("token_embd untied q4_0\ntoken_embd tied no-importance q6_k\n* q8_0\n");
    char name[64];
    q_recipe_tensor t = tensor(name, sizeof name, "token_embd", -1);
    ck_assert_str_eq(choose(r, &t).format->name, "q4_0");
    t.tied = true;
    ck_assert_str_eq(choose(r, &t).format->name, "q6_k");
    t.importance = true;
    ck_assert_str_eq(choose(r, &t).format->name, "q8_0");
    q_recipe_close(r);
}
END_TEST

START_TEST(a_format_name_is_a_scheme) {
    q_recipe *r = find("q3_k");
    ck_assert_int_eq(q_recipe_file_type(r), -1);
    ck_assert_str_eq(format_of(r, "output", -1), "q3_k");
    ck_assert_str_eq(format_of(r, "token_embd", -1), "q3_k");
    ck_assert_str_eq(format_of(r, "ffn_norm", 1), "f32");
    ck_assert_str_eq(runs(r, "ffn_down", false), "q3_k x32");
    q_recipe_close(r);
    ck_assert_int_eq(q_recipe_find(A, "q9_z", &r), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "q9_z"));
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "q4_k_m"));
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "q3_k"));
}
END_TEST

static const char *quantizer_of(const q_recipe *r, const char *role, int32_t layer) {
    char name[64];
    const q_recipe_tensor t = tensor(name, sizeof name, role, layer);
    return choose(r, &t).quantizer->name;
}

/* What users join to a name: the quantizer of the layers' matrices, and that statistics must be there. */
START_TEST(words_of_a_scheme) {
    q_recipe *r = find("q4_k_m:rtn");
    ck_assert_str_eq(quantizer_of(r, "ffn_up", 0), "rtn");
    ck_assert_str_eq(quantizer_of(r, "token_embd", -1), "search");
    ck_assert_str_eq(quantizer_of(r, "output", -1), "search");
    ck_assert_str_eq(format_of(r, "ffn_down", 0), "q6_k");
    ck_assert_int_eq(q_recipe_file_type(r), 15);
    ck_assert(!q_recipe_demands_statistics(r));
    q_recipe_close(r);
    static const char *const spelled[] = {"q4_k:rtn+imatrix", "imatrix+q4_k:rtn", "importance+q4_k:rtn"};
    for (size_t i = 0; i < Q_COUNT(spelled); i++) {
        r = find(spelled[i]);
        ck_assert(q_recipe_demands_statistics(r));
        ck_assert_str_eq(quantizer_of(r, "ffn_up", 0), "rtn");
        q_recipe_close(r);
    }
    static const char *const transformed[] = {"awq+q4_k:rtn", "q4_k:rtn+awq", "imatrix+awq+q4_k:rtn",
                                              "awq+q4_k:rtn+awq"};
    for (size_t i = 0; i < Q_COUNT(transformed); i++) {
        r = find(transformed[i]);
        ck_assert_ptr_eq(q_recipe_transform(r), q_transform_find("awq"));
        ck_assert(q_recipe_demands_statistics(r) == (i == 2));
        ck_assert_str_eq(quantizer_of(r, "ffn_up", 0), "rtn");
        q_recipe_close(r);
    }
    static const struct {
        const char *scheme, *says[3];
    } wrong[] = {
        {"awq+smooth+q8_0", {"two transforms: awq and smooth"}},
        {"awq", {"names no recipe"}},
        {"q4_k_m+duck", {"names two: 'q4_k_m' and 'duck'", "imatrix", "smooth"}},
        {"awq:rtn+q4_k", {"names two: 'awq' and 'q4_k'"}},
        {"q4_k_n", {"no scheme or format 'q4_k_n'", "nearest is q4_k_m", "iq4_xs"}},
        {"q4_k_m:magic", {"no quantizer 'magic'", "rtn", "search"}},
        {"q4_k_m:", {"no quantizer ''"}},
        {"q4_k_m+q4_0", {"names two: 'q4_k_m' and 'q4_0'"}},
        {"q4_k_m+", {"names two: 'q4_k_m' and ''"}},
        {"imatrix", {"names no recipe"}},
        {"", {"no scheme or format ''"}},
        {"f16:search", {"f16", "search"}},
    };
    for (size_t i = 0; i < Q_COUNT(wrong); i++) {
        r = NULL;
        ck_assert_int_eq(q_recipe_find(A, wrong[i].scheme, &r), LQ_E_ARG);
        ck_assert_ptr_null(r);
        for (size_t j = 0; j < 3 && wrong[i].says[j]; j++)
            ck_assert_msg(strstr(lq_error_detail(), wrong[i].says[j]) != NULL, "%s: %s", wrong[i].scheme,
                          lq_error_detail());
    }
    char longest[300];
    memset(longest, 'q', sizeof longest - 1);
    longest[sizeof longest - 1] = 0;
    ck_assert_int_eq(q_recipe_find(A, longest, &r), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "longer than"));
}
END_TEST

START_TEST(a_recipe_names_its_transform) {
    q_recipe *r = parse("transform smooth\n* q8_0\n");
    ck_assert_ptr_eq(q_recipe_transform(r), q_transform_find("smooth"));
    ck_assert_int_eq(q_recipe_set_transform(r, q_transform_find("smooth")), LQ_OK);
    ck_assert_int_eq(q_recipe_set_transform(r, q_transform_find("awq")), LQ_E_ARG);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "transform smooth already"));
    q_recipe_close(r);
    r = parse("* q8_0\n");
    ck_assert_ptr_null(q_recipe_transform(r));
    q_recipe_close(r);
}
END_TEST

/* A scheme's word stands above what its recipe says of the layers. */
START_TEST(a_scheme_names_the_quantizer) {
    q_recipe *r = parse("attn_v q8_0:search\noutput q8_0:search\n* q4_0\n");
    ck_assert_int_eq(q_recipe_set_quantizer(r, q_quantizer_find("rtn")), LQ_OK);
    ck_assert_str_eq(quantizer_of(r, "attn_v", 0), "rtn");
    ck_assert_str_eq(quantizer_of(r, "attn_k", 0), "rtn");
    ck_assert_str_eq(quantizer_of(r, "output", -1), "search");
    q_recipe_close(r);
    r = find("q8_0");
    ck_assert_str_eq(quantizer_of(r, "attn_k", 0), "rtn");
    q_recipe_close(r);
    r = find("q8_0:search");
    ck_assert_str_eq(quantizer_of(r, "attn_k", 0), "search");
    q_recipe_close(r);
}
END_TEST

START_TEST(ragged_rows_fall_back) {
    static const struct {
        uint64_t k;
        bool block32, any;
    } rows[] = {{256, true, true}, {288, true, false}, {100, false, false}};
    q_recipe *r = find("q4_k");
    for (size_t i = 0; i < Q_COUNT(rows); i++) {
        char name[64];
        q_recipe_tensor t = tensor(name, sizeof name, "attn_q", 0);
        t.k = rows[i].k;
        const q_recipe_choice c = choose(r, &t);
        ck_assert_str_eq(c.wanted->name, "q4_k");
        ck_assert_uint_eq(t.k % (uint64_t)c.format->weights, 0);
        ck_assert(c.quantizer->accepts(c.format));
        ck_assert((c.format == c.wanted) == rows[i].any);
        ck_assert_int_eq(c.format->weights > 1, rows[i].block32);
    }
    q_recipe_close(r);
}
END_TEST

START_TEST(language) {
    q_recipe *r = parse("# a description\n"
                        "\tfile_type 7 # a comment\r\n"
                        "\n"
                        "vector f16\n"
                        "blk.[0-2].attn_?.weight q8_0:rtn\n"
                        "blk.1[!0-4].attn_q* q6_k\n"
                        "*gate*eight q5_0\n"
                        "ffn_up layer>=4 layer<n/4 q5_1\n"
                        "ffn_up layer=n-1 f16\n"
                        "ffn_up layer>3n/4+1 bf16\n"
                        "attn_v,attn_output layer<=1 q4_1\n"
                        "* q4_0");
    ck_assert_int_eq(q_recipe_file_type(r), 7);
    ck_assert_str_eq(format_of(r, "attn_norm", 0), "f16");
    ck_assert_str_eq(runs(r, "attn_q", false), "q8_0 x3, q4_0 x12, q6_k x5, q4_0 x12");
    ck_assert_str_eq(runs(r, "ffn_gate", false), "q5_0 x32");
    ck_assert_str_eq(runs(r, "ffn_up", false), "q4_0 x4, q5_1 x4, q4_0 x18, bf16 x5, f16 x1");
    ck_assert_str_eq(runs(r, "attn_output", false), "q4_1 x2, q4_0 x30");
    char name[64];
    q_recipe_tensor t = tensor(name, sizeof name, "attn_q", 0);
    ck_assert_str_eq(choose(r, &t).quantizer->name, "rtn");
    t = tensor(name, sizeof name, "attn_q", 31);
    ck_assert_str_eq(choose(r, &t).quantizer->name, "search");
    /* A condition on the layer leaves tensors outside the layers alone. */
    ck_assert_str_eq(format_of(r, "token_embd", -1), "q4_0");
    q_recipe_close(r);
    r = parse("token_embd layer<1 f16\n* layer>=0 q8_0\n* q4_0\n");
    ck_assert_str_eq(format_of(r, "token_embd", -1), "q4_0");
    ck_assert_str_eq(format_of(r, "attn_k", 0), "q8_0");
    q_recipe_close(r);
}
END_TEST

START_TEST(stars_do_not_explode) {
    char text[512] = "", name[4096];
    for (int i = 0; i < 100; i++) strcat(text, "*a");
    strcat(text, "b q8_0\n* q4_0\n");
    memset(name, 'a', sizeof name);
    q_recipe *r = parse(text);
    char unused[64];
    q_recipe_tensor t = tensor(unused, sizeof unused, "attn_q", 0);
    t.name = (q_str){name, sizeof name};
    ck_assert_str_eq(choose(r, &t).format->name, "q4_0");
    name[sizeof name - 1] = 'b';
    ck_assert_str_eq(choose(r, &t).format->name, "q8_0");
    q_recipe_close(r);
}
END_TEST

static const struct {
    const char *text, *line, *says;
} bad[] = {
    {"", "line 0", "'* FORMAT'"},
    {"# nothing\nattn_q q8_0\n", "line 2", "'* FORMAT'"},
    {"* layer<3 q8_0\n", "line 1", "'* FORMAT'"},
    {"* q9_0\n", "line 1", "no format 'q9_0'"},
    {"* q8_0:magic\n", "line 1", "no quantizer 'magic'"},
    {"* q8_0:\n", "line 1", "no quantizer ''"},
    {"# x\n\nattn_w q8_0\n* q8_0\n", "line 3", "'attn_w' is not the role"},
    {"* q8_0\nattn_q q4_0\n", "line 2", "never reached"},
    {"attn_q sometimes q8_0\n* q8_0\n", "line 1", "'sometimes' is not a condition"},
    {"attn_q layer<n/0 q8_0\n* q8_0\n", "line 1", "'layer<n/0' is not a condition"},
    {"attn_q layer<x q8_0\n* q8_0\n", "line 1", "is not a condition"},
    {"attn_q layer<99999999999999999999 q8_0\n* q8_0\n", "line 1", "is not a condition"},
    {"attn_q layer q8_0\n* q8_0\n", "line 1", "is not a condition"},
    {"attn_q,,attn_k q8_0\n* q8_0\n", "line 1", "empty pattern"},
    {"blk.[0 q8_0\n* q8_0\n", "line 1", "'[' without ']'"},
    {"*\n", "line 1", "expected 'PATTERN"},
    {"file_type\n* q8_0\n", "line 1", "expected 'file_type NUMBER'"},
    {"file_type -1\n* q8_0\n", "line 1", "expected 'file_type NUMBER'"},
    {"file_type 1\nfile_type 2\n* q8_0\n", "line 2", "second file_type"},
    {"vector q8_0\n* q8_0\n", "line 1", "not a float format"},
    {"transform\n* q8_0\n", "line 1", "expected 'transform NAME', once"},
    {"transform duck\n* q8_0\n", "line 1", "no transform 'duck'"},
    {"transform awq\ntransform awq\n* q8_0\n", "line 2", "once"},
    {"vector f32\nvector f32\n* q8_0\n", "line 2", "second vector"},
    {"* q8\x01_0\n", "line 1", "byte 0x01"},
    {"a b c d e f g h i j k l m n o p q\n* q8_0\n", "line 1", "more than 16 words"},
};

/* Nothing is read without end, and each limit is named. */
START_TEST(limits) {
    enum { MANY = 1 << 21 };
    char *text = (char *)malloc(MANY), *p = text;
    q_recipe *r = NULL;
    for (int i = 0; i < 33; i++) p += sprintf(p, "%sattn_q", i ? "," : "");
    sprintf(p, " q8_0\n* q8_0\n");
    ck_assert_int_eq(q_recipe_parse(A, "mine", text, strlen(text), &r), LQ_E_FORMAT);
    ck_assert_str_eq(lq_error_detail(), "recipe mine, line 1: more than 32 patterns in a rule");
    p = text;
    for (int i = 0; i < 4097; i++) p += sprintf(p, "attn_q q8_0\n");
    ck_assert_int_eq(q_recipe_parse(A, "mine", text, strlen(text), &r), LQ_E_FORMAT);
    ck_assert_str_eq(lq_error_detail(), "recipe mine, line 4097: more than 4096 rules");
    memset(text, ' ', MANY);
    ck_assert_int_eq(q_recipe_parse(A, "mine", text, MANY, &r), LQ_E_LIMIT);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "recipe mine is longer than 1048576 bytes"));
    ck_assert_ptr_null(r);
    free(text);
}
END_TEST

START_TEST(refused) {
    q_recipe *r = (q_recipe *)(uintptr_t)1;
    ck_assert_int_eq(q_recipe_parse(A, "mine", bad[_i].text, strlen(bad[_i].text), &r), LQ_E_FORMAT);
    ck_assert_ptr_eq(r, (q_recipe *)(uintptr_t)1);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "recipe mine"));
    ck_assert_msg(strstr(lq_error_detail(), bad[_i].line) != NULL, "%s", lq_error_detail());
    ck_assert_msg(strstr(lq_error_detail(), bad[_i].says) != NULL, "%s", lq_error_detail());
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("recipe");
    TCase *c = tcase_create("recipe");
    tcase_add_loop_test(c, mixes, 0, (int)Q_COUNT(schemes));
    tcase_add_test(c, every_scheme_is_listed);
    tcase_add_test(c, conditions_on_heads_and_importance);
    tcase_add_test(c, conditions_on_tying);
    tcase_add_test(c, a_format_name_is_a_scheme);
    tcase_add_test(c, words_of_a_scheme);
    tcase_add_test(c, a_recipe_names_its_transform);
    tcase_add_test(c, a_scheme_names_the_quantizer);
    tcase_add_test(c, ragged_rows_fall_back);
    tcase_add_test(c, language);
    tcase_add_test(c, stars_do_not_explode);
    tcase_add_test(c, limits);
    tcase_add_loop_test(c, refused, 0, (int)Q_COUNT(bad));
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
