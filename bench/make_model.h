/* make_model.h: models of random weights with the shapes of real ones, so that speed can be measured where no model can
 * be had. Part of the program `lq`, not of the library. */
#ifndef BENCH_MAKE_MODEL_H
#define BENCH_MAKE_MODEL_H

#include "../include/libquant_plugin.h"

/* A row of the table of shapes. Embedding and output are two matrices in each. */
typedef struct bench_shape {
    const char *name, *arch; /* arch: a name of archs.def whose hyper-parameters these are */
    uint32_t embd, layers, heads, heads_kv, ff, vocab, context;
    double rope_base;
    const char *about;
} bench_shape;

/* NULL past the end. */
const bench_shape *bench_shape_at(size_t index);
const bench_shape *bench_shape_find(const char *name); /* NULL when there is none */

typedef struct bench_make_options {
    const bench_shape *shape;
    const char *scheme; /* as lq_quantize takes it */
    uint64_t seed;
    uint32_t threads;   /* 0 = as many as this process may use */
    bool force;         /* replace an existing file */
    lq_progress progress;
    void *user;
} bench_make_options;

typedef struct bench_make_result {
    uint32_t tensors, fallbacks;
    uint64_t weights, bytes; /* bytes of the whole file */
    double bits_per_weight, seconds;
} bench_make_result;

/* Write such a model to the GGUF file `dst`, under the rules of every output (loader.h). Holds a few pieces of rows,
 * never a tensor. The same seed gives the same bytes at any number of threads, on any machine. */
lq_status bench_make_model(const char *dst, const bench_make_options *options, bench_make_result *result);

#endif
