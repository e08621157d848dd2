/* rate.c: statistics over samples, and the CSV files of the benchmarks. See rate.h. */
#include "rate.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_median(double *values, size_t n) {
    if (n == 0) return 0;
    qsort(values, n, sizeof *values, by_value);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void bench_rate_add(bench_rate *r, double per_s) {
    if (r->n < BENCH_SAMPLES) r->sample[r->n++] = per_s;
}

double bench_rate_median(const bench_rate *r) {
    double sorted[BENCH_SAMPLES];
    memcpy(sorted, r->sample, r->n * sizeof *sorted);
    return bench_median(sorted, r->n);
}

double bench_rate_min(const bench_rate *r) {
    double v = r->n ? r->sample[0] : 0;
    for (uint32_t i = 1; i < r->n; i++) v = r->sample[i] < v ? r->sample[i] : v;
    return v;
}

double bench_rate_max(const bench_rate *r) {
    double v = 0;
    for (uint32_t i = 0; i < r->n; i++) v = r->sample[i] > v ? r->sample[i] : v;
    return v;
}

bench_rate bench_rate_ratio(const bench_rate *a, const bench_rate *b) {
    bench_rate r = {0};
    for (uint32_t i = 0; i < a->n && i < b->n; i++) bench_rate_add(&r, b->sample[i] / a->sample[i]);
    return r;
}

json_t *bench_rate_json(const bench_rate *r) {
    json_t *o = json_object();
    cli_set_real(o, "min", bench_rate_min(r));
    cli_set_real(o, "median", bench_rate_median(r));
    cli_set_real(o, "max", bench_rate_max(r));
    cli_set_int(o, "runs", r->n);
    return o;
}

/* A field holds no comma, quote or line end: nothing then needs quoting. */
static void put_field(FILE *f, const char *text) {
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        fputc(*p < 32 || *p == 127 || *p == ',' || *p == '"' ? '_' : *p, f);
    }
}

int bench_csv_open(cli *c, const char *path, const lq_device_info *device, FILE **out) {
    *out = NULL;
    if (!path) return 0;
    FILE *f = fopen(path, "a");
    if (!f) return cli_error(c, LQ_E_IO, "%s: %s", path, strerror(errno));
    if (fseek(f, 0, SEEK_END) == 0 && ftell(f) == 0) {
        fprintf(f, "# %s; %u threads; lq %s\n%s\n", cli_safe(device->description).s, device->threads,
                lq_version_string(), BENCH_CSV_HEADER);
    }
    *out = f;
    return 0;
}

void bench_csv_add(FILE *out, const char *bench, const char *name, const char *isa, uint32_t threads, const char *unit,
                   double scale, const bench_rate *r) {
    if (!out) return;
    put_field(out, bench), fputc(',', out);
    put_field(out, name), fputc(',', out);
    put_field(out, isa);
    fprintf(out, ",%u,%s,%u,%.6g,%.6g,%.6g,", threads, unit, r->n, bench_rate_min(r) / scale,
            bench_rate_median(r) / scale, bench_rate_max(r) / scale);
    for (uint32_t i = 0; i < r->n; i++) fprintf(out, "%s%.6g", i ? ";" : "", r->sample[i] / scale);
    fputc('\n', out);
}

int bench_csv_close(cli *c, FILE *out, const char *path, int code) {
    if (!out) return code;
    const bool failed = ferror(out) != 0;
    errno = 0;
    if ((fclose(out) != 0 || failed) && code == 0) {
        return cli_error(c, LQ_E_IO, "%s: %s", path, errno ? strerror(errno) : "what was measured did not arrive");
    }
    return code;
}
