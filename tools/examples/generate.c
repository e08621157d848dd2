/* generate.c: load a model, let it write 32 tokens, print them. Needs libquant.h and the library, nothing else:
 * cc -std=c11 -Iinclude tools/examples/generate.c build/libquant.a -lm -pthread -o generate */
#include <libquant.h>
#include <stdio.h>
#include <string.h>

enum { MAX_IDS = 512 };

int main(int argc, char **argv) {
    lq_ctx *ctx = NULL;
    lq_model *model = NULL;
    lq_session *session = NULL;
    int32_t ids[MAX_IDS];
    size_t n = MAX_IDS;
    const lq_sampler sampler = {.size = sizeof sampler, .max_tokens = 32}; /* zeros: always the most likely token */
    lq_step_item step = {.size = sizeof step, .sampler = &sampler};
    if (argc != 3) return fprintf(stderr, "usage: generate MODEL PROMPT\n"), 2;

    lq_status s = lq_open(NULL, &ctx);
    if (s == LQ_OK) s = lq_model_open(ctx, argv[1], NULL, &model);
    if (s == LQ_OK) s = lq_session_open(model, NULL, &session);
    if (s == LQ_OK) s = lq_tokenize(model, argv[2], strlen(argv[2]), LQ_TOKENIZE_BOS, ids, &n);
    if (s == LQ_OK) s = lq_decode(session, &(lq_item){.ids = ids, .count = n, .logits_from = n - 1}, 1);
    if (s == LQ_OK) printf("%s", argv[2]);
    while (s == LQ_OK && !step.end) {
        s = lq_step(session, &step, 1);
        if (s == LQ_OK) printf("%.*s", (int)step.bytes, step.text);
    }
    if (s == LQ_OK) printf("\n");
    else fprintf(stderr, "%s: %s\n", lq_status_name(s), lq_error_detail());
    lq_session_close(session);
    lq_model_close(model);
    lq_close(ctx);
    return s == LQ_OK ? 0 : 1;
}
