/* cmd_bench_compare.c: `lq bench compare`: two files of measurements, row by row and pair by pair.
 *
 * Reads what bench/rate.c writes and refuses anything else by its line. */
#include "cli.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "../bench/rate.h"

enum { FIELDS = 10, NOISE_PAIRS = 3 };

typedef struct args {
    const char *a, *b;
    double fail_below;
} args;

static const cli_operand operands[] = {{"A.csv", offsetof(args, a), 0, "measurements before (the base of the ratios)"},
                                       {"B.csv", offsetof(args, b), 0, "measurements after"},
                                       {0}};

static const cli_option options[] = {
    {.type = CLI_GROUP, .name = "What to judge"},
    {.type = CLI_REAL,
     .name = "fail-below",
     .value = "RATIO",
     .at = offsetof(args, fail_below),
     .min = 0.001,
     .max = 1000,
     .help = "exit with 1 when the ratio of a row is below this and none of its pairs reaches 1",
     .also = "|threshold|fail-under|min|"},
    {.type = CLI_END}};

/* One row of a benchmark: what identifies it, and its samples in the order of the file. */
typedef struct row {
    char *bench, *name, *threads, *unit; /* inside the file's text */
    double *samples;
    size_t n;
} row;

typedef struct table {
    char *text;
    row *rows;
    size_t n;
} table;

static void table_free(table *t) {
    for (size_t i = 0; i < t->n; i++) free(t->rows[i].samples);
    free(t->rows);
    free(t->text);
}

static bool same_row(const row *a, const row *b) {
    return strcmp(a->bench, b->bench) == 0 && strcmp(a->name, b->name) == 0 && strcmp(a->threads, b->threads) == 0 &&
           strcmp(a->unit, b->unit) == 0;
}

static row *find_row(const table *t, const row *like) {
    for (size_t i = 0; i < t->n; i++) {
        if (same_row(&t->rows[i], like)) return &t->rows[i];
    }
    return NULL;
}

/* The row of these fields, made when there is none yet; NULL = no memory. */
static row *row_for(table *t, char *const *field) {
    const row like = {field[0], field[1], field[3], field[4], NULL, 0};
    row *found = find_row(t, &like);
    if (found) return found;
    row *more = realloc(t->rows, (t->n + 1) * sizeof *more);
    if (!more) return NULL;
    t->rows = more;
    t->rows[t->n] = like;
    return &t->rows[t->n++];
}

/* Samples of one line; 1 = they are wrong, -1 = no memory. */
static int add_samples(row *r, const char *text, const char *runs) {
    size_t added = 0, most = 1;
    for (const char *p = text; *p; p++) most += *p == ';';
    double *more = realloc(r->samples, (r->n + most) * sizeof *more);
    if (!more) return -1;
    r->samples = more;
    for (const char *p = text;; p++) {
        char *end;
        const double v = strtod(p, &end);
        if (end == p || !isfinite(v) || v <= 0 || (*end && *end != ';')) return 1;
        r->samples[r->n++] = v;
        added++;
        p = end;
        if (!*p) break;
    }
    char *end;
    errno = 0;
    const unsigned long stated = strtoul(runs, &end, 10);
    return *end || errno || stated != added;
}

static int bad_line(cli *c, const char *path, size_t line, const char *why) {
    return cli_error(c, LQ_E_FORMAT, "%s, line %zu: %s", path, line, why);
}

static int read_line(cli *c, const char *path, table *t, char *text, size_t line) {
    char *field[FIELDS];
    size_t n = 0;
    for (char *p = text; p && n < FIELDS; n++) {
        char *comma = strchr(p, ',');
        field[n] = p;
        if (comma && n + 1 == FIELDS) return bad_line(c, path, line, "more than 10 fields");
        if (comma) *comma++ = 0;
        p = comma;
    }
    if (n < FIELDS) return bad_line(c, path, line, "fewer than 10 fields");
    row *r = row_for(t, field);
    const int wrong = r ? add_samples(r, field[9], field[5]) : -1;
    if (wrong < 0) return cli_nomem(c);
    return wrong ? bad_line(c, path, line, "samples are positive numbers separated by ';', as many as 'runs' says") : 0;
}

