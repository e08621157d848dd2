/* kept.c: files of an interrupted calibration, and those that others left beside the same output. See kept.h.
 *
 * Each begins with a magic, the hash and a number (a layer, a stage), and ends with a hash of what is between; it gets its
 * name when it is complete. They are read where they were written, so what does not fit is simply not used. Layer L3. */
#include "kept.h"

#include <stdio.h>

enum { MAGIC = 0x3150514C /* "LQP1" */ };

typedef struct header {
    uint32_t magic, number;
    uint64_t hash, bytes;
} header;

struct q_kept_file {
    const q_alloc *alloc;
    q_outfile *file;
    uint64_t sum;
};

/* As q_fnv64, eight bytes at a time: it is for gigabytes. */
static uint64_t mix(uint64_t h, const void *data, uint64_t n) {
    const uint8_t *p = (const uint8_t *)data;
    for (; n >= 8; n -= 8, p += 8) h = (h ^ q_load64(p)) * 1099511628211u;
    for (; n; n--, p++) h = (h ^ *p) * 1099511628211u;
    return h ^ h >> 29;
}

static lq_status name_of(q_kept *k, const char *suffix, int32_t layer) {
    const int n = layer < 0 ? snprintf(k->path, sizeof k->path, "%s.%016llx.%s", k->dst, (unsigned long long)k->hash, suffix)
                            : snprintf(k->path, sizeof k->path, "%s.%016llx.%s%d", k->dst, (unsigned long long)k->hash, suffix, layer);
    if (n > 0 && (size_t)n < sizeof k->path) return LQ_OK;
    return q_fail(LQ_E_LIMIT, "the path %.100s... is too long", k->dst);
}

/* ------------------------------------------------------------------------------------------------ writing */

static lq_status create(q_kept *k, const char *suffix, int32_t layer, uint32_t number, uint64_t bytes, q_kept_file **out) {
    const header h = {MAGIC, number, k->hash, bytes};
    Q_TRY(name_of(k, suffix, layer));
    q_kept_file *f = Q_NEW(k->alloc, q_kept_file, 1);
    if (!f) return LQ_E_NOMEM;
    f->alloc = k->alloc;
    lq_status status = q_outfile_open(k->alloc, k->path, sizeof h + bytes + sizeof f->sum, true, &f->file);
    if (status == LQ_OK) status = q_outfile_write(f->file, &h, sizeof h);
    if (status != LQ_OK) {
        q_kept_discard(f);
        return status;
    }
    *out = f;
    return LQ_OK;
}

lq_status q_kept_create(q_kept *k, int32_t layer, uint64_t bytes, q_kept_file **out) {
    return create(k, "layer", layer, (uint32_t)layer, bytes, out);
}

lq_status q_kept_write(q_kept_file *f, const void *data, uint64_t n) {
    f->sum = mix(f->sum, data, n);
    return q_outfile_write(f->file, data, n);
}

lq_status q_kept_commit(q_kept_file *f) {
    lq_status status = q_outfile_write(f->file, &f->sum, sizeof f->sum);
    if (status == LQ_OK) {
        status = q_outfile_commit(f->file);
        f->file = NULL;
    }
    q_kept_discard(f);
    return status;
}

void q_kept_discard(q_kept_file *f) {
    if (!f) return;
    q_outfile_discard(f->file);
    q_delete(f->alloc, f);
}

/* ------------------------------------------------------------------------------------------------ reading */

/* *out NULL: no such file, or none of this length, hash and number. */
static lq_status open_checked(q_kept *k, const char *suffix, int32_t layer, uint64_t bytes, header *h, q_file **out) {
    q_path_kind kind;
    *out = NULL;
    Q_TRY(name_of(k, suffix, layer));
    Q_TRY(q_path_kind_of(k->path, &kind));
    if (kind != Q_PATH_FILE) return LQ_OK;
    q_file *f;
    Q_TRY(q_file_open(k->alloc, k->path, 0, &f));
    const bool fits = q_file_size(f) > sizeof *h && q_file_read(f, 0, h, sizeof *h) == LQ_OK && h->magic == MAGIC &&
                      h->hash == k->hash && h->bytes < q_file_size(f) &&
                      q_file_size(f) == sizeof *h + h->bytes + sizeof(uint64_t) && (bytes == 0 || h->bytes == bytes) &&
                      (layer < 0 || h->number == (uint32_t)layer);
    if (fits) *out = f;
    else q_file_close(f);
    return LQ_OK;
}

