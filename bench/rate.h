/* rate.h: what the benchmarks share: repeated measurements as a rate, and the CSV files that keep them.
 *
 * A line of such a file is one row of a benchmark with every sample of it, so that two files can be compared pair by
 * pair (`lq bench compare`):
 *
 *   bench,case,isa,threads,unit,runs,min,median,max,samples      samples: higher is faster, in the order of the runs,
 *                                                                separated by ';'
 *
 * A row is identified by bench, case, threads and unit; isa says what ran. Lines that begin with '#' are comments; the
 * first one of a file states the machine. Appending to a file adds samples to the rows that it has. */
#ifndef BENCH_RATE_H
#define BENCH_RATE_H

#include "../tools/cli.h"

enum { BENCH_SAMPLES = 100 };

typedef struct bench_rate {
    uint32_t n;
    double sample[BENCH_SAMPLES]; /* per second, in the order of the runs */
} bench_rate;

void bench_rate_add(bench_rate *r, double per_s); /* beyond BENCH_SAMPLES: left out */
double bench_rate_median(const bench_rate *r);    /* of an even number the mean of the middle two; 0 of none */
double bench_rate_min(const bench_rate *r);
double bench_rate_max(const bench_rate *r);
/* Median of n values, which it sorts. */
double bench_median(double *values, size_t n);
/* b / a of each pair of runs. */
bench_rate bench_rate_ratio(const bench_rate *a, const bench_rate *b);

/* Open for appending; a file that is empty gets the machine and the header first. `path` NULL: *out = NULL. Returns an
 * exit code. */
int bench_csv_open(cli *c, const char *path, const lq_device_info *device, FILE **out);
#define BENCH_CSV_HEADER "bench,case,isa,threads,unit,runs,min,median,max,samples"
/* One line; out NULL: nothing. `scale` is what a unit is: 1e9 for GB/s. */
void bench_csv_add(FILE *out, const char *bench, const char *name, const char *isa, uint32_t threads, const char *unit,
                   double scale, const bench_rate *r);
/* Close; an exit code of 0 becomes one that says what was not written. */
int bench_csv_close(cli *c, FILE *out, const char *path, int code);

/* {min, median, max, runs} of a rate, as the JSON of every benchmark has it. */
json_t *bench_rate_json(const bench_rate *r);

#define BENCH_OPT_CSV(T)                                                                        \
    {.type = CLI_TEXT,                                                                          \
     .name = "csv",                                                                             \
     .value = "FILE",                                                                           \
     .at = offsetof(T, csv),                                                                    \
     .help = "append a line per row to FILE, with every sample, for `lq bench compare`",        \
     .also = "|output|save|out|"}

#endif
