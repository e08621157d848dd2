/* method.h: how a quantized matrix lies in a Hugging Face directory: the tensors that a method stores for it, and what the
 * configuration says about them.
 *
 * A method is one record in a file libquant/loaders/hf_X_write.c plus METHOD(x) in methods.def; recipes name it ("method
 * gptq"). It chooses no bits: it gets a matrix in one of our formats and writes the same values in the method's layout.
 * Where the layout cannot hold them, `settle` changes the matrix first, so that what is measured is what is stored.
 * Layer L1. */
#ifndef Q_METHOD_H
#define Q_METHOD_H

#include "json.h"

enum { Q_METHOD_PARTS = 8 };

typedef struct q_packed_matrix {
    q_str name;             /* "model.layers.0.mlp.down_proj.weight" */
    const q_format *format; /* of `data`; one of the method's */
    const q_format *dtype;  /* f16 or bf16: what the model's other weights are stored in */
    uint64_t k, rows, row_bytes;
    uint8_t *data;          /* all rows; NULL in describe and scratch */
    const int32_t *order;   /* [k] column i of the rows is input order[i]; NULL = i. Of methods with `ordered` alone */
    uint8_t *scratch;       /* what settle leaves for pack, as many bytes as `scratch` says */
    const q_alloc *alloc;
} q_packed_matrix;

typedef struct q_method {
    const char *name;    /* "gptq" */
    const char *formats; /* those it stores, comma-separated */
    uint32_t parts;      /* tensors per matrix, at most Q_METHOD_PARTS */
    bool ordered;        /* it stores which input a column is */
    /* Name, type and shape of a part; the name goes into the arena. LQ_E_UNSUPPORTED: the matrix's shape does not fit. */
    lq_status (*describe)(const q_packed_matrix *m, q_arena *arena, uint32_t part, q_out_tensor *out);
    /* After a row was quantized from x: choose its bits anew under parameters that the layout can hold. Thread-safe. NULL =
     * it holds the format's. */
    void (*refine)(const q_packed_matrix *m, const float *x, uint8_t *row);
    uint64_t (*scratch)(const q_packed_matrix *m); /* NULL = none */
    /* Change the rows to what the layout can hold; *changed says whether any value did. NULL = it holds every one. */
    lq_status (*settle)(q_packed_matrix *m, bool *changed);
    /* The bytes of a part. */
    lq_status (*pack)(const q_packed_matrix *m, uint32_t part, uint8_t *out);
    /* The value of quantization_config; `m` has format and dtype alone. */
    void (*config)(const q_packed_matrix *m, q_json_text *t);
} q_method;

extern const q_method *const q_methods[]; /* from methods.def */
const q_method *q_method_find(q_str name); /* NULL when unknown */
bool q_method_takes(const q_method *p, const q_format *f);

/* For the methods: the name of a part beside the matrix's ("X.weight" and ".absmax" give "X.weight.absmax"; a suffix that
 * begins with '=' replaces "weight": "X.qweight"). */
lq_status q_method_name(q_arena *arena, q_str matrix, const char *suffix, q_str *out);

#endif
