/* fuzz_recipe.c: the text of a recipe, then what it chooses for tensors of every kind.
 *
 * A refusal names recipe and line. What is accepted chooses for every tensor a format whose blocks fill the rows and
 * that its quantizer can fill, or says that there is none. */
#include "help_fuzz.h"

#include "../libquant/recipe.h"

static void choose(const q_recipe *r, const q_recipe_tensor *t) {
    q_recipe_choice c = {0};
    const lq_status s = q_recipe_choose(r, t, &c);
    if (s == LQ_OK) {
        demand(c.wanted && c.format && c.quantizer && t->k % (uint64_t)c.format->weights == 0);
        demand(c.quantizer->accepts(c.format));
    } else {
        demand(s == LQ_E_UNSUPPORTED && strstr(lq_error_detail(), t->name.p));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const roles[] = {"token_embd", "attn_v", "ffn_down", "output", "attn_norm"};
    char *text = (char *)fuzz_copy(data, size);
    q_recipe *r = NULL;
    const lq_status s = q_recipe_parse(&q_alloc_libc, "mine", text, size, &r);
    free(text); /* nothing of it is kept */
    if (s != LQ_OK) {
        demand(!r && (s == LQ_E_LIMIT || (s == LQ_E_FORMAT && strstr(lq_error_detail(), "recipe mine, line "))));
        return 0;
    }
    for (size_t i = 0; i < 20; i++) {
        char name[64];
        const bool once = i % 5 == 0 || i % 5 == 3;
        const int32_t layer = once ? -1 : (int32_t)i / 5 * 7;
        if (once) snprintf(name, sizeof name, "%s.weight", roles[i % 5]);
        else snprintf(name, sizeof name, "blk.%d.%s.weight", layer, roles[i % 5]);
        const q_recipe_tensor t = {.name = q_str_of(name), .role = roles[i % 5], .layer = layer,
                                   .layers = i & 1 ? 22 : 3, .gqa = (int32_t)i % 9, .rank = i % 5 == 4 ? 1 : 2,
                                   .k = i & 2 ? 4096 : 80, .tied = (i & 4) != 0, .importance = (i & 8) != 0};
        choose(r, &t);
    }
    q_recipe_close(r);
    return 0;
}
