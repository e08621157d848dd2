/* test_corrupt.c: model files that end early, or have one bit of their head flipped.
 *
 * The bundled model, and GGUF files made from it (f16, q4_k_m, a split set), are cut at 64 places and more, and get
 * 2,000 single bit flips per file. What must come of it is an error that names the file or the key, or an identical
 * model. Identical means: the same infos, metadata (keys, values, arrays item by item), vocabulary, tensors (name,
 * shape, format, place, and so bytes), the same ids for a sample text, and the same bits of the first logits.
 *
 * A third outcome is one that no reader of these formats can notice, for they carry no checksum: the flipped bit lies
 * in a value, and the new value is as good as the old one. (A name, a number such as the rope's base, the text or score
 * of a token.) The test computes what each byte of a GGUF head is, on its own, and lets a model be different only where
 * the byte is part of such a value, and only in what that value says; it prints how many there were of which kind.
 * Nothing may crash, take more than 2 s of processor time, or allocate more than BAD_MEMORY. */
#include "harness.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../libquant/engine.h"
#include "../libquant/loaders/gguf.h"
#include "help_gguf.h"

enum { FLIPS = 2000, PLACES = 64, TAIL = 64 };
#define STEP (T_SLOW ? 10 : 1)
/* Before validation ends: twice the metadata and 64 MiB; here the metadata are below 1 MiB. */
#define BAD_MEMORY ((uint64_t)66 << 20)

static char folder[1024];
static char hf[1200], f16[1200], q4[1200], split[3][1200];
static counter memory;

/* ------------------------------------------------------------------------------------------------ what a model is */

enum { INFO, META, VOCAB, IDS, TENSORS, LOGITS, PARTS };
typedef struct model_print {
    uint64_t part[PARTS];
} model_print;

static uint64_t mix(uint64_t h, const void *data, uint64_t n) {
    return (h ^ q_fnv64(data, n) ^ n) * 0x9E3779B97F4A7C15u + 1;
}
static uint64_t mix_str(uint64_t h, q_str s) { return mix(h, s.n ? s.p : "", s.n); }

static uint64_t print_meta(const q_directory *d) {
    uint64_t h = 0;
    for (uint32_t i = 0; i < d->n_meta; i++) {
        const q_meta *m = &d->meta[i];
        h = mix_str(h, m->key);
        h = mix(h, &m->count, sizeof m->count);
        if (m->type == Q_META_STRING) h = mix_str(h, m->s);
        else if (m->type != Q_META_ARRAY) h = mix(mix(h, &m->f, sizeof m->f), &m->u, sizeof m->u);
        else if (m->item == Q_META_STRING)
            for (uint64_t k = 0; k < m->count; k++) h = mix_str(h, m->strs[k]);
        else h = mix(h, m->raw, m->count * q_gguf_item_bytes(m->item));
    }
    return h;
}

static uint64_t print_vocab(const q_vocab *v) {
    const int32_t ids[] = {v->n, v->bos, v->eos, v->unk, v->pad, v->add_bos, v->add_eos, v->add_space_prefix,
                           v->remove_extra_spaces};
    uint64_t h = mix(0, ids, sizeof ids);
    for (int32_t i = 0; i < v->n; i++) h = mix_str(h, v->pieces[i]);
    h = mix(h, v->scores, (uint64_t)v->n * sizeof *v->scores);
    return mix(h, v->types, (uint64_t)v->n * sizeof *v->types);
}

static uint64_t print_tensors(const q_directory *d) {
    uint64_t h = 0;
    for (uint32_t i = 0; i < d->n_tensors; i++) {
        const q_tensor *t = &d->tensors[i];
        h = mix_str(h, t->name);
        h = mix(h, t->type_name, strlen(t->type_name));
        h = mix(h, t->shape, sizeof t->shape);
        h = mix(h, &t->bytes, sizeof t->bytes);
        h = mix(mix(h, &t->offset, sizeof t->offset), &t->file, sizeof t->file);
    }
    return h;
}

