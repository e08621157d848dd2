/* fuzz_hf.c: the texts of a Hugging Face model directory: config.json, tokenizer_config.json, the index of its shards,
 * and, where the first byte says so, tokenizer.model. They follow each other with a NUL between. Or, where it says
 * that, only config.json and then model.safetensors: a directory of quantized weights, all of which are read and
 * decoded; or adapter_config.json and then adapter_model.safetensors: an adapter, with which a fixed model runs.
 *
 * The weights are a fixed small Llama, whole in one folder and in two shards in another. A directory that opens as a
 * model is asked for everything it knows, and decodes. An error is told and names the folder. */
#include "help_fuzz_model.h"

#include "../libquant/loader.h"

#include <sys/stat.h>

enum { WITH_TOKENIZER_CONFIG = 1, SHARDED = 2, OWN_TOKENIZER = 4, UNMAPPED = 8, QUANTIZED = 16, ADAPTER = 32 };
static char folders[5][PATH - 64]; /* whole, sharded, quantized, an adapter, its model */
static lq_ctx *ctx;

static void prepare(void) {
    const char *tmp = getenv("T_TMP");
    for (int i = 0; i < 5; i++) {
        snprintf(folders[i], sizeof folders[i], "%.300s/fuzz-hf-%d-%d", tmp ? tmp : "/tmp", (int)getpid(), i);
        demand(mkdir(folders[i], 0700) == 0);
    }
    write_weights(folders[0], "model.safetensors", 3);
    write_weights(folders[1], "a.safetensors", 1);
    write_weights(folders[1], "b.safetensors", 2);
    write_model(folders[4]);
    const lq_options o = {.size = sizeof o, .threads = 1};
    demand(lq_open(&o, &ctx) == LQ_OK);
}

/* ---- one input */

/* The next part: up to a NUL or the end. */
static const uint8_t *part(const uint8_t **p, const uint8_t *end, size_t *n) {
    const uint8_t *from = *p, *stop = from < end ? (const uint8_t *)memchr(from, 0, (size_t)(end - from)) : NULL;
    *n = (size_t)((stop ? stop : end) - from);
    *p = stop ? stop + 1 : end;
    return from;
}

static void ask(lq_model *m) {
    lq_model_info info = {.size = sizeof info};
    demand(lq_model_info_get(m, &info) == LQ_OK && info.layers == 1 && info.embedding == EMBD);
    for (uint32_t i = 0;; i++) {
        char text[256];
        size_t n = sizeof text;
        const char *name = NULL;
        const lq_status s = lq_model_meta(m, NULL, i, &name, text, &n);
        if (s != LQ_OK && n <= sizeof text) break;
        demand(s == LQ_OK ? name && strlen(text) + 1 <= n : n > sizeof text);
    }
    int32_t ids[64];
    size_t n = 64;
    demand(lq_tokenize(m, "a b\xFF", 4, LQ_TOKENIZE_BOS, ids, &n) == LQ_OK || n > 64);
}

static void decode(lq_model *m, bool finite) {
    const lq_session_options o = {.size = sizeof o, .context = 8};
    lq_session *s = NULL;
    if (lq_session_open(m, &o, &s) != LQ_OK) {
        demand(lq_error_detail()[0] && !s);
        return;
    }
    const int32_t ids[3] = {1, 100, 259};
    int32_t next;
    const lq_status status = lq_decode(s, &(lq_item){.ids = ids, .count = 3, .logits_from = 2}, 1);
    demand(status == LQ_OK || (!finite && status == LQ_E_NUMERIC));
    if (lq_sample(s, 0, NULL, &next) == LQ_OK) demand(next >= 0 && next < VOCAB);
    lq_session_close(s);
}

