/* lq.c: the program `lq`: finds the command among commands.def, parses its arguments by its tables, runs it.
 *
 * Owns what holds for the whole process: open standard descriptors, signals, the exit code. Knows no command by name.
 * The locale stays "C": numbers have decimal points everywhere. */
#include "cli.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *command_name(size_t i) { return cli_command_at(i)->name; }

static void print_version(void) {
    printf("lq %d.%d.%d (libquant %s)\n", LQ_VERSION_MAJOR, LQ_VERSION_MINOR, LQ_VERSION_PATCH, lq_version_string());
}

static void print_exits(FILE *f) {
    enum { WIDTH = 100 };
    int column = fprintf(f, "Exit codes:");
    for (const cli_exit *e = cli_exits; e->text; e++) {
        char one[64];
        const int n = snprintf(one, sizeof one, "%d %s%s", e->code, e->text, e[1].text ? "," : ".\n");
        if (column + 1 + n > WIDTH) {
            fputc('\n', f);
            column = 0;
        }
        column += fprintf(f, column ? " %s" : "%s", one);
    }
}

static void print_usage(FILE *f) {
    fputs("lq quantizes large language models and runs them.\n\n"
          "Usage: lq COMMAND [arguments] [options]\n\nCommands\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        fprintf(f, "  %-16s %s\n", cli_command_at(i)->name, cli_command_at(i)->summary);
    }
    fputs("\n  lq help COMMAND    explain a command, with examples (also: lq COMMAND --help)\n"
          "  lq --version       print the version\n\n"
          "First steps\n",
          f);
    fputs(cli_first_steps, f);
    fputs("\nResults go to standard output, everything else to standard error. Each command takes --json.\n", f);
    print_exits(f);
}

/* The command whose name has the most words in common with the start of argv; *used = how many. */
static const cli_command *find_command(int argc, char **argv, int *used) {
    for (int words = argc < 2 ? argc : 2; words > 0; words--) {
        char name[64];
        snprintf(name, sizeof name, words == 2 ? "%.30s %.30s" : "%.30s", argv[0], words == 2 ? argv[1] : "");
        for (size_t i = 0; cli_command_at(i); i++) {
            if (strcmp(name, cli_command_at(i)->name) == 0) {
                *used = words;
                return cli_command_at(i);
            }
        }
    }
    return NULL;
}

/* A first word that only begins commands ("bench"): list them on `f`. False when there is none. */
static bool print_group(FILE *f, const char *word) {
    bool any = false;
    const size_t n = strlen(word);
    for (size_t i = 0; cli_command_at(i); i++) {
        if (strncmp(cli_command_at(i)->name, word, n) == 0 && cli_command_at(i)->name[n] == ' ') {
            fprintf(f, "  lq %-16s %s\n", cli_command_at(i)->name, cli_command_at(i)->summary);
            any = true;
        }
    }
    return any;
}

static int unknown_command(cli *c, int argc, char **argv) {
    if (argv[0][0] == '-') return cli_usage(c, "unknown option %s; options follow a command", argv[0]);
    for (size_t i = 0; cli_command_at(i); i++) {
        const size_t n = strlen(argv[0]);
        if (strncmp(cli_command_at(i)->name, argv[0], n) != 0 || cli_command_at(i)->name[n] != ' ') continue;
        const int code = argc > 1 && argv[1][0] != '-'
                             ? cli_usage(c, "lq %s has no command '%s'; there are:", argv[0], argv[1])
                             : cli_usage(c, "lq %s needs one more word:", argv[0]);
        print_group(stderr, argv[0]);
        return code;
    }
    return cli_usage(c, "unknown command '%s'; the nearest is '%s'", argv[0],
                     cli_nearest(argv[0], command_name, cli_command_count()));
}

/* `lq help --man [PAGE]`, for the build: the manual page lq(1), or of a command by the name of its page. */
static int manual(cli *c, const char *page) {
    if (!page) {
        cli_man(stdout, NULL);
        return CLI_OK;
    }
    for (size_t i = 0; cli_command_at(i); i++) {
        char name[64];
        snprintf(name, sizeof name, "%s", cli_command_at(i)->name);
        for (char *space = name; (space = strchr(space, ' '));) *space = '-';
        if (strcmp(page, name) == 0) {
            cli_man(stdout, cli_command_at(i));
            return CLI_OK;
        }
    }
    return cli_usage(c, "no command has the manual page '%s'", page);
}

static int help(cli *c, int argc, char **argv) {
    int used = 0;
    if (argc > 0 && strcmp(argv[0], "--man") == 0) return manual(c, argv[1]);
    if (argc == 0) {
        print_usage(stdout);
        return CLI_OK;
    }
    const cli_command *command = find_command(argc, argv, &used);
    if (command) cli_help(stdout, command);
    else if (!print_group(stdout, argv[0])) return unknown_command(c, argc, argv);
    return CLI_OK;
}

static int run(cli *c, int argc, char **argv) {
    const cli_command *command = c->command;
    void *args = calloc(1, command->args_size);
    if (!args) return cli_nomem(c);
    if (command->defaults) memcpy(args, command->defaults, command->args_size);
    int code = cli_parse(c, argc, argv, args);
    if (c->help) {
        cli_help(stdout, command);
        code = CLI_OK;
    } else if (code == 0) {
        code = command->run(c, args);
    }
    cli_args_free(command, args);
    return code;
}

/* A closed standard descriptor would be given to the next file that is opened, and messages would then be written
 * into it. Occupy it with one on which the wrong direction fails. */
static void occupy_descriptors(void) {
    for (int fd = 0; fd <= 2; fd++) {
        if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", fd == 0 ? O_WRONLY : O_RDONLY) != fd) _exit(CLI_IO);
    }
}

int main(int argc, char **argv) {
    cli c = {0};
    int code, used = 0;
    occupy_descriptors();
    cli_signals();
    /* An error while parsing is reported as JSON too. */
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) c.json |= strcmp(argv[i], "--json") == 0;
    argc--, argv++;
    if (argc == 0) {
        print_usage(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[0], "--version") == 0 || strcmp(argv[0], "version") == 0) {
        print_version();
        code = CLI_OK;
    } else if (strcmp(argv[0], "help") == 0 || strcmp(argv[0], "--help") == 0 || strcmp(argv[0], "-h") == 0) {
        c.json = 0;
        code = help(&c, argc - 1, argv + 1);
    } else if (!(c.command = find_command(argc, argv, &used))) {
        if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) code = help(&c, 1, argv);
        else code = unknown_command(&c, argc, argv);
    } else {
        code = run(&c, argc - used, argv + used);
    }
    return cli_finish(&c, code);
}
