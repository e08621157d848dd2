/* loader.h: from model files to a directory of metadata and tensors, and back.
 *
 * A loader validates everything about its container and decides nothing about models: names and keys come out as the
 * file has them, with `names` saying whose convention they follow. One file libquant/loaders/X.c and the line LOADER(x)
 * in loaders.def. Layer L1.
 *
 * Limits (q_limits): a file beyond them is LQ_E_LIMIT before anything is allocated for it. */
#ifndef Q_LOADER_H
#define Q_LOADER_H

#include "checksum.h"
#include "file.h"
#include "format.h"
#include "log.h"
#include "threads.h"

enum {
    Q_LIMIT_STRING = 16 << 20,     /* bytes of one string */
    Q_LIMIT_ARRAY = 16 << 20,      /* elements of one array */
    Q_LIMIT_KEYS = 65536,          /* metadata keys */
    Q_LIMIT_TENSORS = 1048576,     /* tensors */
    Q_LIMIT_METADATA = 512 << 20,  /* bytes of metadata in all */
    Q_LIMIT_ALIGNMENT = 65536,
    Q_LIMIT_JSON_HEADER = 100000000,
    Q_LIMIT_JSON_DEPTH = 64,
    Q_LIMIT_SHARDS = 1024
};

/* Value types of metadata, with GGUF's numbers. */
typedef enum {
    Q_META_U8, Q_META_I8, Q_META_U16, Q_META_I16, Q_META_U32, Q_META_I32, Q_META_F32, Q_META_BOOL, Q_META_STRING,
    Q_META_ARRAY, Q_META_U64, Q_META_I64, Q_META_F64
} q_meta_type;

/* One value. Numbers are kept in all three forms that make sense; arrays of numbers as packed little-endian bytes. */
typedef struct q_meta {
    q_str key;
    q_meta_type type;
    q_meta_type item;   /* of an array */
    uint64_t count;     /* of an array, else 1 */
    int64_t i;          /* integers and booleans; a u64 above 2^63 - 1 is kept in `u` only, with i = INT64_MAX */
    uint64_t u;
    double f;           /* every number */
    q_str s;            /* strings */
    const uint8_t *raw; /* arrays of numbers: count items, unaligned */
    const q_str *strs;  /* arrays of strings */
} q_meta;

struct q_directory;
struct q_tensor;
/* A tensor that the file keeps as several others, as checkpoints that other engines quantized do: its rows are made as they
 * are read. */
typedef struct q_source {
    /* Rows [first, first + n), row_bytes each, in the tensor's format. Thread-safe. */
    lq_status (*read)(const struct q_directory *dir, const struct q_tensor *t, uint64_t first, uint64_t n, uint8_t *out);
    uint64_t strip;       /* rows that are best read together, counted from the first; 0 = any */
    const int32_t *order; /* [shape[0]] as q_weight.order: value i of a row belongs to input order[i]; NULL = input i */
} q_source;

typedef struct q_tensor {
    q_str name;
    const q_format *format; /* NULL for integer types (stored, never computed with): see type_name */
    const char *type_name;  /* "f16", "i32" */
    uint32_t rank;
    uint64_t shape[8];      /* shape[0] contiguous: the inputs of a matrix; unused = 1 */
    uint64_t rows;          /* product of shape[1..] */
    uint64_t row_bytes, bytes;
    uint32_t file;          /* index into files */
    uint64_t offset;        /* in that file */
    const uint8_t *data;    /* bytes, when the directory is mapped or in memory; NULL otherwise */
    const q_source *view;     /* where they come from instead: `data` is NULL, `offset` 0, `file` that of the codes; NULL = none */
} q_tensor;

typedef enum { Q_NAMES_GGUF, Q_NAMES_HF } q_names;

typedef struct q_loader q_loader;

/* A hash index over names, shared by the loaders: open addressing over positions of an array of q_str at a stride. The
 * hash is keyed by where things lie in memory, so that a file cannot be made to collide. */
typedef struct q_index {
    uint32_t *cells; /* position + 1; 0 = empty */
    uint32_t mask;
    uint64_t key[2];
} q_index;
/* LQ_E_INCONSISTENT naming the first duplicate (as `what`). Free cells with q_delete. */
lq_status q_index_build(const q_alloc *a, const void *first, size_t stride, uint32_t n, const char *what, q_index *out);
/* Position or -1. */
int64_t q_index_find(const q_index *index, const void *first, size_t stride, q_str name);

typedef struct q_directory {
    const q_loader *loader;
    q_names names;
    char container[32];      /* "gguf v3" */
    q_file **files;
    uint32_t n_files;
    const q_meta *meta;      /* Hugging Face: config.json with nested keys joined by '.', then those of
                                tokenizer_config.json under "tokenizer_config." */
    uint32_t n_meta;
    const q_tensor *tensors; /* file order */
    uint32_t n_tensors;
    q_str tokenizer_file;    /* name of a tokenizer file beside the weights ("tokenizer.model"), else empty */
    const uint8_t *tokenizer; /* its bytes */
    uint64_t tokenizer_bytes;
    void *owner;             /* the loader's */
    void (*idle)(struct q_directory *dir); /* gives back memory that reading views took, from any thread. NULL = none */
    /* Lookup by name. A loader that builds them to find duplicates leaves them here; q_directory_open builds the rest
     * and q_directory_close frees them (with alloc). Without cells, as in a directory made by hand, lookups scan. */
    const q_alloc *alloc;
    q_index meta_index, tensor_index;
} q_directory;

