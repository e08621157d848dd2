/* test_attention.c: the parts that an instruction set brings to attention (kernels/cpu/attn.h), by themselves: turns of
 * heads, products with pages of every form. Attention as a whole is in test_kernels.c. */
#include "help_kernel.h"
#include "help_kv.h"

#include "../kernels/cpu/attn.h"

/* Turned heads: what one instruction set stored another may read, so the bits are the reference's. */
START_TEST(turns_have_the_same_bits) {
    enum { N = 3 * Q_KV_MOST_TURN };
    uint64_t seed = 3;
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->attn || !q_isa_present(k->isa)) continue;
        for (int32_t turn = 1; turn <= Q_KV_MOST_TURN; turn *= 2) {
            float want[N], *got = guarded(N);
            for (int j = 0; j < N; j++) want[j] = got[j] = t_normal(&seed) * (j % 7 == 0 ? 1e4f : 1.0f);
            q_ref_turn(want, N, turn);
            k->attn->hadamard(got, N, turn);
            NEED_THAT(memcmp(want, got, sizeof want) == 0, "%s: turns of %d have other bits", k->name, turn);
            check_guards(got, N, k->name);
            free_guarded(got);
        }
    }
}
END_TEST

/* Products of 1 to 8 rows with a page of keys, and with some values of two pages: for each form and usual widths of
 * heads sums in ascending order, to the bit. */
static void check_products(const q_cpu_kernel *k, const q_attn_form *form, int32_t width, int64_t rows,
                           uint64_t *seed) {
    enum { T = Q_KV_TOKENS };
    const q_kv_kind *kind = q_kv_kind_find(form->format->name);
    q_kv_form f;
    if (!kind || !q_kv_form_make(kind, width, &f)) return;
    const int64_t page_bytes = T * f.bytes, kept = Q_MAX((int64_t)width, (int64_t)2 * T);
    uint8_t *keys = malloc((size_t)(2 * page_bytes)), *values = malloc((size_t)(2 * page_bytes));
    float *a = guarded(rows * kept), *c = guarded(rows * kept), row[256], want;
    for (int64_t j = 0; j < 2 * T; j++) {
        for (int32_t i = 0; i < width; i++) row[i] = t_normal(seed);
        q_ref_kv_put_row(&f, &f, j % T, row, row, keys + j / T * page_bytes, values + j / T * page_bytes);
    }
    for (int64_t i = 0; i < rows * kept; i++) a[i] = t_normal(seed), c[i] = t_normal(seed);
    const uint8_t *pages[2] = {keys, keys + page_bytes};
    q_attn_product p = {.a = a, .rows = rows, .a_stride = width, .b = pages, .per = width,
                        .b_stride = page_bytes / width, .ahead = pages, .ahead_stride = page_bytes / width,
                        .to = width, .width = T, .c = c, .c_stride = T};
    form->keys(&p);
    for (int64_t j = 0; j < T; j++)
        for (int64_t r = 0; r < rows; r++) {
            if (r == 0) q_ref_kv_key(&f, keys, j, width, row);
            want = 0;
            for (int32_t i = 0; i < width; i++) want = fmaf(a[r * width + i], row[i], want);
            NEED_THAT(memcmp(&want, &c[r * T + j], sizeof want) == 0,
                      "%s, %s: row %d of %d, key %d of %d numbers: %.9g, not %.9g", k->name, f.format->name, (int)r,
                      (int)rows, (int)j, width, (double)c[r * T + j], (double)want);
        }
    pages[0] = values, pages[1] = values + page_bytes;
    const int64_t from = (int64_t)(t_rand(seed) % (2 * T));
    const int64_t to = from + 1 + (int64_t)(t_rand(seed) % (uint64_t)(2 * T - from));
    const bool more = t_rand(seed) % 2;
    float *before = guarded(rows * width);
    for (int64_t i = 0; i < rows * width; i++) before[i] = c[i] = t_normal(seed);
    p = (q_attn_product){.a = a, .rows = rows, .a_stride = 2 * T, .b = pages, .per = T, .b_stride = f.bytes,
                         .ahead = pages, .ahead_stride = f.bytes, .more = more, .from = from, .to = to,
                         .width = width, .c = c, .c_stride = width};
    form->values(&p);
    for (int64_t i = 0; i < rows * width && !more; i++) before[i] = 0;
    for (int64_t j = from; j < to; j++) { /* `before` becomes what is wanted */
        q_ref_kv_value(&f, values + j / T * page_bytes, j % T, width, row);
        for (int64_t i = 0; i < rows * width; i++)
            before[i] = fmaf(a[i / width * 2 * T + j], row[i % width], before[i]);
    }
    for (int64_t r = 0; r < rows; r++)
        for (int32_t i = 0; i < width; i++) {
            want = before[r * width + i];
            NEED_THAT(memcmp(&want, &c[r * width + i], sizeof want) == 0,
                      "%s, %s: row %d of %d, values %d to %d, number %d of %d: %.9g, not %.9g", k->name,
                      f.format->name, (int)r, (int)rows, (int)from, (int)to, i, width, (double)c[r * width + i],
                      (double)want);
        }
    check_guards(a, rows * kept, k->name);
    check_guards(c, rows * kept, k->name);
    free_guarded(a), free_guarded(c), free_guarded(before);
    free(keys), free(values);
}
START_TEST(attention_products_are_sums_in_order) {
    uint64_t seed = 8;
    for (uint32_t i = 0; i < q_cpu_kernel_count(); i++) {
        const q_cpu_kernel *k = &q_cpu_kernels[i];
        if (!k->attn || !q_isa_present(k->isa)) continue;
        for (int32_t j = 0; j < k->attn->n_forms; j++)
            for (int64_t rows = 1; rows <= 8; rows++)
                for (int32_t width = 16; width <= 256; width += width < 128 ? 16 : 64)
                    check_products(k, &k->attn->forms[j], width, rows, &seed);
    }
}
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("attention");
    TCase *t = tcase_create("attention");
    tcase_add_test(t, turns_have_the_same_bits);
    tcase_add_test(t, attention_products_are_sums_in_order);
    suite_add_tcase(s, t);
    return s;
}
HARNESS_MAIN(suite)
