/* cli_args.c: the option parser and the help text of `lq`, both driven by the tables of a command.
 *
 * Owns the syntax: `--name VALUE`, `--name=VALUE`, `-n VALUE`, `-nVALUE`, `--` ends the options, options and operands
 * in any order. Refuses what it does not know by naming the nearest option, and values outside the stated range. */
#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ------------------------------------------------------------------------------------------------ nearest word */

/* Edit distance with swaps of neighbours as one edit; words above 31 bytes count as far away. */
static unsigned distance(const char *a, const char *b) {
    enum { N = 32 };
    unsigned d[N][N];
    const size_t n = strlen(a), m = strlen(b);
    if (n >= N || m >= N) return 1000;
    for (size_t i = 0; i <= n; i++) d[i][0] = (unsigned)i;
    for (size_t j = 0; j <= m; j++) d[0][j] = (unsigned)j;
    for (size_t i = 1; i <= n; i++) {
        for (size_t j = 1; j <= m; j++) {
            unsigned best = d[i - 1][j - 1] + (tolower((unsigned char)a[i - 1]) != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best) {
                best = d[i - 2][j - 2] + 1;
            }
            d[i][j] = best;
        }
    }
    return d[n][m];
}

const char *cli_nearest(const char *word, const char *(*name)(size_t i), size_t count) {
    const char *best = NULL;
    unsigned least = ~0u;
    for (size_t i = 0; i < count; i++) {
        const char *candidate = name(i);
        const unsigned d = distance(word, candidate);
        if (d < least) least = d, best = candidate;
    }
    return best;
}

const cli_option cli_common_options[] = {
    {.type = CLI_FLAG,
     .name = "json",
     .at = offsetof(cli, json),
     .help = "print the result as one JSON value on standard output; an error becomes\n"
             "{\"error\": {\"status\", \"message\", \"exit\"}} there, besides its text on standard error"},
    {.type = CLI_FLAG, .letter = 'h', .name = "help", .at = offsetof(cli, help), .help = "print this text and stop"},
    {.type = CLI_END}};

static const cli_option *nearest_option(const cli_command *command, const char *word) {
    const cli_option *best = cli_common_options;
    unsigned least = ~0u;
    char quoted[40];
    snprintf(quoted, sizeof quoted, "|%.30s|", word);
    for (int table = 0; table < 2; table++) {
        for (const cli_option *o = table ? cli_common_options : command->options; o->type != CLI_END; o++) {
            if (o->type == CLI_GROUP) continue;
            unsigned d = distance(word, o->name) * 2;
            if (o->also && strstr(o->also, quoted)) d = 0;
            else if (strncmp(word, o->name, strlen(word)) == 0) d = 1; /* --thr: the start of a name */
            if (d < least) least = d, best = o;
        }
    }
    return best;
}

/* ------------------------------------------------------------------------------------------------ values */

static bool is_named(const char *own, const char *name, size_t n) {
    return own && strlen(own) == n && memcmp(own, name, n) == 0;
}

static const cli_option *find_option(const cli_command *command, const char *name, size_t n, char letter,
                                     bool *common) {
    for (int table = 0; table < 2; table++) {
        *common = table == 1;
        for (const cli_option *o = table ? cli_common_options : command->options; o->type != CLI_END; o++) {
            if (o->type == CLI_GROUP) continue;
            if (letter ? o->letter == letter : is_named(o->name, name, n) || is_named(o->alias, name, n)) return o;
        }
    }
    return NULL;
}

static int store_uint(cli *c, const cli_option *o, const char *text, void *field) {
    char *end = NULL;
    errno = 0;
    const unsigned long long v = isdigit((unsigned char)text[0]) ? strtoull(text, &end, 10) : 0;
    if (!end || *end != 0 || errno != 0 || (double)v < o->min || (double)v > o->max) {
        return cli_usage(c, "--%s %s: a whole number from %.0f to %.0f is needed", o->name, text, o->min, o->max);
    }
    *(uint64_t *)field = v;
    return 0;
}

static int store_real(cli *c, const cli_option *o, const char *text, void *field) {
    char *end = NULL;
    const double v = strtod(text, &end);
    if (end == text || *end != 0 || !isfinite(v) || v < o->min || v > o->max) {
        return cli_usage(c, "--%s %s: a number from %g to %g is needed", o->name, text, o->min, o->max);
    }
    *(double *)field = v;
    return 0;
}

static int store_list(cli *c, const char *text, cli_list *list) {
    const char **items = realloc(list->items, (list->count + 1) * sizeof *items);
    if (!items) return cli_nomem(c);
    list->items = items;
    items[list->count++] = text;
    return 0;
}

static int store(cli *c, const cli_option *o, const char *text, void *field) {
    switch (o->type) {
    case CLI_UINT: return store_uint(c, o, text, field);
    case CLI_REAL: return store_real(c, o, text, field);
    case CLI_LIST: return store_list(c, text, field);
    default: *(const char **)field = text; return 0;
    }
}