static int read_table(cli *c, const char *path, table *t) {
    size_t bytes, line = 0;
    bool header = false;
    int code = cli_read(c, path, &t->text, &bytes);
    if (code != 0) return code;
    if (strlen(t->text) != bytes) return cli_error(c, LQ_E_FORMAT, "%s: not a text", path);
    for (char *p = t->text; p && *p && code == 0;) {
        char *end = strchr(p, '\n');
        if (end) *end++ = 0;
        const size_t length = strlen(p);
        if (length && p[length - 1] == '\r') p[length - 1] = 0;
        line++;
        if (!header && *p && *p != '#') {
            header = true;
            if (strcmp(p, BENCH_CSV_HEADER) != 0)
                code = bad_line(c, path, line, "not the header of a file of lq bench --csv");
        } else if (*p && *p != '#' && strcmp(p, BENCH_CSV_HEADER) != 0) {
            code = read_line(c, path, t, p, line);
        }
        p = end;
    }
    if (code == 0 && t->n == 0) code = cli_error(c, LQ_E_FORMAT, "%s has no measurements", path);
    return code;
}

/* ---- one row compared */

typedef struct verdict {
    size_t pairs;
    double a, b;                /* medians */
    double ratio, least, most;  /* of the pairs: median, range */
    double best;                /* best of b over best of a */
    const char *word;           /* "faster", "slower", "same", "" = too few pairs to say */
    bool fails;
} verdict;

static double greatest(const double *x, size_t n) {
    double v = x[0];
    for (size_t i = 1; i < n; i++) v = x[i] > v ? x[i] : v;
    return v;
}

static double median_of(double *room, const double *x, size_t n) {
    memcpy(room, x, n * sizeof *x);
    return bench_median(room, n);
}

static bool judge(const args *o, const row *a, const row *b, verdict *v) {
    const size_t most = a->n > b->n ? a->n : b->n;
    double *room = malloc(most * sizeof *room);
    if (!room) return false;
    v->pairs = a->n < b->n ? a->n : b->n;
    v->a = median_of(room, a->samples, a->n);
    v->b = median_of(room, b->samples, b->n);
    v->best = greatest(b->samples, b->n) / greatest(a->samples, a->n);
    for (size_t i = 0; i < v->pairs; i++) room[i] = b->samples[i] / a->samples[i];
    v->ratio = bench_median(room, v->pairs); /* which sorts */
    v->least = room[0];
    v->most = room[v->pairs - 1];
    free(room);
    v->word = v->pairs < NOISE_PAIRS ? "" : v->least > 1 ? "faster" : v->most < 1 ? "slower" : "same";
    v->fails = o->fail_below > 0 && v->ratio < o->fail_below && v->most < 1;
    return true;
}

typedef struct state {
    const args *a;
    table from, to;
    json_t *rows;
    size_t common, failed;
} state;

static void show(state *s, const row *r, const verdict *v) {
    if (s->rows) {
        json_t *o = json_object(), *ratio = json_object();
        cli_set_text(o, "bench", r->bench);
        cli_set_text(o, "case", r->name);
        cli_set_int(o, "threads", strtoul(r->threads, NULL, 10));
        cli_set_text(o, "unit", r->unit);
        cli_set_int(o, "pairs", v->pairs);
        cli_set_real(o, "a", v->a);
        cli_set_real(o, "b", v->b);
        cli_set_real(ratio, "median", v->ratio);
        cli_set_real(ratio, "min", v->least);
        cli_set_real(ratio, "max", v->most);
        cli_set_real(ratio, "best", v->best);
        cli_set(o, "ratio", ratio);
        cli_set_text(o, "verdict", v->word);
        cli_set_bool(o, "fails", v->fails);
        (void)json_array_append_new(s->rows, o);
        return;
    }
    if (s->common == 1) {
        printf("%-8s %-58s %7s %10s %10s %-8s %7s %15s %7s %5s\n", "bench", "case", "threads", "A", "B", "", "B/A",
               "of pairs", "best", "pairs");
    }
    printf("%-8s %-58s %7s %10.5g %10.5g %-8s %7.3f %7.3f-%-7.3f %7.3f %5zu  %s%s\n", cli_safe(r->bench).s,
           cli_safe(r->name).s, cli_safe(r->threads).s, v->a, v->b, cli_safe(r->unit).s, v->ratio, v->least, v->most,
           v->best, v->pairs, strcmp(v->word, "same") == 0 ? "" : v->word, v->fails ? " FAILS" : "");
}

