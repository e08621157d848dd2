/* fuzz_spm.c: a tokenizer.model and a text: two bytes (the length of the model), the model, the text.
 *
 * Whatever opens must keep what help_fuzz.h asks of every tokenizer. */
#include "help_fuzz.h"

/* The model or the text, never the border between them. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed) {
    if (size < 2 || max < size) return LLVMFuzzerMutate(data, size, max);
    const size_t n = Q_MIN((size_t)q_load16(data), size - 2);
    if (seed % 4 == 0) return 2 + n + fuzz_mutate_part(data, size, max, 2 + n, size - 2 - n);
    const size_t now = fuzz_mutate_part(data, size, Q_MIN(max, size - n + 65535), 2, n);
    data[0] = (uint8_t)now;
    data[1] = (uint8_t)(now >> 8);
    return size - n + now;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size < 2) return 0;
    const size_t n = Q_MIN((size_t)q_load16(data), size - 2);
    uint8_t *model = (uint8_t *)fuzz_copy(data + 2, n);
    char *text = (char *)fuzz_copy(data + 2 + n, size - 2 - n);
    const q_directory dir = {.names = Q_NAMES_HF, .tokenizer_file = q_str_of("tokenizer.model"),
                             .tokenizer = model, .tokenizer_bytes = n};
    q_text *t;
    const lq_status s = q_text_open(&q_alloc_libc, NULL, &dir, &t);
    free(model); /* the object keeps nothing of it */
    if (s == LQ_OK) {
        fuzz_check_text(t, text, size - 2 - n);
        q_text_close(t);
    } else {
        demand(s == LQ_E_TRUNCATED || s == LQ_E_FORMAT || s == LQ_E_UNSUPPORTED || s == LQ_E_INCONSISTENT ||
               s == LQ_E_LIMIT);
        demand(lq_error_detail()[0]);
    }
    free(text);
    return 0;
}
