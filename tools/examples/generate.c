/* generate.c: load a model, let it write 32 tokens, print them. Needs libquant.h and the library, nothing else:
 * cc -std=c11 -Iinclude tools/examples/generate.c build/libquant.a -lm -pthread -o generate */
#include <libquant.h>
#include <stdio.h>
#include <string.h>

enum { NEW = 32, MAX_IDS = 512 };

int main(int argc, char **argv) {
    lq_ctx *ctx = NULL;
    lq_model *model = NULL;
    lq_session *session = NULL;
    int32_t ids[MAX_IDS + NEW];
    char text[4096];
    size_t n = MAX_IDS, made = 0, bytes = sizeof text;
    if (argc != 3) return fprintf(stderr, "usage: generate MODEL PROMPT\n"), 2;

    lq_status s = lq_open(NULL, &ctx);
    if (s == LQ_OK) s = lq_model_open(ctx, argv[1], NULL, &model);
    if (s == LQ_OK) s = lq_session_open(model, NULL, &session);
    if (s == LQ_OK) s = lq_tokenize(model, argv[2], strlen(argv[2]), LQ_TOKENIZE_BOS, ids, &n);
    if (s == LQ_OK) s = lq_decode(session, &(lq_item){.ids = ids, .count = n, .logits_from = n - 1}, 1);
    while (s == LQ_OK && made < NEW) {
        s = lq_sample(session, 0, NULL, &ids[n + made]); /* NULL: always the most likely token */
        if (s == LQ_OK) s = lq_decode(session, &(lq_item){.ids = &ids[n + made++], .count = 1}, 1);
    }
    if (s == LQ_OK) s = lq_detokenize(model, ids, n + made, 0, text, &bytes);
    if (s == LQ_OK) printf("%.*s\n", (int)bytes, text);
    else fprintf(stderr, "%s: %s\n", lq_status_name(s), lq_error_detail());
    lq_session_close(session);
    lq_model_close(model);
    lq_close(ctx);
    return s == LQ_OK ? 0 : 1;
}
