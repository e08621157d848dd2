/* fuzz_imatrix.c: libFuzzer target over importance files, GGUF and imatrix.dat.
 *
 * The input becomes an unnamed file. Whatever is let through must keep its word: entries found by their names, values
 * between 0 and 1 with a largest of 1 in each matrix, lengths that agree with what is asked and none that do not, and
 * Hessians, factors and limits that can be some.
 * Seeds: tests/golden/fuzz-imatrix. */
#include "help_fuzz.h"

#include <sys/mman.h>
#include <unistd.h>

#include "../libquant/importance.h"

static void check_matrix(const float *v, uint64_t n) {
    float largest = 0;
    for (uint64_t i = 0; i < n; i++) {
        demand(v[i] >= 0.0f && v[i] <= 1.0f);
        largest = Q_MAX(largest, v[i]);
    }
    demand(largest == 0.0f || largest == 1.0f);
}

static void check_entry(q_importance *im, uint32_t i, uint64_t size) {
    q_importance_entry *e = &im->entries[i];
    const q_importance_entry *found;
    demand(e->inputs > 0 && e->matrices > 0 && e->inputs <= size / 4 && e->matrices <= size / 4 / e->inputs);
    demand(q_importance_find(im, e->name, e->inputs + 1, e->matrices, &found) == LQ_E_INCONSISTENT && !e->matched);
    demand(q_importance_find(im, e->name, e->inputs, e->matrices, &found) == LQ_OK && e->matched);
    demand(!found || found == e);
    for (uint64_t m = 0; m < e->matrices; m++) {
        const float *v = q_importance_of(found, e->inputs, m);
        demand((v != NULL) == e->seen[m]);
        check_matrix(e->values + m * e->inputs, e->inputs);
    }
}

/* A Hessian that is let through has squares on its diagonal, and no product beyond them. */
static void check_hessian(const q_importance *im, const q_importance_entry *e, uint64_t size) {
    if (!e->hessian) return;
    demand(im->dir && e->matrices == 1 && e->inputs * (e->inputs + 1) / 2 <= size / 4);
    float *h = (float *)q_new_raw(&q_alloc_libc, e->inputs * (e->inputs + 1) / 2, sizeof *h);
    if (!h) abort();
    const lq_status s = q_importance_hessian(im, e, h);
    demand(s == LQ_OK || (s == LQ_E_INCONSISTENT && lq_error_detail()[0]));
    for (uint64_t i = 0; i < e->inputs * (e->inputs + 1) / 2 && s == LQ_OK; i++) demand(h[i] - h[i] == 0.0f);
    q_delete(&q_alloc_libc, h);
}

/* Factors and limits likewise; under factors the importance stays one. */
static void check_transform(q_importance *im, q_importance_entry *e, uint64_t size) {
    const q_tensor *both[] = {e->fold, e->clip};
    for (int i = 0; i < 2; i++) {
        if (!both[i]) continue;
        const uint64_t n = both[i]->shape[0] * both[i]->shape[1];
        demand(im->dir && im->transform.n && e->matrices == 1 && n <= size / 4 && (i || n == e->inputs));
        float *v = (float *)q_new_raw(&q_alloc_libc, n, sizeof *v);
        if (!v) abort();
        lq_status s = i ? q_importance_clip(im, e, both[i]->shape[1], v) : q_importance_fold(im, e, v);
        demand(s == LQ_OK || (s == LQ_E_INCONSISTENT && lq_error_detail()[0]));
        for (uint64_t j = 0; j < n && s == LQ_OK; j++) demand(v[j] >= (i ? 0.0f : 0x1p-40f) && v[j] <= 0x1p40f);
        if (i) demand(q_importance_clip(im, e, both[i]->shape[1] + 1, v) == LQ_E_INCONSISTENT);
        if (!i && s == LQ_OK) {
            demand(q_importance_refit(im, e->name, v) == LQ_OK && e->factors == v);
            check_matrix(e->values, e->inputs);
            check_hessian(im, e, size);
            e->factors = NULL;
        }
        q_delete(&q_alloc_libc, v);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    static int fd = -1;
    if (fd < 0) fd = memfd_create("imatrix", 0);
    if (fd < 0 || ftruncate(fd, 0) != 0 || pwrite(fd, data, n, 0) != (ssize_t)n) abort();
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    q_importance *im = NULL;
    const lq_status s = q_importance_open(&q_alloc_libc, NULL, path, &im);
    if (s != LQ_OK) {
        demand(s < 0 && s > LQ_FATAL && lq_error_detail()[0] && !im);
        return 0;
    }
    demand(im->n_entries > 0);
    for (uint32_t i = 0; i < im->n_entries; i++) check_entry(im, i, n);
    for (uint32_t i = 0; i < im->n_entries; i++) check_hessian(im, &im->entries[i], n);
    for (uint32_t i = 0; i < im->n_entries; i++) check_transform(im, &im->entries[i], n);
    q_importance_close(im);
    return 0;
}
