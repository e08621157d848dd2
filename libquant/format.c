/* format.c: finding formats, sizes of rows, and rows encoded and decoded through a format's own functions.
 *
 * Owns nothing. Refuses rows that are not whole blocks, and rows so long that a codec's int offsets could not reach
 * their end. Layer L1. */
#include "wide.h"

const q_format *q_format_find(const char *name) {
    for (uint32_t i = 0; name && i < q_format_count(); i++)
        if (strcmp(q_formats[i]->name, name) == 0) return q_formats[i];
    return NULL;
}

const q_format *q_format_by_gguf(uint32_t id) {
    for (uint32_t i = 0; i < q_format_count(); i++)
        if (q_format_gguf_ids[i] >= 0 && (uint32_t)q_format_gguf_ids[i] == id) return q_formats[i];
    return NULL;
}

int32_t q_format_gguf_id(const q_format *f) {
    for (uint32_t i = 0; i < q_format_count(); i++)
        if (q_formats[i] == f) return q_format_gguf_ids[i];
    return -1;
}

bool q_row_bytes(const q_format *f, uint64_t n, uint64_t *bytes) {
    uint64_t size;
    if (n % (uint64_t)f->weights != 0) return false;
    if (q_mul_overflow(n / (uint64_t)f->weights, (uint64_t)f->bytes, &size)) return false;
    if (q_add_overflow(size, (uint64_t)f->row_head, &size)) return false;
    if (size > INT32_MAX || n > INT32_MAX) return false;
    *bytes = size;
    return true;
}

void q_decode_row(const q_format *f, const uint8_t *row, int64_t n, float *y) {
    if (f->weights > 1) {
        const int units = f->weights / Q_UNIT;
        for (int block = 0; block < (int)(n / f->weights); block++)
            for (int sub = 0; sub < units; sub++, y += Q_UNIT) f->decode(row, block, sub, y);
        return;
    }
    const int full = (int)(n / Q_UNIT), tail = (int)(n % Q_UNIT);
    for (int unit = 0; unit < full; unit++) f->decode(row, unit, 0, y + (int64_t)unit * Q_UNIT);
    if (tail > 0) { /* decode reads whole units: give it one that ends in zeros */
        uint8_t in[Q_UNIT * sizeof(float)] = {0};
        float out[Q_UNIT];
        memcpy(in, row + (int64_t)full * Q_UNIT * f->bytes, (size_t)tail * (size_t)f->bytes);
        f->decode(in, 0, 0, out);
        memcpy(y + (int64_t)full * Q_UNIT, out, (size_t)tail * sizeof(float));
    }
}

void q_format_codes(const q_format *f, const q_wide *wide, const q_grid *grid, const float *x, int32_t *codes) {
    float value;
    if (f->shape) q_fit_codes(f->shape, wide, grid, x, codes);
    for (int32_t j = 0; !f->shape && j < f->weights; j++) codes[j] = f->nearest(grid, j, x[j], &value);
}

void q_encode_blocks(const q_format *f, const q_fit_in *all, int64_t n, uint8_t *row) {
    q_grid grid;
    int32_t codes[Q_MAX_BLOCK];
    q_fit_in in = *all;
    for (int64_t at = 0; at < n; at += f->weights, row += f->bytes) {
        in.x = all->x + at;
        in.weight = all->weight ? all->weight + at : NULL;
        if (f->weights > 1 || at == 0) f->fit(&in, &grid); /* single weights have no parameters */
        q_format_codes(f, in.wide, &grid, in.x, codes);
        f->emit(&grid, codes, row);
    }
}

void q_encode_row_of(const q_format *f, const q_fit_in *all, int64_t n, uint8_t *row) {
    q_fit_in in = *all;
    in.head = NULL;
    if (f->row_head) f->head(&in, n, row);
    if (f->row_head) in.head = row;
    if ((!in.search || f->weights == 1) && q_wide_of(in.wide)->encode(f, &in, n, row + f->row_head)) return;
    q_encode_blocks(f, &in, n, row + f->row_head);
}

void q_encode_row(const q_format *f, const float *x, const float *weight, bool search, int64_t n, uint8_t *row) {
    q_encode_row_of(f, &(q_fit_in){x, weight, search, NULL, NULL}, n, row);
}
