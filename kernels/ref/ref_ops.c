/* ref_ops.c: how many parallel units a step has, and how much scratch its reference needs. Layer L2. */
#include "ref.h"

int64_t q_op_units(const q_inst *s, int32_t n, int32_t n_out) {
    const int64_t columns = s->out || s->op == Q_OP_HEAD || s->op == Q_OP_SAMPLE ? n_out : n;
    if (columns == 0) return 0;
    switch (q_ops[s->op].unit) {
    case Q_UNIT_COLUMN: return columns;
    case Q_UNIT_ROW: return s->op == Q_OP_HEAD ? s->w->rows : (int64_t)s->y.heads * s->y.width;
    case Q_UNIT_COLUMN_HEAD: return columns * s->x.heads;
    case Q_UNIT_EXPERT_ROW: return s->y.width;
    case Q_UNIT_CHANNEL: return (int64_t)s->x.heads * s->x.width;
    case Q_UNIT_HEAD: return s->v.heads;
    case Q_UNIT_OUT: return n_out;
    }
    return 0;
}

size_t q_ref_scratch(const q_inst *s, int32_t n_columns) {
    switch ((q_op)s->op) {
    case Q_OP_EMBED: return q_ref_embed_scratch(s);
    case Q_OP_NORM:
    case Q_OP_HEADNORM: return q_ref_norm_scratch(s);
    case Q_OP_MATMUL:
    case Q_OP_HEAD: return q_ref_matmul_scratch(s, n_columns);
    case Q_OP_ATTN: return q_ref_attn_scratch(s);
    case Q_OP_ROUTE:
    case Q_OP_MOE_GLU:
    case Q_OP_MOE_DOWN: return q_ref_moe_scratch(s, n_columns);
    case Q_OP_CONV:
    case Q_OP_SCAN: return q_ref_scan_scratch(s);
    case Q_OP_SAMPLE: return q_sample_bytes(s->x.width, 0);
    default: return 0;
    }
}
