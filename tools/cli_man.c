/* cli_man.c: the manual pages of `lq` and its commands, from the same tables as the help text.
 *
 * Owns the roff: macros of man(7), text escaped, `quoted` words in bold. Refuses nothing. The date of a page is that of
 * the build, or SOURCE_DATE_EPOCH, so that a build can be repeated to the byte. */
#include "cli.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* One line of text. In examples (`code`) and options every hyphen is a minus sign, which can be copied to a shell. */
static void put(FILE *f, const char *text, size_t n, bool code) {
    bool option = code, quoted = false;
    if (n > 0 && (text[0] == '.' || text[0] == '\'')) fputs("\\&", f);
    for (size_t i = 0; i < n; i++) {
        const char ch = text[i], before = i > 0 ? text[i - 1] : ' ';
        if (ch == '-' && !isalnum((unsigned char)before)) option = true;
        if (ch == ' ' && !code) option = false;
        if (ch == '`' && !code) {
            fputs(quoted ? "\\fR" : "\\fB", f);
            quoted = !quoted;
        } else if (ch == '\\') {
            fputs("\\e", f);
        } else if (ch == '-' && (option || quoted)) {
            fputs("\\-", f);
        } else {
            fputc(ch, f);
        }
    }
    fputs(quoted ? "\\fR\n" : "\n", f);
}

/* Paragraphs, with blank lines between them; indented lines keep their form. `paragraph` is the macro between. */
static void put_text(FILE *f, const char *text, const char *paragraph) {
    bool form = false, gap = false;
    for (const char *line = text; *line;) {
        const size_t n = strcspn(line, "\n");
        const bool indented = n > 1 && line[0] == ' ';
        if (n == 0) {
            gap = true;
        } else {
            if (form && !indented) fputs(".fi\n", f);
            if (gap) fprintf(f, "%s\n", paragraph);
            if (!form && indented) fputs(".nf\n", f);
            put(f, line, n, indented);
            form = indented;
            gap = false;
        }
        line += n + (line[n] == '\n');
    }
    if (form) fputs(".fi\n", f);
}

/* A command's or option's name, as it is typed; `page`: as its manual page is called. */
static void put_name(FILE *f, const char *name, bool page) {
    for (; *name; name++) {
        if (*name == '-' || (page && *name == ' ')) fputs("\\-", f);
        else fputc(*name, f);
    }
}

/* What an option does. A line "word: ..." is an item of a list; spaces before a line only go on with one. */
static void put_help(FILE *f, const char *text) {
    for (const char *line = text; *line;) {
        line += strspn(line, " ");
        const size_t n = strcspn(line, "\n");
        const size_t word = strcspn(line, ": \n");
        if (line != text && line[word] == ':') fputs(".br\n", f);
        put(f, line, n, false);
        line += n + (line[n] == '\n');
    }
}

static void put_head(FILE *f, const char *name, const char *summary) {
    const char *epoch = getenv("SOURCE_DATE_EPOCH");
    const time_t now = epoch && epoch[0] ? (time_t)strtoll(epoch, NULL, 10) : time(NULL);
    struct tm t;
    char date[32] = "", page[64];
    size_t n = 0;
    if (gmtime_r(&now, &t)) strftime(date, sizeof date, "%Y-%m-%d", &t);
    for (; name[n] && n + 1 < sizeof page; n++) {
        page[n] = (char)(name[n] == ' ' ? '-' : name[n] >= 'a' && name[n] <= 'z' ? name[n] - 'a' + 'A' : name[n]);
    }
    page[n] = 0;
    fprintf(f, ".TH %s 1 \"%s\" \"libquant %d.%d.%d\" \"libquant manual\"\n.SH NAME\n", page, date, LQ_VERSION_MAJOR,
            LQ_VERSION_MINOR, LQ_VERSION_PATCH);
    put_name(f, name, true);
    fputs(" \\- ", f);
    put(f, summary, strlen(summary), false);
}

static void put_option(FILE *f, const cli_option *o) {
    fputs(".TP\n", f);
    if (o->letter) fprintf(f, "\\fB\\-%c\\fR, ", o->letter);
    fputs("\\fB\\-\\-", f);
    put_name(f, o->name, false);
    if (o->value) fprintf(f, "\\fR \\fI%s", o->value);
    fputs("\\fR\n", f);
    put_help(f, o->help);
}