lq_status q_kept_open(q_kept *k, int32_t layer, uint64_t bytes, q_kept_reader *out) {
    header h;
    *out = (q_kept_reader){.at = sizeof h};
    Q_TRY(open_checked(k, "layer", layer, bytes, &h, &out->file));
    return out->file ? LQ_OK : q_fail(LQ_E_INCONSISTENT, "%s is not what this calibration wrote", k->path);
}

lq_status q_kept_read(q_kept_reader *r, void *data, uint64_t n) {
    Q_TRY(q_file_read(r->file, r->at, data, n));
    r->at += n;
    r->sum = mix(r->sum, data, n);
    return LQ_OK;
}

lq_status q_kept_close(q_kept_reader *r) {
    uint64_t sum = 0;
    if (!r->file) return LQ_OK;
    lq_status status = q_file_read(r->file, r->at, &sum, sizeof sum);
    if (status == LQ_OK && sum != r->sum)
        status = q_fail(LQ_E_INCONSISTENT, "%s is damaged: remove it, and the calibration begins anew", q_file_path(r->file));
    q_file_close(r->file);
    r->file = NULL;
    return status;
}

/* ------------------------------------------------------------------------------------------------ rows */

lq_status q_kept_save_rows(q_kept *k, q_stream *s, uint32_t samples) {
    const uint32_t stage = q_stream_at(s);
    const uint64_t n = q_stream_floats(s, stage);
    q_kept_file *f;
    float *rows = (float *)q_new_raw(k->alloc, n, sizeof *rows);
    if (!rows) return LQ_E_NOMEM;
    lq_status status = create(k, "rows", -1, stage, n * samples * sizeof *rows, &f);
    if (status == LQ_OK) {
        for (uint32_t i = 0; i < samples && status == LQ_OK; i++) {
            status = q_stream_save(s, i, rows);
            if (status == LQ_OK) status = q_kept_write(f, rows, n * sizeof *rows);
        }
        if (status == LQ_OK) status = q_kept_commit(f);
        else q_kept_discard(f);
    }
    q_delete(k->alloc, rows);
    return status;
}

/* Are the results of all layers before a stage's there? */
static lq_status layers_are_there(q_kept *k, const q_stream *s, uint32_t stage, const uint64_t *bytes, bool *there) {
    *there = true;
    for (int32_t l = 0; l < q_stream_stage(s, stage)->layer && *there; l++) {
        header h;
        q_file *f;
        Q_TRY(open_checked(k, "layer", l, bytes[l], &h, &f));
        *there = f != NULL;
        q_file_close(f);
    }
    return LQ_OK;
}

static lq_status restore(q_kept *k, q_kept_reader *r, q_stream *s, uint32_t stage, uint32_t samples) {
    const uint64_t n = q_stream_floats(s, stage);
    float *rows = (float *)q_new_raw(k->alloc, n, sizeof *rows);
    lq_status status = rows ? LQ_OK : LQ_E_NOMEM;
    for (uint32_t i = 0; i < samples && status == LQ_OK; i++) {
        status = q_kept_read(r, rows, n * sizeof *rows);
        if (status == LQ_OK) status = q_stream_restore(s, stage, i, rows);
    }
    q_delete(k->alloc, rows);
    return status;
}

lq_status q_kept_restore(q_kept *k, q_stream *s, uint32_t samples, const uint64_t *bytes, bool *found) {
    header h;
    q_kept_reader r = {.at = sizeof h};
    *found = false;
    Q_TRY(open_checked(k, "rows", -1, 0, &h, &r.file));
    if (!r.file) return LQ_OK;
    bool fits = h.number < q_stream_stages(s) && h.bytes == q_stream_floats(s, h.number) * samples * sizeof(float);
    lq_status status = fits ? layers_are_there(k, s, h.number, bytes, &fits) : LQ_OK;
    if (status != LQ_OK || !fits) {
        q_file_close(r.file);
        return status;
    }
    status = restore(k, &r, s, h.number, samples);
    if (status != LQ_OK) { /* nothing is wrong with the file */
        q_file_close(r.file);
        return status;
    }
    *found = q_kept_close(&r) == LQ_OK; /* a damaged file is as good as none */
    if (*found) q_stream_begin_at(s, h.number);
    return LQ_OK;
}

