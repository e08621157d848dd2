/* test_vk_words.c: shaders as drivers get them: what a constant rules out is gone, all else is there as it was. */
#include "harness.h"

#ifdef Q_VULKAN
#include "../kernels/vulkan/vk_shapes.h"

enum { FORMAT = 0, SPEC = 1 << FORMAT, KEYS = 1 << 3, VALUES = 1 << 4 };

static uint64_t size_with(int32_t shader, const int32_t spec[Q_VK_SPECS], uint32_t **words) {
    uint64_t bytes = 0;
    ck_assert_int_eq(q_vk_words(&q_alloc_libc, &q_vk_shaders[shader], spec, words, &bytes), LQ_OK);
    return bytes;
}

/* Instructions of a kind; the module is a whole number of them. */
static uint32_t count(const uint32_t *words, uint64_t bytes, uint32_t opcode) {
    uint32_t n = 0, i = 5;
    const uint32_t end = (uint32_t)(bytes / sizeof *words);
    for (; i < end; i += words[i] >> 16) {
        ck_assert_uint_gt(words[i] >> 16, 0);
        n += (words[i] & 0xFFFF) == opcode;
    }
    ck_assert_uint_eq(i, end);
    return n;
}

START_TEST(one_codec_is_left) {
    enum { LABEL = 248, FUNCTION_CALL = 57 };
    for (int32_t s = 0; s < Q_VK_SHADERS; s++) {
        const q_vk_shader *shader = &q_vk_shaders[s];
        const uint32_t kinds = shader->specialization;
        const uint32_t others = (kinds & SPEC ? q_format_count() - 1 : 0) + (kinds & KEYS ? q_kv_kind_count() - 1 : 0) +
                                (kinds & VALUES ? q_kv_kind_count() - 1 : 0);
        const uint32_t calls = count(shader->words, shader->bytes, FUNCTION_CALL);
        for (int32_t f = 0; f < (int32_t)q_format_count(); f++) {
            const int32_t spec[Q_VK_SPECS] = {f, 1, 0, f, f};
            uint32_t *words;
            const uint64_t bytes = size_with(s, spec, &words);
            if (others) {
                const uint32_t left = count(words, bytes, FUNCTION_CALL);
                ck_assert_msg(left + others <= calls, "%s, %s: %u of %u calls are left", shader->name,
                              q_formats[f]->name, left, calls);
            } else {
                ck_assert_msg(bytes == shader->bytes && memcmp(words, shader->words, (size_t)bytes) == 0, "%s changed",
                              shader->name);
            }
            q_delete(&q_alloc_libc, words);
        }
    }
}
END_TEST

/* "if (SPEC == 3) { call; }" around which a plain condition and an else stand. */
START_TEST(only_what_is_ruled_out_goes) {
#define W(length, opcode) ((uint32_t)(length) << 16 | (opcode))
    const uint32_t words[] = {
        0x07230203, 0x10500, 0, 40, 0,
        W(4, 71), 31, 42, 0,                       /* of a result in a branch: OpDecorate %31 */
        W(4, 71), 33, 42, 0,
        W(3, 21), 1, 32,                           /* %1 = OpTypeInt */
        W(4, 71), 10, 1, 0,                        /* OpDecorate %10 SpecId 0 */
        W(4, 50), 1, 10, 0,                        /* %10 = OpSpecConstant */
        W(4, 43), 1, 11, 3,                        /* %11 = OpConstant 3 */
        W(6, 52), 2, 12, 170, 10, 11,              /* %12 = OpSpecConstantOp IEqual %10 %11 */
        W(2, 248), 20,
        W(3, 247), 22, 0, W(4, 250), 12, 21, 22,   /* if (%12) goto 21 else goto 22 = merge */
        W(2, 248), 21, W(4, 57), 1, 31, 30, W(3, 62), 14, 33, W(2, 249), 22, /* %31 = call; store %33 */
        W(2, 248), 22,
        W(3, 247), 25, 0, W(4, 250), 12, 23, 24,   /* with an else */
        W(2, 248), 23, W(2, 249), 25,
        W(2, 248), 24, W(2, 249), 25,
        W(2, 248), 25,
        W(3, 247), 27, 0, W(4, 250), 13, 26, 27,   /* of a condition that nobody knows */
        W(2, 248), 26, W(2, 249), 27,
        W(2, 248), 27, W(1, 253),
    };
    const q_vk_shader shader = {.name = "made up", .words = words, .bytes = sizeof words};
    const int32_t three[Q_VK_SPECS] = {3}, four[Q_VK_SPECS] = {4};
    uint32_t *out;
    uint64_t bytes;
    ck_assert_int_eq(q_vk_words(&q_alloc_libc, &shader, three, &out, &bytes), LQ_OK);
    ck_assert(bytes == sizeof words && memcmp(out, words, sizeof words) == 0);
    q_delete(&q_alloc_libc, out);
    ck_assert_int_eq(q_vk_words(&q_alloc_libc, &shader, four, &out, &bytes), LQ_OK);
    enum { TOP = 5, LOST = 4, HEAD = 4 + 3 + 4 + 4 + 4 + 6 + 2, IF = 7 + 11, BRANCH = 2 };
    ck_assert_uint_eq(bytes, sizeof words - (LOST + IF - BRANCH) * sizeof *words);
    ck_assert_int_eq(memcmp(out, words, TOP * sizeof *words), 0);
    ck_assert_int_eq(memcmp(out + TOP, words + TOP + LOST, HEAD * sizeof *words), 0); /* without the decoration alone */
    ck_assert(out[TOP + HEAD] == W(2, 249) && out[TOP + HEAD + 1] == 22);
    ck_assert_int_eq(memcmp(out + TOP + HEAD + BRANCH, words + TOP + LOST + HEAD + IF,
                            sizeof words - (TOP + LOST + HEAD + IF) * sizeof *words), 0);
    q_delete(&q_alloc_libc, out);
}
END_TEST
#endif

static Suite *suite(void) {
    TCase *c = tcase_create("words");
#ifdef Q_VULKAN
    tcase_add_test(c, one_codec_is_left);
    tcase_add_test(c, only_what_is_ruled_out_goes);
#else
    puts("SKIP: shaders are not part of this build");
#endif
    Suite *s = suite_create("vk_words");
    suite_add_tcase(s, c);
    return s;
}
HARNESS_MAIN(suite)