/* Everything about the model at a path. An error has a sentence and leaves nothing allocated. */
static lq_status print_model(const char *path, model_print *p) {
    static const char sample[] = "Once upon a time a small engine ran 42 models a day, \xc3\xa9ven asleep.";
    const lq_allocator hook = {count_alloc, count_free, &memory};
    const lq_options options = {.size = sizeof options, .threads = 1, .allocator = &hook};
    const lq_session_options shape = {.size = sizeof shape, .context = 32, .batch = 8, .threads = 1};
    lq_ctx *ctx;
    lq_model *model = NULL;
    lq_session *session = NULL;
    int32_t ids[256];
    size_t n = Q_COUNT(ids);
    memset(p, 0, sizeof *p);
    memory = (counter){0};
    ck_assert_int_eq(lq_open(&options, &ctx), LQ_OK);
    lq_status status = lq_model_open(ctx, path, NULL, &model);
    if (status == LQ_OK) {
        lq_model_info info = {.size = sizeof info};
        ck_assert_int_eq(lq_model_info_get(model, &info), LQ_OK);
        p->part[INFO] = mix(0, &info, sizeof info);
        p->part[META] = print_meta(model->dir);
        p->part[VOCAB] = print_vocab(q_text_vocab(model->text));
        p->part[TENSORS] = print_tensors(model->dir);
        status = lq_tokenize(model, sample, sizeof sample - 1, LQ_TOKENIZE_BOS, ids, &n);
        p->part[IDS] = mix(0, ids, n * sizeof *ids);
    }
    if (status == LQ_OK) status = lq_session_open(model, &shape, &session);
    if (status == LQ_OK) {
        static const int32_t first[] = {1, 300, 1000, 9, 77};
        const float *logits;
        status = t_decode(session, first, Q_COUNT(first), Q_COUNT(first) - 1);
        if (status == LQ_OK) {
            ck_assert_int_eq(lq_logits(session, 0, &logits), LQ_OK);
            p->part[LOGITS] = mix(0, logits, sizeof *logits * (uint64_t)q_text_vocab(model->text)->n);
        }
    }
    lq_session_close(session);
    lq_model_close(model);
    lq_close(ctx);
    return status;
}

/* ------------------------------------------------------------------------------------------------ what a byte is */

typedef enum { STRUCTURE, NAME, VALUE } byte_kind;
typedef struct place {
    byte_kind kind;
    char key[80]; /* the key or tensor that the byte belongs to */
    bool item;    /* of an array */
    bool version; /* the container's */
} place;

/* The head of a GGUF file, read here without the library: where `at` lies in it. `end`: where the head ends. */
typedef struct head_reader {
    const uint8_t *p;
    uint64_t pos, at;
    place *found;
} head_reader;
static uint64_t take(head_reader *r, uint64_t n, byte_kind kind, const char *key, bool item) {
    uint64_t v = 0;
    memcpy(&v, r->p + r->pos, n < 8 ? n : 8);
    if (r->found && r->at >= r->pos && r->at < r->pos + n) {
        r->found->kind = kind;
        snprintf(r->found->key, sizeof r->found->key, "%s", key);
        r->found->item = item;
    }
    r->pos += n;
    return v;
}
static void take_value(head_reader *r, uint64_t type, const char *key, bool item) {
    if (type != Q_META_STRING) {
        take(r, q_gguf_item_bytes((uint32_t)type), VALUE, key, item);
        return;
    }
    const uint64_t n = take(r, 8, STRUCTURE, key, item);
    take(r, n, VALUE, key, item);
}
static void take_name(head_reader *r, char key[80]) {
    const uint64_t n = take(r, 8, STRUCTURE, "(length of a name)", false);
    snprintf(key, 80, "%.*s", (int)Q_MIN(n, (uint64_t)79), (const char *)r->p + r->pos);
    take(r, n, NAME, key, false);
}
static uint64_t walk_head(const uint8_t *file, uint64_t at, place *found) {
    head_reader r = {file, 0, at, found};
    char key[80];
    take(&r, 4, STRUCTURE, "(magic)", false);
    if (found) found->version = at >= 4 && at < 8;
    take(&r, 4, STRUCTURE, "(version)", false);
    const uint64_t tensors = take(&r, 8, STRUCTURE, "(count of tensors)", false),
                   keys = take(&r, 8, STRUCTURE, "(count of keys)", false);
    for (uint64_t i = 0; i < keys; i++) {
        take_name(&r, key);
        const uint64_t type = take(&r, 4, STRUCTURE, key, false);
        if (type != Q_META_ARRAY) {
            take_value(&r, type, key, false);
            continue;
        }
        const uint64_t item = take(&r, 4, STRUCTURE, key, false), n = take(&r, 8, STRUCTURE, key, false);
        for (uint64_t k = 0; k < n; k++) take_value(&r, item, key, true);
    }
    for (uint64_t i = 0; i < tensors; i++) {
        take_name(&r, key);
        const uint64_t rank = take(&r, 4, STRUCTURE, key, false);
        take(&r, 8 * rank + 4 + 8, STRUCTURE, key, false);
    }
    return r.pos;
}

/* ------------------------------------------------------------------------------------------------ cases */