static size_t alone(const table *t, const table *other) {
    size_t n = 0;
    for (size_t i = 0; i < t->n; i++) n += find_row(other, &t->rows[i]) == NULL;
    return n;
}

static int compare(cli *c, state *s) {
    for (size_t i = 0; i < s->from.n; i++) {
        const row *a = &s->from.rows[i], *b = find_row(&s->to, a);
        verdict v;
        if (!b) continue;
        if (!judge(s->a, a, b, &v)) return cli_nomem(c);
        s->common++;
        s->failed += v.fails;
        show(s, a, &v);
    }
    if (s->common == 0) return cli_error(c, LQ_E_INCONSISTENT, "%s and %s have no row in common", s->a->a, s->a->b);
    const size_t only_a = alone(&s->from, &s->to), only_b = alone(&s->to, &s->from);
    if (only_a || only_b) {
        cli_warn("%zu row%s only in %s, %zu only in %s", only_a, only_a == 1 ? " is" : "s are", s->a->a, only_b,
                 s->a->b);
    }
    if (s->failed) {
        fprintf(stderr, "lq bench compare: %zu of %zu rows are below %g\n", s->failed, s->common, s->a->fail_below);
    }
    const int code = s->failed ? CLI_CHECK_FAILED : CLI_OK;
    if (!s->rows) return code;
    json_t *o = json_object();
    cli_set_text(o, "a", s->a->a);
    cli_set_text(o, "b", s->a->b);
    cli_set(o, "rows", json_incref(s->rows));
    cli_set_int(o, "only_a", only_a);
    cli_set_int(o, "only_b", only_b);
    cli_set_int(o, "failed", s->failed);
    return cli_json_print(c, o, code);
}

static int run(cli *c, const void *arguments) {
    state s = {.a = arguments};
    if (c->json && !(s.rows = json_array())) return cli_nomem(c);
    int code = read_table(c, s.a->a, &s.from);
    if (code == 0) code = read_table(c, s.a->b, &s.to);
    if (code == 0) code = compare(c, &s);
    json_decref(s.rows);
    table_free(&s.from);
    table_free(&s.to);
    return code;
}

const cli_command cli_command_bench_compare = {
    .name = "bench compare",
    .summary = "two files of measurements, pair by pair",
    .about = "Compares what two runs of `lq bench model`, `kernels` or `roof` appended to files with --csv. Rows of\n"
             "the same name are compared: the first sample of A with the first of B, and so on. Measure in turn,\n"
             "then what disturbs the machine meets both sides of a pair:\n\n"
             "  for i in 1 2 3 4 5; do\n"
             "    old/lq bench model m.gguf --repeat 1 --csv a.csv; new/lq bench model m.gguf --repeat 1 --csv b.csv\n"
             "  done\n\n"
             "A, B       medians; samples are rates, so higher is faster\n"
             "B/A        median of the pairs' ratios; 'of pairs' is the range of these\n"
             "best       best of B over best of A: on a busy machine the fairer figure, if there are many samples\n"
             "faster, slower   three pairs or more, and all on the same side of 1: outside the noise. By chance\n"
             "           alone N pairs do that once in 2^(N-1) rows, so five or more say something.\n",
    .operands = operands,
    .options = options,
    .examples = "  lq bench compare a.csv b.csv\n"
                "  lq bench compare bench/baselines/this-machine.csv now.csv --fail-below 0.95\n",
    .args_size = sizeof(args),
    .run = run,
};