static void put_options(FILE *f, const cli_option *options, const char *group) {
    if (group) fprintf(f, ".SS %s\n", group);
    for (const cli_option *o = options; o->type != CLI_END; o++) {
        if (o->type == CLI_GROUP) fprintf(f, ".SS %s\n", o->name);
        else put_option(f, o);
    }
}

static void put_exits(FILE *f) {
    fputs(".SH EXIT STATUS\n", f);
    for (const cli_exit *e = cli_exits; e->text; e++) fprintf(f, ".TP 5\n%d\n%s\n", e->code, e->text);
}

/* References to the pages of all commands but one, after `first`. */
static void put_see_also(FILE *f, const char *first, const cli_command *but) {
    fputs(".SH SEE ALSO\n", f);
    if (first) fprintf(f, ".BR %s (1),\n", first);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *command = cli_command_at(i);
        if (command == but) continue;
        fputs(".BR lq\\-", f);
        put_name(f, command->name, true);
        fputs(" (1),\n", f);
    }
    fputs(".BR libquant (3)\n", f);
}

static void put_program(FILE *f) {
    put_head(f, "lq", "quantize large language models and run them");
    fputs(".SH SYNOPSIS\n.B lq\n.I command\n.RI [ arguments ]\n.RI [ options ]\n.br\n.B lq help\n.RI [ command ]\n.br\n"
          ".B lq \\-\\-version\n"
          ".SH DESCRIPTION\n"
          "Results go to standard output, everything else to standard error.\n"
          "Each command takes \\fB\\-\\-json\\fR and \\fB\\-\\-help\\fR.\n"
          ".SS Commands\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        fputs(".TP\n\\fB", f);
        put_name(f, cli_command_at(i)->name, false);
        fputs("\\fR\n", f);
        put(f, cli_command_at(i)->summary, strlen(cli_command_at(i)->summary), false);
    }
    fputs(".SH ENVIRONMENT\n.TP\n.BR NO_COLOR \", \" TERM\n"
          "A progress bar on a terminal has no color where NO_COLOR is set, and is lines of text where TERM is dumb.\n"
          ".SH FILES\n.TP\n.I ../share/libquant\n"
          "Beside the folder that \\fBlq\\fR is in: the bundled model and texts of \\fBlq bench quality\\fR.\n",
          f);
    put_exits(f);
    fputs(".SH EXAMPLES\n", f);
    put_text(f, cli_first_steps, ".PP");
    put_see_also(f, NULL, NULL);
}

void cli_man(FILE *f, const cli_command *command) {
    char name[64];
    if (!command) {
        put_program(f);
        return;
    }
    snprintf(name, sizeof name, "lq %s", command->name);
    put_head(f, name, command->summary);
    fprintf(f, ".SH SYNOPSIS\n.B lq ");
    put_name(f, command->name, false);
    fputc('\n', f);
    for (const cli_operand *p = command->operands; p && p->name; p++) {
        fprintf(f, p->optional ? ".RI [ %s ]\n" : ".I %s\n", p->name);
    }
    for (const cli_option *o = command->options; o->type != CLI_END; o++) {
        if (!o->required) continue;
        fputs("\\fB\\-\\-", f);
        put_name(f, o->name, false);
        fprintf(f, "\\fR \\fI%s\\fR\n", o->value);
    }
    fputs(".RI [ options ]\n.SH DESCRIPTION\n", f);
    put_text(f, command->about, ".PP");
    if (command->operands && command->operands->name) {
        fputs(".SH ARGUMENTS\n", f);
        for (const cli_operand *p = command->operands; p->name; p++) {
            fprintf(f, ".TP\n.I %s\n", p->name);
            put_help(f, p->help);
        }
    }
    fputs(".SH OPTIONS\n", f);
    put_options(f, command->options, NULL);
    put_options(f, cli_common_options, "General");
    put_exits(f);
    fputs(".SH EXAMPLES\n", f);
    put_text(f, command->examples, ".PP");
    put_see_also(f, "lq", command);
}