typedef struct tally {
    int errors, identical, different;
    char keys[64][80]; /* those whose values made a difference, and how often */
    int times[64], n_keys;
} tally;

static void count_key(tally *t, const char *key) {
    for (int i = 0; i < t->n_keys; i++)
        if (strcmp(t->keys[i], key) == 0) {
            t->times[i]++;
            return;
        }
    if (t->n_keys == 64) return;
    snprintf(t->keys[t->n_keys], sizeof t->keys[0], "%s", key);
    t->times[t->n_keys++] = 1;
}

static void print_tally(const tally *t, const char *what) {
    printf("%s: %d errors, %d identical models, %d different ones that nothing gives away\n", what, t->errors,
           t->identical, t->different);
    for (int i = 0; i < t->n_keys; i++) printf("    %4d %s\n", t->times[i], t->keys[i]);
}

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Open the model at `path`, of which `file` was damaged as `what` says. The parts that differ from `good`; -1 after an
 * error. */
static int damaged(const char *path, const char *file, const model_print *good, const char *what) {
    model_print p;
    lq_status status = LQ_OK;
    double took = 2 * STEP;
    for (int i = 0; i < 3 && took >= 2 * STEP; i++) { /* what is really slow is so every time */
        const double begin = seconds();
        status = print_model(path, &p);
        took = seconds() - begin;
    }
    ck_assert_msg(took < 2 * STEP, "%s, %s: %.1f s", file, what, took);
    ck_assert_msg(memory.live == 0, "%s, %s: %llu bytes leaked", file, what, (unsigned long long)memory.live);
    const unsigned long long peak = memory.peak;
    ck_assert_msg(peak < BAD_MEMORY, "%s, %s: %llu bytes allocated", file, what, peak);
    if (status != LQ_OK) {
        const char *sentence = lq_error_detail();
        ck_assert_msg(status > LQ_FATAL, "%s, %s: %s: %s", file, what, lq_status_name(status), sentence);
        ck_assert_msg(strlen(sentence) > 10 && status != LQ_E_NOMEM && status != LQ_E_IO && status != LQ_E_ARG,
                      "%s, %s: %s: %s", file, what, lq_status_name(status), sentence);
        return -1;
    }
    int differ = 0;
    for (int i = 0; i < PARTS; i++) differ |= (p.part[i] != good->part[i]) << i;
    return differ;
}

static uint8_t *load(const char *path, uint64_t *n) {
    uint8_t *p;
    ck_assert_msg(q_file_slurp(&q_alloc_libc, path, 1 << 28, &p, n) == LQ_OK, "%s", lq_error_detail());
    return p;
}
static void store(const char *path, const uint8_t *p, uint64_t n) {
    const bytes b = {(uint8_t *)p, n, n};
    save_as(&b, path);
}

/* Cut the file at PLACES even places and at each of the last TAIL bytes, from the longest to the shortest. No cut may
 * give a different model. */
static void cut(const char *model, const char *file) {
    uint64_t size;
    uint8_t *whole = load(file, &size);
    model_print good;
    tally t = {0};
    const char *name = strrchr(file, '/') + 1;
    ck_assert_msg(print_model(model, &good) == LQ_OK, "%s", lq_error_detail());
    for (uint64_t i = 1; i <= TAIL + PLACES; i += i < TAIL ? 1 : STEP) {
        const uint64_t at = i <= TAIL ? size - i : size * (TAIL + PLACES - i) / PLACES;
        char what[64];
        if (i <= TAIL && i > size) continue;
        snprintf(what, sizeof what, "cut at %llu of %llu", (unsigned long long)at, (unsigned long long)size);
        ck_assert_int_eq(truncate(file, (off_t)at), 0);
        const int differ = damaged(model, name, &good, what);
        ck_assert_msg(differ <= 0, "%s, %s: a different model", name, what);
        if (differ < 0) t.errors++;
        else t.identical++;
        if (differ < 0)
            ck_assert_msg(strstr(lq_error_detail(), name) || strstr(lq_error_detail(), model), "%s, %s: %s", name, what,
                          lq_error_detail());
    }
    store(file, whole, size);
    q_delete(&q_alloc_libc, whole);
    print_tally(&t, name);
}