typedef struct q_load_options {
    const q_alloc *alloc;
    const q_log *log;
    bool map;       /* map weights; false: tensor->data is NULL, use q_tensor_read */
    bool allow_gaps; /* GGUF: accept unused bytes between tensors (with a warning) */
    bool adapter;   /* what is wanted is an adapter, not the model that may lie beside it */
} q_load_options;

struct q_loader {
    const char *name; /* "gguf" */
    /* Whether the path looks like this container (magic, files in a directory); must be cheap and safe. */
    lq_status (*detect)(const char *path, bool *mine);
    lq_status (*open)(const char *path, const q_load_options *options, q_directory **out);
    void (*close)(q_directory *dir);
    bool adapters; /* there are adapters in this container */
};
extern const q_loader *const q_loaders[]; /* from loaders.def */

/* Open with the loader that detects it; LQ_E_IO when there is nothing, LQ_E_FORMAT when no loader knows it (with the
 * reason: pickle files, legacy ggml magics). */
lq_status q_directory_open(const char *path, const q_load_options *options, q_directory **out);
void q_directory_close(q_directory *dir);

/* LQ_E_ARG when an output at `dst` would replace one of the directory's own files, under whatever name: a shard, a link
 * to one, a configuration beside the weights. */
lq_status q_directory_spares(const q_directory *dir, const char *dst);

/* By name: NULL when absent. Hash lookup. */
const q_meta *q_directory_meta(const q_directory *dir, const char *key);
const q_tensor *q_directory_tensor(const q_directory *dir, q_str name);
/* For keys that a file may lack, whose default would then be taken without a word: LQ_E_INCONSISTENT when one of them is
 * absent, and a key that is none of them differs from it by one bit. */
lq_status q_directory_check_keys(const q_directory *dir, const char *const *keys, uint32_t n);
/* n bytes at `offset` of a tensor, from the mapping, the file or the view. */
lq_status q_tensor_read(const q_directory *dir, const q_tensor *t, uint64_t offset, void *dst, uint64_t n);
/* It will not be read again: the system need not keep its pages (q_file_let_go). Of a view nothing is known. */
void q_tensor_let_go(const q_directory *dir, const q_tensor *t);

/* ---- writing */

typedef struct q_out_tensor {
    q_str name;
    const q_format *format;
    uint32_t rank;
    uint64_t shape[8];
    const char *type_name; /* format NULL: an integer type as in q_tensor ("i32") */
} q_out_tensor;

typedef struct q_writer q_writer; /* a writer's own */
typedef struct q_writer_kind {
    const char *name;      /* "gguf" */
    const char *extension; /* ".gguf" */
    /* Size of the whole file for these keys and tensors; validates names, ranks, formats. */
    lq_status (*measure)(const q_meta *meta, uint32_t n_meta, const q_out_tensor *tensors, uint32_t n_tensors,
                         uint64_t *bytes);
    /* Opens the output (q_outfile rules) and writes the header. */
    lq_status (*open)(const q_alloc *a, const char *path, bool force, const q_meta *meta, uint32_t n_meta,
                      const q_out_tensor *tensors, uint32_t n_tensors, q_writer **out);
    /* The tensors' bytes in their order, in any pieces; padding is the writer's. */
    lq_status (*write)(q_writer *w, const void *data, uint64_t n);
    /* All tensors complete: sync, read back (by the pool, outside its runs; NULL = this thread) and check against what was
     * written, rename. Frees w in every case. */
    lq_status (*commit)(q_writer *w, q_pool *pool);
    void (*discard)(q_writer *w); /* NULL is fine */
} q_writer_kind;
extern const q_writer_kind q_writer_gguf;
/* Reading back: how many of the threads that commit is given have a buffer, when the file has so many bytes. */
enum { Q_READ_BACK_PIECES = 4 /* that a thread takes at a time */ };
static inline uint32_t q_read_back_threads(uint64_t bytes, uint32_t threads) {
    const uint64_t tasks = bytes / ((uint64_t)Q_READ_BACK_PIECES * Q_CHECKSUM_PIECE) + 1;
    return (uint32_t)Q_MIN(tasks, (uint64_t)threads);
}
/* What one asks of the allocator at any time, at most, for an output of `total` bytes, when all but the tensors' bytes are so
 * many: them, and then reading them back with their strings, and a buffer and a sentence for each thread that reads. */
static inline uint64_t q_writer_bytes(uint64_t header, uint64_t total, uint32_t threads) {
    return 4 * header + (1 << 16) + (uint64_t)q_read_back_threads(total, threads) * (Q_CHECKSUM_PIECE + sizeof(q_trouble) + sizeof(uint64_t));
}
/* A Hugging Face directory: shards of safetensors, each text key a file beside them ("config.json" is one of them) and its
 * contents; the number "max_shard_size" says how many bytes of tensors a shard has at most, 5 GB when absent. Tensors are
 * f32, f16, bf16, or of an integer type. */
extern const q_writer_kind q_writer_huggingface;

/* For commit: LQ_E_IO when the file at a path has other bytes than those that were added to `written`. The pool may be NULL;
 * each of its threads that has something to read has a buffer of Q_CHECKSUM_PIECE bytes. */
lq_status q_read_back(const q_alloc *a, q_pool *pool, const char *path, const q_piece_sums *written);

#endif