lq_status q_kept_remove(q_kept *k, int32_t layers) {
    Q_TRY(name_of(k, "rows", -1));
    Q_TRY(q_path_remove(k->path));
    for (int32_t l = 0; l < layers; l++) {
        Q_TRY(name_of(k, "layer", l));
        Q_TRY(q_path_remove(k->path));
    }
    return LQ_OK;
}

/* ------------------------------------------------------------------------------------------------ of other hashes */

typedef struct strays {
    const q_kept *k;
    const q_log *log;
    const char *base; /* dst without folders */
    char dir[4096];
    bool remove;
    uint32_t n;
    uint64_t bytes;
} strays;

/* BASE.HASH.layerN or BASE.HASH.rows: the hash. */
static bool parse_name(const char *base, q_str name, uint64_t *hash) {
    enum { DIGITS = 16 };
    const size_t front = strlen(base);
    uint64_t at = front + 1;
    if (!q_str_begins(name, base) || name.n < front + 2 + DIGITS || name.p[front] != '.' || name.p[at + DIGITS] != '.') return false;
    for (*hash = 0; at < front + 1 + DIGITS; at++) {
        const char *digit = strchr("0123456789abcdef", name.p[at]);
        if (!digit || !*digit) return false;
        *hash = *hash << 4 | (uint64_t)(digit - "0123456789abcdef");
    }
    const q_str kind = {name.p + at + 1, name.n - at - 1};
    if (q_str_is(kind, "rows")) return true;
    bool number = q_str_begins(kind, "layer") && kind.n > strlen("layer");
    for (uint64_t i = strlen("layer"); i < kind.n; i++) number &= kind.p[i] >= '0' && kind.p[i] <= '9';
    return number;
}

/* A file that was completed says so; of one that was not, the name alone is known. */
static lq_status is_ours(const strays *s, const char *path, bool complete, uint64_t hash, bool *ours, uint64_t *bytes) {
    q_path_kind kind;
    q_file *f;
    header h = {0};
    *ours = false;
    Q_TRY(q_path_kind_of(path, &kind));
    if (kind != Q_PATH_FILE) return LQ_OK;
    Q_TRY(q_file_open(s->k->alloc, path, 0, &f));
    *bytes = q_file_size(f);
    *ours = !complete || (*bytes >= sizeof h && q_file_read(f, 0, &h, sizeof h) == LQ_OK && h.magic == MAGIC && h.hash == hash);
    q_file_close(f);
    return LQ_OK;
}

static lq_status judge_entry(strays *s, const char *entry) {
    static const char behind[] = ".lq-tmp";
    char path[sizeof s->dir];
    q_str name = q_str_of(entry);
    uint64_t hash, bytes = 0;
    bool ours;
    const bool temporary = entry[0] == '.' && name.n > sizeof behind && strcmp(entry + name.n - (sizeof behind - 1), behind) == 0;
    if (temporary) name = (q_str){entry + 1, name.n - sizeof behind};
    if (!parse_name(s->base, name, &hash) || hash == s->k->hash) return LQ_OK;
    Q_TRY(q_path_join(path, sizeof path, s->dir, q_str_of(entry)));
    Q_TRY(is_ours(s, path, !temporary, hash, &ours, &bytes));
    if (!ours) return LQ_OK;
    s->n++;
    s->bytes += bytes;
    return s->remove ? q_path_remove(path) : LQ_OK;
}

static lq_status visit(void *user, const char *entry) {
    strays *s = (strays *)user;
    if (judge_entry(s, entry) != LQ_OK)
        q_log_write(s->log, LQ_LOG_WARN, "%s, which another calibration left beside %s, stays: %s", entry, s->k->dst,
                    lq_error_detail());
    return LQ_OK;
}

void q_kept_strays(const q_kept *k, const q_log *log, bool remove, uint32_t *n, uint64_t *bytes) {
    const char *slash = strrchr(k->dst, '/');
    strays s = {.k = k, .log = log, .base = slash ? slash + 1 : k->dst, .remove = remove};
    lq_status status = q_path_parent(s.dir, sizeof s.dir, k->dst);
    if (status == LQ_OK) status = q_path_each(s.dir, visit, &s);
    if (status != LQ_OK)
        q_log_write(log, LQ_LOG_WARN, "what other calibrations may have left beside %s stays: %s", k->dst, lq_error_detail());
    *n = s.n;
    *bytes = s.bytes;
}