/* The parts that a flipped bit may change unnoticed, since it made one valid value of another. */
static int may_differ(const place *where) {
    const int info = 1 << INFO, meta = 1 << META, vocab = 1 << VOCAB, ids = 1 << IDS, logits = 1 << LOGITS;
    if (where->version) return info; /* versions 2 and 3 have the same layout */
    if (where->kind == STRUCTURE) return 0;
    /* Labels, which may be lost with their key. So may a check, and the number of the first shard, which is 0. */
    static const char *const labels[] = {"general.name", "general.file_type", "general.quantization_version",
                                         "split.tensors.count", "split.no"};
    for (size_t i = 0; i < Q_COUNT(labels); i++)
        if (strcmp(where->key, labels[i]) == 0) return meta | info;
    if (where->kind == NAME) return 0;
    if (where->item) return meta | vocab | ids;
    if (strncmp(where->key, "tokenizer.", 10) == 0) return meta | vocab | ids | info;
    return meta | info | logits; /* numbers of the architecture: each is checked against shapes, or a free choice */
}

/* Flip one bit of the first `head` bytes, again and again. `allowed`: the parts that may differ, for files whose bytes
 * this test cannot tell apart; of a GGUF head it can (-1). */
static void flip(const char *model, const char *file, uint64_t head, int allowed, uint64_t seed) {
    uint64_t size;
    uint8_t *whole = load(file, &size);
    const int fd = open(file, O_WRONLY);
    model_print good;
    tally t = {0};
    const char *name = strrchr(file, '/') + 1;
    ck_assert_int_ge(fd, 0);
    ck_assert_msg(print_model(model, &good) == LQ_OK, "%s", lq_error_detail());
    for (int i = 0; i < FLIPS; i += STEP) {
        uint64_t at = t_rand(&seed) % head;
        place where = {.kind = VALUE};
        if (allowed < 0) {
            walk_head(whole, at, &where);
            /* Nearly all of the head is vocabulary: every second flip goes elsewhere. */
            for (; i / STEP % 2 && where.item; walk_head(whole, at, &where)) at = t_rand(&seed) % head;
        }
        const int bit = (int)(t_rand(&seed) % 8), may = allowed < 0 ? may_differ(&where) : allowed;
        const uint8_t byte = (uint8_t)(whole[at] ^ 1 << bit);
        char what[160];
        snprintf(what, sizeof what, "bit %d of byte %llu %s", bit, (unsigned long long)at, where.key);
        ck_assert_int_eq(pwrite(fd, &byte, 1, (off_t)at), 1);
        const int differ = damaged(model, name, &good, what);
        ck_assert_int_eq(pwrite(fd, &whole[at], 1, (off_t)at), 1);
        ck_assert_msg(differ <= 0 || (differ & ~may) == 0, "%s, %s: accepted, and parts %x differ (%x may)", name, what,
                      (unsigned)differ, (unsigned)may);
        if (differ < 0) t.errors++;
        else if (differ == 0) t.identical++;
        else {
            t.different++;
            count_key(&t, where.key[0] ? where.key : name);
        }
    }
    close(fd);
    q_delete(&q_alloc_libc, whole);
    print_tally(&t, name);
}

/* ------------------------------------------------------------------------------------------------ the files */

static void copy_file(const char *from, const char *to) {
    uint64_t n;
    uint8_t *p = load(from, &n);
    store(to, p, n);
    q_delete(&q_alloc_libc, p);
}

/* A set of three files from one: all keys and no tensor in the first, half of the tensors in each of the others. */
static void make_split(const char *from) {
    uint64_t n, keys = 0;
    uint8_t *whole = load(from, &n);
    const uint32_t tensors = (uint32_t)q_load64(whole + 8), n_keys = (uint32_t)q_load64(whole + 16);
    q_directory *d;
    ck_assert_int_eq(open_path(from, false, &d), LQ_OK);
    for (uint64_t at = 24; keys == 0; at++) { /* the keys end where the first tensor's name begins */
        place where = {.kind = VALUE};
        walk_head(whole, at, &where);
        if (where.kind == NAME && q_str_is(d->tensors[0].name, where.key)) keys = at - 8;
    }
    for (uint32_t shard = 0; shard < 3; shard++) {
        const uint32_t half = tensors / 2, first = shard == 1 ? 0 : half, last = shard == 2 ? tensors : half;
        bytes b = head(3, last - first, 3 + (shard ? 0 : n_keys));
        if (shard == 0) put(&b, whole + 24, keys - 24);
        key(&b, "split.no", Q_META_U16);
        put(&b, &(uint16_t){(uint16_t)shard}, 2);
        key(&b, "split.count", Q_META_U16);
        put(&b, &(uint16_t){3}, 2);
        key(&b, "split.tensors.count", Q_META_I32);
        put32(&b, tensors);
        uint64_t offset = 0;
        for (uint32_t i = first; i < last; i++) {
            const q_tensor *t = &d->tensors[i];
            char name[80];
            snprintf(name, sizeof name, "%.*s", Q_STR_ARG(t->name));
            tensor(&b, name, t->rank, t->shape, (uint32_t)q_gguf_type_id(t->format, t->type_name), offset);
            offset += q_round_up(t->bytes, 32);
        }
        align(&b, 32);
        for (uint32_t i = first; i < last; i++) {
            put(&b, whole + d->tensors[i].offset, d->tensors[i].bytes);
            align(&b, 32);
        }
        char name[64];
        snprintf(name, sizeof name, "set-%05u-of-00003.gguf", shard + 1);
        save_as(&b, t_path(split[shard], sizeof split[shard], folder, name));
        free(b.p);
    }
    q_directory_close(d);
    q_delete(&q_alloc_libc, whole);
}

