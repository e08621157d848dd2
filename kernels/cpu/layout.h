/* layout.h: layouts of weights that kernels read in the place of the file's rows.
 *
 * Rows lie side by side in panels of sixteen, so that they are in the lanes of registers when a kernel loads them, and
 * one panel after the other, so that a matrix is read as one stream. A panel is a run of blocks along the rows; what a
 * block consists of is its layout's. Rows that the last panel lacks repeat the matrix's last row. layout.c packs a
 * matrix, rows16.c has the layouts, kernels.def says which kernel reads which (PACKED). Layer L2. */
#ifndef Q_LAYOUT_H
#define Q_LAYOUT_H

#include "../../libquant/op.h"

enum { Q_PANEL = 16 /* rows side by side */ };

typedef struct q_cpu_layout {
    const char *name;
    int32_t weights; /* of a row to a block: the format's block, or more */
    int32_t bytes;   /* of a block of a panel: a multiple of 64 */
    int32_t head;    /* bytes ahead of a panel's first block: a multiple of 64 */
    /* Rows of `blocks` blocks of the format to a panel; where they do not fill the last block of the layout, the rest
     * of it is zero. Every byte is written. */
    void (*pack)(const uint8_t *const row[Q_PANEL], int64_t blocks, uint8_t *panel);
} q_cpu_layout;

/* What begins a packed weight; its panels follow at Q_ALIGN. */
typedef struct q_cpu_packed {
    const q_cpu_layout *layout;
    uint64_t panel_bytes;
} q_cpu_packed;

/* All rows of all matrices, which lie one after the other. */
static inline int64_t q_layout_rows(const q_weight *w) { return (int64_t)w->rows * Q_MAX(w->matrices, 1); }
uint64_t q_layout_panel_bytes(const q_cpu_layout *l, int64_t k);
uint64_t q_layout_bytes(const q_cpu_layout *l, const q_weight *w);
/* Rows begin .. end - 1 of a weight, of whole panels (but for the weight's last one): `to` is where all of it begins.
 * Pure: any split into ranges, by any threads, makes the same bytes. */
void q_layout_pack(const q_cpu_layout *l, const q_weight *w, int64_t begin, int64_t end, void *to);

/* The layout of a packed weight, and where its panels begin. */
static inline const q_cpu_layout *q_layout_of(const q_weight *w) {
    return w->packed ? ((const q_cpu_packed *)w->packed)->layout : NULL;
}
static inline const uint8_t *q_layout_panels(const q_weight *w) { return (const uint8_t *)w->packed + Q_ALIGN; }

#endif
