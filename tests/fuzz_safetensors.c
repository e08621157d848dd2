/* fuzz_safetensors.c: a container file as bytes: the header's length, its JSON, and the layout of the tensors.
 *
 * Whatever is accepted must describe the file exactly: tensors in order, end to end, inside the bytes given. */
#include "help_fuzz.h"

#include "../libquant/loaders/safetensors.h"

/* The header's text, with its length put right; or the number of bytes behind it. */
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed) {
    uint64_t n = size < 8 ? 0 : q_load64(data);
    if (seed % 8 == 0 || size < 8 || n > size - 8 || max < size) return LLVMFuzzerMutate(data, size, max);
    if (seed % 8 == 1) return 8 + n + fuzz_mutate_part(data, size, max, 8 + n, size - 8 - n);
    const size_t now = fuzz_mutate_part(data, size, max, 8, n);
    for (int i = 0; i < 8; i++) data[i] = (uint8_t)((uint64_t)now >> (8 * i));
    return size - n + now;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t head[9] = {0};
    uint64_t n;
    memcpy(head, data, size < 9 ? size : 9);
    if (q_st_header_length(head, size, &n) != LQ_OK) return 0;
    q_arena arena = {.alloc = &q_alloc_libc};
    q_st_list list = {.alloc = &q_alloc_libc};
    uint8_t *json = (uint8_t *)malloc(n); /* of its exact size, so that a read beyond it is seen */
    memcpy(json, data + 8, n);
    if (q_st_header(&arena, json, n, size - 8 - n, 0, &list) == LQ_OK) {
        uint64_t at = 8 + n, sum = 0;
        for (uint64_t i = 0; i < list.n; i++) {
            const q_tensor *t = &list.items[i];
            if (t->offset != at || t->bytes != t->row_bytes * t->rows || t->rank > 8 || t->name.n == 0) abort();
            for (uint64_t j = 0; j < t->name.n; j++) sum += (uint8_t)t->name.p[j];
            at += t->bytes;
        }
        if (at != size || (list.n && sum == 0)) abort();
    }
    q_delete(&q_alloc_libc, list.items);
    q_arena_free(&arena);
    free(json);
    return 0;
}