/* One option at argv[*i]; *i moves past a value that stands alone. */
static int parse_option(cli *c, int argc, char **argv, int *i, char *args, uint64_t *seen) {
    const char *arg = argv[*i];
    const bool is_long = arg[1] == '-';
    const char *name = is_long ? arg + 2 : arg + 1;
    const char *equal = is_long ? strchr(name, '=') : NULL;
    const size_t n = equal ? (size_t)(equal - name) : strlen(name);
    bool common;
    const cli_option *o = find_option(c->command, name, n, is_long ? 0 : name[0], &common);
    if (!o) {
        char word[32];
        snprintf(word, sizeof word, "%.*s", (int)(n < 31 ? n : 31), name);
        const cli_option *near = nearest_option(c->command, word);
        return cli_usage(c, "unknown option %s; the nearest is --%s%s%s", arg, near->name, near->value ? " " : "",
                         near->value ? near->value : "");
    }
    void *field = common ? (char *)c + o->at : args + o->at;
    if (!common) *seen |= (uint64_t)1 << (o - c->command->options);
    if (o->type == CLI_FLAG) {
        if (equal || (!is_long && name[1] != 0)) return cli_usage(c, "%s: --%s takes no value", arg, o->name);
        *(uint32_t *)field = 1;
        return 0;
    }
    const char *value = equal ? equal + 1 : !is_long && name[1] ? name + 1 : NULL;
    if (!value) {
        /* A following word that is itself an option was not meant as the value; --name=--word says that it was. */
        const char *next = *i + 1 < argc ? argv[*i + 1] : NULL;
        bool ignored;
        if (!next ||
            (strncmp(next, "--", 2) == 0 && find_option(c->command, next + 2, strlen(next + 2), 0, &ignored))) {
            return cli_usage(c, "--%s needs a value: --%s %s", o->name, o->name, o->value);
        }
        value = next;
        ++*i;
    }
    return store(c, o, value, field);
}

int cli_parse(cli *c, int argc, char **argv, void *args) {
    const cli_command *command = c->command;
    const cli_operand *operand = command->operands;
    uint64_t seen = 0;
    bool options = true;
    int status = 0;
    for (int i = 0; i < argc && status == 0; i++) {
        if (options && strcmp(argv[i], "--") == 0) {
            options = false;
        } else if (options && argv[i][0] == '-' && argv[i][1] != 0) {
            status = parse_option(c, argc, argv, &i, args, &seen);
        } else if (!operand || !operand->name) {
            status = cli_usage(c, "unexpected argument '%s'", argv[i]);
        } else {
            *(const char **)(void *)((char *)args + operand->at) = argv[i];
            operand++;
        }
        if (c->help) return 0; /* whatever else is wrong, help was asked for */
    }
    if (status != 0) return status;
    for (const cli_option *o = command->options; o->type != CLI_END; o++) {
        if (o->required && !(seen >> (o - command->options) & 1)) {
            return cli_usage(c, "--%s %s is required: %.*s", o->name, o->value, (int)strcspn(o->help, "\n"), o->help);
        }
    }
    if (operand && operand->name && !operand->optional) {
        return cli_usage(c, "%s is missing: %.*s", operand->name, (int)strcspn(operand->help, "\n"), operand->help);
    }
    return 0;
}

void cli_args_free(const cli_command *command, void *args) {
    for (const cli_option *o = command->options; o->type != CLI_END; o++) {
        if (o->type == CLI_LIST) free((void *)((cli_list *)(void *)((char *)args + o->at))->items);
    }
    free(args);
}

/* ------------------------------------------------------------------------------------------------ help */

/* `left` in a column of 26, then the lines of `text`. */
static void help_row(FILE *f, const char *left, const char *text) {
    enum { COLUMN = 26 };
    int pad = COLUMN - (int)strlen(left);
    fputs(left, f);
    if (pad < 2) {
        fputc('\n', f);
        pad = COLUMN;
    }
    for (const char *line = text; line;) {
        const size_t n = strcspn(line, "\n");
        fprintf(f, "%*s%.*s\n", pad, "", (int)n, line);
        line = line[n] ? line + n + 1 : NULL;
        pad = COLUMN;
    }
}

static void help_options(FILE *f, const cli_option *options) {
    for (const cli_option *o = options; o->type != CLI_END; o++) {
        char left[64], letter[8] = "    ";
        if (o->type == CLI_GROUP) {
            fprintf(f, "\n%s\n", o->name);
            continue;
        }
        if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
        snprintf(left, sizeof left, "  %s--%s%s%s", letter, o->name, o->value ? " " : "", o->value ? o->value : "");
        help_row(f, left, o->help);
    }
}

void cli_help(FILE *f, const cli_command *command) {
    fprintf(f, "lq %s: %s\n\nUsage: lq %s", command->name, command->summary, command->name);
    for (const cli_operand *p = command->operands; p && p->name; p++) {
        fprintf(f, p->optional ? " [%s]" : " %s", p->name);
    }
    for (const cli_option *o = command->options; o->type != CLI_END; o++) {
        if (o->required) fprintf(f, " --%s %s", o->name, o->value);
    }
    fputs(" [options]\n\n", f);
    fputs(command->about, f);
    if (command->operands && command->operands->name) {
        fputs("\nArguments\n", f);
        for (const cli_operand *p = command->operands; p->name; p++) {
            char left[64];
            snprintf(left, sizeof left, "  %s", p->name);
            help_row(f, left, p->help);
        }
    }
    help_options(f, command->options);
    fputs("\nGeneral\n", f);
    help_options(f, cli_common_options);
    fprintf(f, "\nExamples\n%s", command->examples);
}
