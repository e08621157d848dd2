/* layout.c: packs a weight into panels. What a panel consists of is its layout's (rows16.c). Layer L2. */
#include "layout.h"

_Static_assert(sizeof(q_cpu_packed) <= Q_ALIGN,
               "the head of a packed weight is larger than what lies before its panels");

uint64_t q_layout_panel_bytes(const q_cpu_layout *l, int64_t k) {
    return (uint64_t)l->head + (uint64_t)((k + l->weights - 1) / l->weights) * (uint64_t)l->bytes;
}

uint64_t q_layout_bytes(const q_cpu_layout *l, const q_weight *w) {
    return Q_ALIGN + (uint64_t)((q_layout_rows(w) + Q_PANEL - 1) / Q_PANEL) * q_layout_panel_bytes(l, w->k);
}

void q_layout_pack(const q_cpu_layout *l, const q_weight *w, int64_t begin, int64_t end, void *to) {
    const uint64_t panel_bytes = q_layout_panel_bytes(l, w->k);
    uint8_t *const panels = (uint8_t *)to + Q_ALIGN;
    if (begin == 0) {
        memset(to, 0, Q_ALIGN);
        *(q_cpu_packed *)to = (q_cpu_packed){l, panel_bytes};
    }
    for (int64_t r = begin; r < end; r += Q_PANEL) {
        const uint8_t *row[Q_PANEL];
        for (int64_t i = 0; i < Q_PANEL; i++)
            row[i] = w->data + (uint64_t)Q_MIN(r + i, q_layout_rows(w) - 1) * w->row_bytes;
        l->pack(row, w->k / w->format->weights, panels + (uint64_t)(r / Q_PANEL) * panel_bytes);
    }
}
