/* loader.c: choosing a loader, saying why none fits, and looking up what it found.
 *
 * Owns the name indices of a directory and reading a tensor's bytes. Knows no container: what it says about pickle
 * files and empty folders is what a person who picked the wrong file needs to hear. Layer L1. */
#include "loader.h"

/* ------------------------------------------------------------------------------------------------ index */

static uint64_t fold(uint64_t a, uint64_t b) {
    __extension__ typedef unsigned __int128 wide;
    const wide p = (wide)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

/* Eight bytes at a time through a multiplication whose factors the file's author does not know. */
static uint64_t hash_name(const q_index *index, q_str s) {
    const char *p = s.p;
    uint64_t h = index->key[0] ^ s.n, n = s.n;
    for (; n >= 8; n -= 8, p += 8) h = fold(h ^ q_load64(p), index->key[1]);
    uint64_t tail = 0;
    if (n) memcpy(&tail, p, (size_t)n);
    return fold(h ^ tail, index->key[1]);
}

static q_str name_at(const void *first, size_t stride, uint64_t i) {
    q_str s;
    memcpy(&s, (const uint8_t *)first + stride * i, sizeof s);
    return s;
}

lq_status q_index_build(const q_alloc *a, const void *first, size_t stride, uint32_t n, const char *what,
                        q_index *out) {
    uint64_t size = 16;
    while (size < (uint64_t)n * 2) size *= 2;
    q_index index = {.cells = Q_NEW(a, uint32_t, size), .mask = (uint32_t)(size - 1)};
    if (!index.cells) return LQ_E_NOMEM;
    const uint64_t heap = (uint64_t)(uintptr_t)index.cells, stack = (uint64_t)(uintptr_t)&index;
    index.key[0] = fold(heap ^ 0x9E3779B97F4A7C15u, stack ^ 0xD1B54A32D192ED03u);
    index.key[1] = fold(stack ^ 0x8CB92BA72F3D8DD7u, heap ^ 0xAAAAAAAA55555555u) | 1;
    for (uint32_t i = 0; i < n; i++) {
        const q_str s = name_at(first, stride, i);
        uint64_t c = hash_name(&index, s) & index.mask;
        for (; index.cells[c]; c = (c + 1) & index.mask)
            if (q_str_eq(s, name_at(first, stride, index.cells[c] - 1))) {
                const uint32_t before = index.cells[c] - 1;
                q_delete(a, index.cells);
                return q_fail(LQ_E_INCONSISTENT, "%s \"%.*s\" appears twice (as number %u and number %u)", what,
                              Q_STR_ARG(s), before, i);
            }
        index.cells[c] = i + 1;
    }
    *out = index;
    return LQ_OK;
}

int64_t q_index_find(const q_index *index, const void *first, size_t stride, q_str name) {
    if (!index->cells) return -1;
    for (uint64_t c = hash_name(index, name) & index->mask; index->cells[c]; c = (c + 1) & index->mask)
        if (q_str_eq(name, name_at(first, stride, index->cells[c] - 1))) return (int64_t)index->cells[c] - 1;
    return -1;
}

/* With cells by hash, without by scanning. */
static int64_t find(const q_index *index, const void *first, size_t stride, uint32_t n, q_str name) {
    if (index->cells) return q_index_find(index, first, stride, name);
    for (uint32_t i = 0; i < n; i++)
        if (q_str_eq(name, name_at(first, stride, i))) return i;
    return -1;
}

const q_meta *q_directory_meta(const q_directory *dir, const char *key) {
    _Static_assert(offsetof(q_meta, key) == 0, "the index reads a q_str at the start of each item");
    const int64_t i = find(&dir->meta_index, dir->meta, sizeof(q_meta), dir->n_meta, q_str_of(key));
    return i < 0 ? NULL : &dir->meta[i];
}

lq_status q_directory_check_keys(const q_directory *dir, const char *const *keys, uint32_t n) {
    for (uint32_t i = 0; i < n; i++) {
        const q_str key = q_str_of(keys[i]);
        if (q_directory_meta(dir, keys[i])) continue;
        for (uint32_t k = 0; k < dir->n_meta; k++) {
            const q_str has = dir->meta[k].key;
            if (!q_str_bit_off(has, key)) continue;
            bool other = false;
            for (uint32_t j = 0; j < n && !other; j++) other = q_str_is(has, keys[j]);
            if (!other)
                return q_fail(LQ_E_INCONSISTENT, "the key '%.*s' is one bit away from '%s': the file is damaged",
                              Q_STR_ARG(has), keys[i]);
        }
    }
    return LQ_OK;
}

const q_tensor *q_directory_tensor(const q_directory *dir, q_str name) {
    _Static_assert(offsetof(q_tensor, name) == 0, "the index reads a q_str at the start of each item");
    const int64_t i = find(&dir->tensor_index, dir->tensors, sizeof(q_tensor), dir->n_tensors, name);
    return i < 0 ? NULL : &dir->tensors[i];
}

/* ------------------------------------------------------------------------------------------------ open, close, read */

static bool ends_with(const char *s, const char *end) {
    const size_t n = strlen(s), e = strlen(end);
    return n >= e && strcmp(s + n - e, end) == 0;
}

static bool has_file(const char *dir, const char *name) {
    char path[4096];
    q_path_kind kind;
    return q_path_join(path, sizeof path, dir, q_str_of(name)) == LQ_OK && q_path_kind_of(path, &kind) == LQ_OK &&
           kind == Q_PATH_FILE;
}

static lq_status refuse_pickle(const char *path) {
    return q_fail(LQ_E_UNSUPPORTED,
                  "%s holds pickled weights, which can run code when they are read: convert them to safetensors", path);
}

/* No loader takes the directory: say what is missing. */
static lq_status refuse_directory(const char *path) {
    static const char *const pickles[] = {"pytorch_model.bin", "pytorch_model.bin.index.json",
                                          "pytorch_model-00001-of-00002.bin", "consolidated.00.pth", "model.pt"};
    if (!has_file(path, "model.safetensors") && !has_file(path, "model.safetensors.index.json"))
        for (size_t i = 0; i < Q_COUNT(pickles); i++)
            if (has_file(path, pickles[i])) return refuse_pickle(path);
    if (!has_file(path, "config.json"))
        return q_fail(LQ_E_FORMAT, "%s is a directory without a config.json: name a GGUF file or a model's directory",
                      path);
    return q_fail(LQ_E_FORMAT, "%s has a config.json but no model.safetensors or model.safetensors.index.json; weights in a single "
                  "*.safetensors file of another name can be named themselves", path);
}

static lq_status refuse_adapter(const char *path) {
    static const char *const pickles[] = {"adapter_model.bin", "adapter_model.pt"};
    for (size_t i = 0; i < Q_COUNT(pickles) && !has_file(path, "adapter_model.safetensors"); i++)
        if (has_file(path, pickles[i])) return refuse_pickle(path);
    return q_fail(LQ_E_FORMAT, "%s is a directory without adapter_config.json and adapter_model.safetensors: name a GGUF file or "
                  "the directory of an adapter", path);
}

/* No loader takes the file: say what it looks like. */
static lq_status refuse_file(const q_load_options *options, const char *path) {
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"};
    q_file *f;
    Q_TRY(q_file_open(options->alloc, path, 0, &f)); /* names what is wrong with a path that leads nowhere */
    uint8_t b[4] = {0};
    const uint64_t size = q_file_size(f), n = Q_MIN(size, (uint64_t)4);
    const lq_status status = q_file_read(f, 0, b, n);
    q_file_close(f);
    if (status != LQ_OK) return status;
    for (size_t i = 0; i < Q_COUNT(pickles); i++)
        if (ends_with(path, pickles[i])) return refuse_pickle(path);
    if (n >= 2 && b[0] == 0x80 && b[1] >= 2 && b[1] <= 5) return refuse_pickle(path);
    if (n == 4 && memcmp(b, "PK\3\4", 4) == 0) return refuse_pickle(path);
    if (size == 0) return q_fail(LQ_E_TRUNCATED, "%s is empty", path);
    return q_fail(LQ_E_FORMAT, "%s is not a model file that is known here: it begins with bytes %02x %02x %02x %02x",
                  path, b[0], b[1], b[2], b[3]);
}

lq_status q_directory_open(const char *path, const q_load_options *options, q_directory **out) {
    if (!path || !*path) return q_fail(LQ_E_ARG, "the path of a model is empty");
    q_load_options o = {0};
    if (options) o = *options;
    if (!o.alloc) o.alloc = &q_alloc_libc;
    q_path_kind kind;
    Q_TRY(q_path_kind_of(path, &kind));
    const q_loader *loader = NULL;
    if (kind == Q_PATH_FILE || kind == Q_PATH_DIR)
        for (const q_loader *const *l = q_loaders; *l && !loader; l++) {
            bool mine;
            if (o.adapter && !(*l)->adapters) continue;
            Q_TRY((*l)->detect(path, &mine));
            if (mine) loader = *l;
        }
    if (!loader && o.adapter && kind == Q_PATH_DIR) return refuse_adapter(path);
    if (!loader) return kind == Q_PATH_DIR ? refuse_directory(path) : refuse_file(&o, path);

    q_directory *dir;
    Q_TRY(loader->open(path, &o, &dir));
    dir->loader = loader;
    dir->alloc = o.alloc;
    lq_status status = LQ_OK;
    if (!dir->meta_index.cells)
        status = q_index_build(o.alloc, dir->meta, sizeof(q_meta), dir->n_meta, "key", &dir->meta_index);
    if (status == LQ_OK && !dir->tensor_index.cells)
        status = q_index_build(o.alloc, dir->tensors, sizeof(q_tensor), dir->n_tensors, "tensor", &dir->tensor_index);
    if (status != LQ_OK) {
        q_directory_close(dir);
        return q_fail_in(status, "%s", path);
    }
    *out = dir;
    return LQ_OK;
}

void q_directory_close(q_directory *dir) {
    if (!dir) return;
    if (dir->alloc) {
        q_delete(dir->alloc, dir->meta_index.cells);
        q_delete(dir->alloc, dir->tensor_index.cells);
    }
    if (dir->loader) dir->loader->close(dir);
}

static lq_status spares_file(const char *file, const char *dst) {
    bool same;
    Q_TRY(q_path_same(file, dst, &same));
    return !same ? LQ_OK : q_fail(LQ_E_ARG, "%s: the output is one of the inputs (%s)", dst, file);
}

/* The side files lie where the weights do: a loader joins both to the same folder. */
static lq_status spares_side_files(const q_directory *dir, const char *dst) {
    const q_str side[] = {q_str_of("config.json"), q_str_of("tokenizer_config.json"), q_str_of("adapter_config.json"),
                          q_str_of("model.safetensors.index.json"), q_str_of("quantize_config.json"),
                          q_str_of("quant_config.json"), dir->tokenizer_file};
    const char *weights = q_file_path(dir->files[0]), *slash = strrchr(weights, '/');
    char folder[4200], path[4200];
    const size_t n = slash ? (size_t)(slash - weights) : 0;
    if (n >= sizeof folder) return q_fail(LQ_E_LIMIT, "%s: the path is too long", weights);
    memcpy(folder, slash ? weights : ".", slash ? n : 1);
    folder[slash ? n : 1] = 0;
    for (size_t i = 0; i < Q_COUNT(side); i++) {
        if (side[i].n == 0) continue;
        Q_TRY(q_path_join(path, sizeof path, folder, side[i]));
        Q_TRY(spares_file(path, dst));
    }
    return LQ_OK;
}

lq_status q_directory_spares(const q_directory *dir, const char *dst) {
    for (uint32_t i = 0; i < dir->n_files; i++)
        if (dir->files[i]) Q_TRY(spares_file(q_file_path(dir->files[i]), dst));
    return dir->names == Q_NAMES_HF && dir->n_files ? spares_side_files(dir, dst) : LQ_OK;
}

/* Whole rows go straight to dst; of the others, at both ends, a copy is cut. */
static lq_status read_view(const q_directory *dir, const q_tensor *t, uint64_t offset, uint8_t *dst, uint64_t n) {
    uint8_t *row = NULL;
    lq_status s = LQ_OK;
    while (n && s == LQ_OK) {
        const uint64_t first = offset / t->row_bytes, skip = offset % t->row_bytes, rows = skip ? 0 : n / t->row_bytes;
        const uint64_t take = rows ? rows * t->row_bytes : Q_MIN(n, t->row_bytes - skip);
        if (rows) {
            s = t->view->read(dir, t, first, rows, dst);
        } else {
            if (!row) row = (uint8_t *)q_new_raw(dir->alloc ? dir->alloc : &q_alloc_libc, t->row_bytes, 1);
            s = row ? t->view->read(dir, t, first, 1, row) : LQ_E_NOMEM;
            if (s == LQ_OK) memcpy(dst, row + skip, (size_t)take);
        }
        offset += take;
        dst += take;
        n -= take;
    }
    if (row) q_delete(dir->alloc ? dir->alloc : &q_alloc_libc, row);
    return s == LQ_OK ? s : q_fail_in(s, "tensor %.*s", Q_STR_ARG(t->name));
}

lq_status q_tensor_read(const q_directory *dir, const q_tensor *t, uint64_t offset, void *dst, uint64_t n) {
    uint64_t end;
    if (q_add_overflow(offset, n, &end) || end > t->bytes)
        return q_fail(LQ_E_ARG, "tensor %.*s: bytes %llu to %llu are beyond its %llu", Q_STR_ARG(t->name),
                      (unsigned long long)offset, (unsigned long long)(offset + n), (unsigned long long)t->bytes);
    if (n == 0) return LQ_OK;
    if (t->data) {
        memcpy(dst, t->data + offset, (size_t)n);
        return LQ_OK;
    }
    if (t->view) return read_view(dir, t, offset, (uint8_t *)dst, n);
    if (t->file >= dir->n_files)
        return q_fail(LQ_E_INTERNAL, "tensor %.*s belongs to no open file", Q_STR_ARG(t->name));
    const lq_status status = q_file_read(dir->files[t->file], t->offset + offset, dst, n);
    return status == LQ_OK ? LQ_OK : q_fail_in(status, "tensor %.*s", Q_STR_ARG(t->name));
}

void q_tensor_let_go(const q_directory *dir, const q_tensor *t) {
    if (!t->data && !t->view && t->file < dir->n_files) q_file_let_go(dir->files[t->file], t->offset, t->bytes);
}

/* Reading back what was written: piece by piece, by whichever thread comes first. */
typedef struct reading_back {
    const q_file *file;
    bool by_task;     /* there are fewer tasks than threads: a place each, else one per thread */
    uint8_t *buffers; /* [places] */
    uint64_t *sums;   /* [places] */
    q_trouble *troubles; /* [places] by pieces */
} reading_back;

static void read_pieces(void *arg, int64_t begin, int64_t end, uint32_t thread) {
    const reading_back *r = (const reading_back *)arg;
    const uint64_t place = r->by_task ? (uint64_t)begin / Q_READ_BACK_PIECES : thread;
    q_trouble *t = &r->troubles[place];
    uint8_t *buf = r->buffers + place * Q_CHECKSUM_PIECE;
    for (int64_t i = begin; i < end && t->status == LQ_OK; i++) {
        const uint64_t at = (uint64_t)i * Q_CHECKSUM_PIECE, n = Q_MIN(q_file_size(r->file) - at, (uint64_t)Q_CHECKSUM_PIECE);
        q_checksum h = {0};
        const lq_status st = q_file_read(r->file, at, buf, n);
        if (st != LQ_OK) {
            q_trouble_note(t, st, (uint64_t)i);
            return;
        }
        q_checksum_add(&h, buf, n);
        r->sums[place] += q_checksum_piece(&h, (uint64_t)i);
    }
}

static lq_status read_all(const q_alloc *a, q_pool *pool, const q_file *f, uint64_t *sum) {
    const uint32_t threads = pool ? q_pool_threads(pool) : 1;
    const int64_t pieces = (int64_t)(q_file_size(f) / Q_CHECKSUM_PIECE + (q_file_size(f) % Q_CHECKSUM_PIECE != 0));
    const uint32_t places = q_read_back_threads(q_file_size(f), threads);
    reading_back r = {f, places < threads, (uint8_t *)q_new_raw(a, places, Q_CHECKSUM_PIECE),
                      Q_NEW(a, uint64_t, places), Q_NEW(a, q_trouble, places)};
    lq_status status = r.buffers && r.sums && r.troubles ? LQ_OK : LQ_E_NOMEM;
    if (status == LQ_OK && pool) q_pool_for(pool, pieces, Q_READ_BACK_PIECES, read_pieces, &r);
    else if (status == LQ_OK) read_pieces(&r, 0, pieces, 0);
    if (status == LQ_OK) status = q_trouble_first(r.troubles, places);
    *sum = 0;
    for (uint32_t i = 0; i < places && status == LQ_OK; i++) *sum += r.sums[i];
    q_delete(a, r.buffers);
    q_delete(a, r.sums);
    q_delete(a, r.troubles);
    return status;
}

lq_status q_read_back(const q_alloc *a, q_pool *pool, const char *path, const q_piece_sums *written) {
    q_file *f;
    uint64_t sum;
    Q_TRY(q_file_open(a, path, 0, &f));
    lq_status status = read_all(a, pool, f, &sum);
    if (status == LQ_OK && (q_file_size(f) != written->total || sum != q_piece_sums_end(written)))
        status = q_fail(LQ_E_IO, "%s: bytes read back differ from those written", path);
    q_file_close(f);
    return status;
}