/* A tensor in pieces that are no rows, then its rows; both say the same. */
static void read_tensor(const q_directory *dir, const q_tensor *t) {
    uint8_t *all = (uint8_t *)malloc(t->bytes + 1), *row = (uint8_t *)malloc(t->row_bytes + 1);
    float *y = (float *)malloc(t->shape[0] * sizeof *y + 1);
    demand(all && row && y);
    lq_status s = LQ_OK;
    const uint64_t piece = t->row_bytes + t->row_bytes / 2 + 1;
    for (uint64_t at = 0; at < t->bytes && s == LQ_OK; at += piece)
        s = q_tensor_read(dir, t, at, all + at, Q_MIN(piece, t->bytes - at));
    for (uint64_t r = 0; r < t->rows && s == LQ_OK; r++) {
        s = q_tensor_read(dir, t, r * t->row_bytes, row, t->row_bytes);
        demand(s != LQ_OK || memcmp(row, all + r * t->row_bytes, t->row_bytes) == 0);
        if (s == LQ_OK && t->format) q_decode_row(t->format, row, (int64_t)t->shape[0], y);
    }
    demand(s == LQ_OK);
    free(all);
    free(row);
    free(y);
}

static void read_quantized(bool map) {
    const q_load_options o = {.alloc = &q_alloc_libc, .map = map};
    q_directory *dir = NULL;
    const lq_status s = q_directory_open(folders[2], &o, &dir);
    if (s != LQ_OK) {
        demand(!dir && s > LQ_FATAL && strstr(lq_error_detail(), "fuzz-hf-"));
        return;
    }
    for (uint32_t i = 0; i < dir->n_tensors; i++) {
        const q_tensor *t = &dir->tensors[i];
        demand(t->bytes == t->rows * t->row_bytes);
        for (uint64_t j = 0; t->view && t->view->order && j < t->shape[0]; j++)
            demand(t->view->order[j] >= 0 && (uint64_t)t->view->order[j] < t->shape[0]);
        if (t->bytes && t->bytes < 1 << 22) read_tensor(dir, t);
    }
    q_directory_close(dir);
}

static void run_adapted(void) {
    const char *const paths[] = {folders[3]};
    const lq_model_options o = {.size = sizeof o, .loras = paths, .n_loras = 1};
    lq_model *m = NULL;
    const lq_status s = lq_model_open(ctx, folders[4], &o, &m);
    if (s != LQ_OK) {
        demand(!m && s > LQ_FATAL && strstr(lq_error_detail(), "fuzz-hf-"));
        return;
    }
    decode(m, false);
    lq_model_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    if (!ctx) prepare();
    const uint8_t *p = data + 1, *end = data + size, flags = data[0];
    const char *folder = folders[flags & QUANTIZED ? 2 : (flags & SHARDED) != 0];
    size_t n;
    const uint8_t *text = part(&p, end, &n);
    if (flags & ADAPTER) {
        write_file(folders[3], "adapter_config.json", text, n);
        write_file(folders[3], "adapter_model.safetensors", p, (size_t)(end - p));
        run_adapted();
        return 0;
    }
    write_file(folder, "config.json", text, n);
    if (flags & QUANTIZED) {
        write_file(folder, "model.safetensors", p, (size_t)(end - p));
        read_quantized(!(flags & UNMAPPED));
        return 0;
    }
    text = part(&p, end, &n);
    char path[PATH];
    snprintf(path, sizeof path, "%s/tokenizer_config.json", folder);
    if (flags & WITH_TOKENIZER_CONFIG) write_file(folder, "tokenizer_config.json", text, n);
    else unlink(path);
    text = part(&p, end, &n);
    if (flags & SHARDED) write_file(folder, "model.safetensors.index.json", text, n);
    if (flags & OWN_TOKENIZER) {
        write_file(folder, "tokenizer.model", p, (size_t)(end - p));
    } else {
        uint8_t model[VOCAB * 16];
        write_file(folder, "tokenizer.model", model, make_tokenizer(model));
    }
    lq_model *m = NULL;
    const lq_model_options o = {.size = sizeof o, .no_mmap = (flags & UNMAPPED) != 0};
    const lq_status s = lq_model_open(ctx, folder, &o, &m);
    if (s == LQ_OK) {
        ask(m);
        decode(m, true);
        lq_model_close(m);
    } else {
        demand(!m && s > LQ_FATAL && strstr(lq_error_detail(), "fuzz-hf-"));
    }
    return 0;
}
