/* test_json.c: JSON trees: values, numbers in any locale, what is refused and when. The grammar itself is tested
 * through model directories (test_safetensors.c) and by fuzz_json.c against an independent parser. */
#include "harness.h"

#include <locale.h>

#include "../libquant/json.h"

static q_arena trees = {.alloc = &q_alloc_libc};
static lq_status parse(const char *text, uint32_t flags, const q_json **out) {
    return q_json_parse(&trees, (const uint8_t *)text, strlen(text), flags, "text", out);
}
static void tree_refused(const char *text, const char *word) {
    const q_json *j = NULL;
    ck_assert_msg(parse(text, 0, &j) == LQ_E_FORMAT, "%s", text);
    ck_assert_ptr_null(j);
    ck_assert_msg(strstr(lq_error_detail(), word) != NULL, "no '%s' in: %s", word, lq_error_detail());
}

START_TEST(values_in_their_order) {
    const q_json *j, *v;
    const char *text = " {\"a\":[1,-9223372036854775808,2.5e-3,true,null,\"\\ud83d\\ude00\\/\",{}],\"b\":false} \n";
    ck_assert_int_eq(parse(text, 0, &j), LQ_OK);
    ck_assert(j->type == Q_JSON_OBJECT && j->n == 2 && !j->next);
    ck_assert(q_str_is(j->first->key, "a") && j->first->type == Q_JSON_ARRAY && j->first->n == 7);
    ck_assert(q_str_is(j->first->next->key, "b") && j->first->next->type == Q_JSON_BOOL && !j->first->next->i);
    v = j->first->first;
    ck_assert(v->type == Q_JSON_INTEGER && v->i == 1 && v->f == 1.0);
    v = v->next;
    ck_assert(v->type == Q_JSON_INTEGER && v->i == INT64_MIN && v->f == -0x1p63);
    v = v->next;
    ck_assert(v->type == Q_JSON_REAL && v->f == 2.5e-3);
    v = v->next;
    ck_assert(v->type == Q_JSON_BOOL && v->i == 1);
    v = v->next;
    ck_assert(v->type == Q_JSON_NULL);
    v = v->next;
    ck_assert(v->type == Q_JSON_STRING && q_str_is(v->s, "\xF0\x9F\x98\x80/"));
    v = v->next;
    ck_assert(v->type == Q_JSON_OBJECT && v->n == 0 && !v->first && !v->next);
    char nested[2 * 64 + 8]; /* exactly 64 levels are fine */
    sprintf(nested, "{\"a\":%.*s%.*s}", 63, "[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
            63, "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]");
    ck_assert_int_eq(parse(nested, 0, &j), LQ_OK);
    q_arena_free(&trees);
}
END_TEST

/* Keys twice, in objects of a few members and of many; numbers beyond what is kept. */
START_TEST(refusals) {
    tree_refused("{\"a\":{\"k\":1,\"l\":[],\"\\u006b\":2}}", "duplicate key 'k'");
    tree_refused("{\"0\":0,\"1\":0,\"2\":0,\"3\":0,\"4\":0,\"5\":0,\"6\":0,\"7\":0,\"8\":0,\"9\":0,\"3\":0}",
                 "byte 67: duplicate: key \"3\" appears twice");
    tree_refused("{\"a\":-1e309}", "byte 5: a number is beyond");
    tree_refused("{\"a\":[9223372036854775808]}", "byte 6: an integer does not fit");
    tree_refused("{\"a\":-9223372036854775809}", "byte 5: an integer does not fit");
    q_arena_free(&trees);
}
END_TEST

/* Numbers are the nearest doubles, of any length and in any locale. */
START_TEST(numbers_in_any_locale) {
    char text[400];
    const q_json *j;
    const int n = sprintf(text, "{\"a\":0.1");
    memset(text + n, '0', 300);
    strcpy(text + n + 300, "1}");
    /* The C library's own "C" has a point; a locale with a comma is a user's to install. */
    const bool comma = setlocale(LC_ALL, "de_DE.UTF-8") || setlocale(LC_ALL, "fr_FR.UTF-8");
    const lq_status s = parse(text, 0, &j), w = parse("{\"a\":-1000000000000000019884624838656}", Q_JSON_WIDE, &j);
    const q_json *wide = j->first;
    ck_assert_int_eq(parse(text, 0, &j), LQ_OK);
    setlocale(LC_ALL, "C");
    ck_assert_int_eq(s, LQ_OK);
    ck_assert_int_eq(w, LQ_OK);
    ck_assert(j->first->type == Q_JSON_REAL && j->first->f == 0.1);
    ck_assert(wide->type == Q_JSON_REAL && wide->f == -1000000000000000019884624838656.0);
    q_arena_free(&trees);
    if (!comma) T_SKIP("numbers in a locale with a decimal comma: none is installed");
}
END_TEST

/* A text whose tree would take 16 times its size is refused before it is built. */
START_TEST(memory_is_bounded) {
    enum { N = 8 << 20 };
    char *s = (char *)malloc(3 * N + 16), *p = s;
    p += sprintf(p, "{\"a\":[");
    for (int i = 0; i < N; i++, p += 3) memcpy(p, "{},", 3);
    strcpy(p, "{}]}");
    const q_json *j = NULL;
    ck_assert_int_eq(parse(s, 0, &j), LQ_E_LIMIT);
    ck_assert_ptr_null(j);
    ck_assert_uint_eq(trees.used, 0);
    ck_assert_ptr_nonnull(strstr(lq_error_detail(), "12 times"));
    free(s);
}
END_TEST

static Suite *json_suite(void) {
    Suite *s = suite_create("json");
    TCase *t = tcase_create("trees");
    tcase_set_timeout(t, 60);
    tcase_add_test(t, values_in_their_order);
    tcase_add_test(t, refusals);
    tcase_add_test(t, numbers_in_any_locale);
    tcase_add_test(t, memory_is_bounded);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(json_suite)