static const char *const side_files[] = {"config.json", "model.safetensors", "tokenizer.model",
                                         "tokenizer_config.json"};

static void make_files(void) {
    char from[1300], to[1300], pocket[1200];
    snprintf(folder, sizeof folder, "%s/corrupt-%ld", t_tmp(), (long)getpid());
    t_path(hf, sizeof hf, folder, "pocket");
    t_path(f16, sizeof f16, folder, "f16.gguf");
    t_path(q4, sizeof q4, folder, "q4_k_m.gguf");
    t_path(pocket, sizeof pocket, t_root(), "bench/data/pocket");
    ck_assert_int_eq(mkdir(folder, 0777), 0);
    ck_assert_int_eq(mkdir(hf, 0777), 0);
    for (size_t i = 0; i < Q_COUNT(side_files); i++)
        copy_file(t_path(from, sizeof from, pocket, side_files[i]), t_path(to, sizeof to, hf, side_files[i]));
    lq_ctx *ctx;
    ck_assert_int_eq(lq_open(NULL, &ctx), LQ_OK);
    lq_quantize_options o = {.size = sizeof o, .scheme = "f16", .threads = 2};
    ck_assert_msg(lq_quantize(ctx, pocket, f16, &o, NULL) == LQ_OK, "%s", lq_error_detail());
    o.scheme = "q4_k_m";
    ck_assert_msg(lq_quantize(ctx, pocket, q4, &o, NULL) == LQ_OK, "%s", lq_error_detail());
    lq_close(ctx);
    make_split(q4);
}

START_TEST(cut_directory) {
    char file[1300];
    cut(hf, t_path(file, sizeof file, hf, side_files[_i]));
}
END_TEST
START_TEST(cut_gguf) { cut(_i ? q4 : f16, _i ? q4 : f16); }
END_TEST
START_TEST(cut_split) { cut(split[0], split[_i]); }
END_TEST

START_TEST(flip_directory) {
    /* config.json: numbers and labels. tokenizer.model: pieces, scores, types and special ids. tokenizer_config.json:
     * fields that no tokenizer here reads. The head of the weights: nothing. */
    static const int may[] = {1 << INFO | 1 << META | 1 << LOGITS, 0, 1 << VOCAB | 1 << IDS | 1 << INFO, 1 << META};
    char file[1300];
    uint64_t n;
    uint8_t *p = load(t_path(file, sizeof file, hf, side_files[_i]), &n);
    const uint64_t head = _i == 1 ? 8 + q_load64(p) : n;
    q_delete(&q_alloc_libc, p);
    flip(hf, file, head, may[_i], 10 + (uint64_t)_i);
}
END_TEST

static void flip_head(const char *model, const char *file, uint64_t seed) {
    uint64_t n;
    uint8_t *p = load(file, &n);
    const uint64_t head = walk_head(p, 0, NULL);
    q_delete(&q_alloc_libc, p);
    flip(model, file, head, -1, seed);
}
START_TEST(flip_gguf) { flip_head(_i ? q4 : f16, _i ? q4 : f16, 20 + (uint64_t)_i); }
END_TEST
START_TEST(flip_split) { flip_head(split[0], split[_i], 30 + (uint64_t)_i); }
END_TEST

static Suite *suite(void) {
    Suite *s = suite_create("corrupt");
    TCase *c = tcase_create("corrupt");
    tcase_set_timeout(c, 600);
    tcase_add_unchecked_fixture(c, make_files, NULL);
    tcase_add_loop_test(c, cut_directory, 0, 4);
    tcase_add_loop_test(c, cut_gguf, 0, 2);
    tcase_add_loop_test(c, flip_directory, 0, 4);
    tcase_add_loop_test(c, flip_gguf, 0, 2);
    tcase_add_loop_test(c, cut_split, 0, 3);
    tcase_add_loop_test(c, flip_split, 0, 3);
    suite_add_tcase(s, c);
    return s;
}

HARNESS_MAIN(suite)
