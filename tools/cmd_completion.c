/* cmd_completion.c: `lq completion`: rules by which a shell completes commands, options and their values.
 *
 * Owns one writer per shell; all three walk the same tables as the parser and the help text, so that a new command or
 * option is completed without a line here. Names of schemes and formats are those of this build. */
#include "cli.h"

#include <stdlib.h>
#include <string.h>

typedef struct args {
    const char *shell;
} args;

static const cli_operand operands[] = {{"bash|zsh|fish", offsetof(args, shell), 0, "which shell"}, {0}};
static const cli_option options[] = {{.type = CLI_END}};

/* ------------------------------------------------------------------------------------------------ the tables */

/* What the value of an option or an operand is. */
typedef enum { VALUE_OTHER, VALUE_PATH, VALUE_WORDS, VALUE_LIST } value_kind;

static bool is_path(const char *value) {
    static const char *const paths[] = {"FILE", "DIR", "SRC", "DST", "REF", "MODEL", "STATS"};
    for (size_t i = 0; i < CLI_COUNT(paths); i++) {
        if (strcmp(value, paths[i]) == 0) return true;
    }
    return false;
}

static value_kind kind_of(const cli_option *o) {
    if (!o->value) return VALUE_OTHER;
    if (o->values) return strncmp(o->value, "A,B", 3) == 0 ? VALUE_LIST : VALUE_WORDS;
    if (is_path(o->value)) return VALUE_PATH;
    return o->value[0] >= 'a' && o->value[0] <= 'z' ? VALUE_WORDS : VALUE_OTHER;
}
static value_kind operand_kind(const cli_operand *p) { return strchr(p->name, '|') ? VALUE_WORDS : VALUE_PATH; }

static bool is_scheme(const char *name) {
    for (uint32_t i = 0; i < lq_scheme_count(); i++) {
        if (strcmp(lq_scheme_name(i, NULL), name) == 0) return true;
    }
    return false;
}

static void put_schemes(FILE *f) {
    lq_format_info info = {.size = sizeof info};
    for (uint32_t i = 0; i < lq_scheme_count(); i++) fprintf(f, "%s%s", i ? " " : "", lq_scheme_name(i, NULL));
    for (uint32_t i = 0; i < lq_format_count(); i++) {
        if (lq_format_info_get(i, &info) == LQ_OK && !is_scheme(info.name)) fprintf(f, " %s", info.name);
    }
}

/* The words an option's value can be, with spaces between. */
static void put_values(FILE *f, const cli_option *o) {
    if (!o->values) fputs(o->value, f);
    else if (strcmp(o->values, CLI_SCHEMES) == 0) put_schemes(f);
    else fputs(o->values, f);
}

static void put_operand_words(FILE *f, const cli_operand *p) {
    for (const char *s = p->name; *s; s++) fputc(*s == '|' ? ' ' : *s, f);
}

/* The next option of a command that is no heading, its own and then the common ones; NULL at the end. */
static const cli_option *next_option(const cli_command *command, const cli_option *o) {
    bool common = false;
    for (const cli_option *p = cli_common_options; o && p->type != CLI_END; p++) common |= p == o;
    o = o ? o + 1 : command->options;
    while (o->type == CLI_GROUP || (o->type == CLI_END && !common)) {
        common |= o->type == CLI_END;
        o = o->type == CLI_END ? cli_common_options : o + 1;
    }
    return o->type == CLI_END ? NULL : o;
}

static size_t first_word(const cli_command *command) { return strcspn(command->name, " "); }

/* Whether an earlier command has the same first word. */
static bool is_repeated(size_t index) {
    const cli_command *c = cli_command_at(index);
    for (size_t i = 0; i < index; i++) {
        if (first_word(cli_command_at(i)) == first_word(c) &&
            strncmp(cli_command_at(i)->name, c->name, first_word(c)) == 0) {
            return true;
        }
    }
    return false;
}

/* Every first word: commands of one word, and groups ("bench"), with spaces between. */
static void put_first_words(FILE *f) {
    for (size_t i = 0; cli_command_at(i); i++) {
        if (!is_repeated(i)) fprintf(f, "%.*s ", (int)first_word(cli_command_at(i)), cli_command_at(i)->name);
    }
}

/* The second words of a group. */
static void put_second_words(FILE *f, const cli_command *group) {
    const size_t n = first_word(group);
    const char *between = "";
    for (size_t i = 0; cli_command_at(i); i++) {
        const char *name = cli_command_at(i)->name;
        if (strncmp(name, group->name, n) != 0 || name[n] != ' ') continue;
        fprintf(f, "%s%s", between, name + n + 1);
        between = " ";
    }
}

/* A description that fits a menu, within single quotes: the first line up to what explains it further, without what
 * zsh's specification would take for its own. */
static void put_brief(FILE *f, const char *text) {
    size_t n = strcspn(text, "\n");
    for (size_t i = 1; i < n; i++) {
        if (text[i] == ';' || text[i] == ':' || strncmp(text + i, ". ", 2) == 0) n = i;
        if (i > 8 && strncmp(text + i, " (", 2) == 0) n = i;
    }
    for (size_t i = 0; i < n; i++) {
        if (text[i] == '\'') fputs("'\\''", f);
        else if (!strchr("`\\[]:", text[i])) fputc(text[i], f);
    }
}

/* ------------------------------------------------------------------------------------------------ bash */

/* Patterns of a case for the spellings of an option: 'run -t' | 'run --threads' */
static void bash_pattern(FILE *f, const cli_command *command, const cli_option *o) {
    if (o->letter) fprintf(f, "'%s -%c' | ", command->name, o->letter);
    fprintf(f, "'%s --%s') ", command->name, o->name);
}

static void bash_commands(FILE *f) {
    fputs("    case \"${COMP_WORDS[1]} ${COMP_WORDS[2]-}\" in\n", f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const char *name = cli_command_at(i)->name;
        if (strchr(name, ' ')) fprintf(f, "    '%s') command='%s' i=3 ;;\n", name, name);
        else fprintf(f, "    '%s '*) command='%s' i=2 ;;\n", name, name);
    }
    fputs("    esac\n"
          "    if ((i == 1 || i > COMP_CWORD)); then\n"
          "        [[ ${COMP_WORDS[1]} == help ]] && i=2 || i=1\n"
          "        if ((COMP_CWORD == i)); then\n            words='",
          f);
    put_first_words(f);
    fputs("help'\n            ((i == 2)) || words+=' --version --help'\n        elif ((COMP_CWORD == i + 1)); then\n"
          "            case ${COMP_WORDS[i]} in\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        if (is_repeated(i) || !strchr(c->name, ' ')) continue;
        fprintf(f, "            %.*s) words='", (int)first_word(c), c->name);
        put_second_words(f, c);
        fputs("' ;;\n", f);
    }
    fputs("            esac\n        fi\n"
          "        mapfile -t COMPREPLY < <(compgen -W \"$words\" -- \"$cur\")\n        return\n    fi\n",
          f);
}

static void bash_option(FILE *f, const cli_command *command, const cli_option *o) {
    const value_kind kind = kind_of(o);
    if (kind == VALUE_OTHER) return;
    fputs("        ", f);
    bash_pattern(f, command, o);
    if (kind == VALUE_PATH) {
        fputs("paths=1 ;;\n", f);
        return;
    }
    fputs(kind == VALUE_LIST ? "list=1 words='" : "words='", f);
    put_values(f, o);
    fputs("' ;;\n", f);
}

static void bash_script(FILE *f) {
    fputs("# Completion of lq for bash, made by `lq completion bash`.\n"
          "_lq() {\n"
          "    local cur=${COMP_WORDS[COMP_CWORD]} command='' option='' words='' paths='' list='' before='' i=1 n=0 w\n"
          "    COMPREPLY=()\n",
          f);
    bash_commands(f);
    fputs("    # Which option waits for its value, and how many operands there are.\n"
          "    for (( ; i < COMP_CWORD; i++)); do\n"
          "        w=${COMP_WORDS[i]}\n"
          "        if [[ $option ]]; then\n"
          "            [[ $w == '=' ]] || option=''\n"
          "        elif [[ $w == ':' ]]; then # bash takes words apart at colons: the next is of this one too\n"
          "            ((i++))\n"
          "        elif [[ $w == -?* ]]; then\n"
          "            case \"$command $w\" in\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        for (const cli_option *o = next_option(c, NULL); o; o = next_option(c, o)) {
            if (o->type == CLI_FLAG) continue;
            fputs("            ", f);
            bash_pattern(f, c, o);
            fputs("option=$w ;;\n", f);
        }
    }
    fputs("            esac\n        else\n            ((n++))\n        fi\n    done\n"
          "    [[ $option && $cur == '=' ]] && cur=''\n"
          "    if [[ $option ]]; then\n        case \"$command $option\" in\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        for (const cli_option *o = next_option(c, NULL); o; o = next_option(c, o)) bash_option(f, c, o);
    }
    fputs("        esac\n    elif [[ $cur == -* ]]; then\n        case $command in\n", f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        fprintf(f, "        '%s') words='", c->name);
        for (const cli_option *o = next_option(c, NULL); o; o = next_option(c, o)) {
            fprintf(f, "%s--%s", o == next_option(c, NULL) ? "" : " ", o->name);
        }
        fputs("' ;;\n", f);
    }
    fputs("        esac\n    else\n        case \"$command $n\" in\n", f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        for (size_t k = 0; c->operands && c->operands[k].name; k++) {
            fprintf(f, "        '%s %zu') ", c->name, k);
            if (operand_kind(&c->operands[k]) == VALUE_PATH) {
                fputs("paths=1 ;;\n", f);
                continue;
            }
            fputs("words='", f);
            put_operand_words(f, &c->operands[k]);
            fputs("' ;;\n", f);
        }
    }
    fputs("        esac\n    fi\n"
          "    if [[ $paths ]]; then\n"
          "        compopt -o filenames 2>/dev/null\n"
          "        mapfile -t COMPREPLY < <(compgen -f -- \"$cur\")\n"
          "        return\n"
          "    fi\n"
          "    if [[ $list ]]; then\n"
          "        [[ $cur == *,* ]] && before=${cur%,*},\n"
          "        compopt -o nospace 2>/dev/null\n"
          "    fi\n"
          "    mapfile -t COMPREPLY < <(compgen -P \"$before\" -W \"$words\" -- \"${cur#\"$before\"}\")\n"
          "}\n"
          "complete -F _lq lq\n",
          f);
}

/* ------------------------------------------------------------------------------------------------ zsh */

/* A colon would end the action. */
static void zsh_values(FILE *f, const cli_option *o) {
    if (!o->values || !strchr(o->values, ':')) {
        put_values(f, o);
        return;
    }
    for (const char *s = o->values; *s; s++) fprintf(f, *s == ':' ? "\\%c" : "%c", *s);
}

static void zsh_action(FILE *f, value_kind kind, const cli_option *o, const cli_operand *p) {
    if (kind == VALUE_PATH) fputs("_files", f);
    if (kind == VALUE_WORDS) {
        fputc('(', f);
        if (o) zsh_values(f, o);
        else put_operand_words(f, p);
        fputc(')', f);
    }
    if (kind == VALUE_LIST) {
        fputs("_values -s , name ", f);
        put_values(f, o);
    }
}

static void zsh_option(FILE *f, const cli_option *o) {
    const bool list = o->type == CLI_LIST, value = o->type != CLI_FLAG;
    fputs(" \\\n            ", f);
    if (list) fputs("'*'", f);
    else if (o->letter) fprintf(f, "'(-%c --%s)'", o->letter, o->name);
    if (o->letter) fprintf(f, "{-%c%s,--%s%s}", o->letter, value ? "+" : "", o->name, value ? "=" : "");
    else fprintf(f, "--%s%s", o->name, value ? "=" : "");
    fputs("'[", f);
    put_brief(f, o->help);
    fputc(']', f);
    if (value) {
        fprintf(f, ":%s:", o->value);
        zsh_action(f, kind_of(o), o, NULL);
    }
    fputc('\'', f);
}

static void zsh_script(FILE *f) {
    fputs("#compdef lq\n# Completion of lq for zsh, made by `lq completion zsh`.\n"
          "_lq() {\n    local command= n=1\n    local -a names\n    case \"${words[2]} ${words[3]}\" in\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const char *name = cli_command_at(i)->name;
        if (strchr(name, ' ')) fprintf(f, "        ('%s') command='%s' n=2 ;;\n", name, name);
        else fprintf(f, "        ('%s '*) command='%s' n=1 ;;\n", name, name);
    }
    fputs("    esac\n    if [[ -z $command ]] || (( CURRENT <= n + 1 )); then\n"
          "        n=2\n        [[ ${words[2]} == help ]] && (( CURRENT > 2 )) && n=3\n"
          "        if (( CURRENT == n )); then\n            names=(\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        if (is_repeated(i)) continue;
        fprintf(f, "                '%.*s:", (int)first_word(c), c->name);
        if (strchr(c->name, ' ')) put_second_words(f, c);
        else put_brief(f, c->summary);
        fputs("'\n", f);
    }
    fputs("                'help:explain a command'\n            )\n            _describe command names\n"
          "        elif (( CURRENT == n + 1 )); then\n            case ${words[n]} in\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        if (is_repeated(i) || !strchr(c->name, ' ')) continue;
        fprintf(f, "                (%.*s) names=(\n", (int)first_word(c), c->name);
        for (size_t k = 0; cli_command_at(k); k++) {
            const char *name = cli_command_at(k)->name;
            if (strncmp(name, c->name, first_word(c)) != 0 || name[first_word(c)] != ' ') continue;
            fprintf(f, "                    '%s:", name + first_word(c) + 1);
            put_brief(f, cli_command_at(k)->summary);
            fputs("'\n", f);
        }
        fputs("                ) ;;\n", f);
    }
    fputs("            esac\n            _describe command names\n        fi\n        return\n    fi\n"
          "    shift $n words\n    (( CURRENT -= n ))\n    case $command in\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        fprintf(f, "        ('%s') _arguments -s -S", c->name);
        for (const cli_option *o = next_option(c, NULL); o; o = next_option(c, o)) zsh_option(f, o);
        for (size_t k = 0; c->operands && c->operands[k].name; k++) {
            const cli_operand *p = &c->operands[k];
            fprintf(f, " \\\n            '%zu:%s:", k + 1, operand_kind(p) == VALUE_WORDS ? "word" : p->name);
            zsh_action(f, operand_kind(p), NULL, p);
            fputc('\'', f);
        }
        fputs(" ;;\n", f);
    }
    /* Sourced it registers itself; found by compinit it is the body of the function. */
    fputs("    esac\n}\nif [[ $funcstack[1] == _lq ]]; then _lq \"$@\"; else compdef _lq lq; fi\n", f);
}

/* ------------------------------------------------------------------------------------------------ fish */

static void fish_option(FILE *f, const cli_command *command, const cli_option *o) {
    fprintf(f, "complete -c lq -n '__lq_is %s' -l %s", command->name, o->name);
    if (o->letter) fprintf(f, " -s %c", o->letter);
    if (o->type != CLI_FLAG) {
        const value_kind kind = kind_of(o);
        fputs(kind == VALUE_PATH ? " -r -F" : " -x", f);
        if (kind == VALUE_WORDS || kind == VALUE_LIST) {
            fputs(kind == VALUE_LIST ? " -a '(__fish_append , " : " -a '", f);
            put_values(f, o);
            fputs(kind == VALUE_LIST ? ")'" : "'", f);
        }
    }
    fputs(" -d '", f);
    put_brief(f, o->help);
    fputs("'\n", f);
}

static void fish_script(FILE *f) {
    fputs("# Completion of lq for fish, made by `lq completion fish`.\n"
          "function __lq_words\n"
          "    set -l words (commandline -opc)\n"
          "    set -e words[1]\n"
          "    test \"$words[1]\" = help; and set -e words[1]\n"
          "    string join ' ' -- $words\n"
          "end\n"
          "# The command line begins with this command.\n"
          "function __lq_is\n"
          "    set -l words (commandline -opc)\n"
          "    test \"$words[2]\" != help; and string match -q -- \"$argv *\" (__lq_words)' '\n"
          "end\n"
          "# Nothing but these words stands before the cursor.\n"
          "function __lq_at\n"
          "    set -l words (__lq_words)\n"
          "    test \"$argv\" = \"$words\"\n"
          "end\n"
          "complete -c lq -f\n"
          "complete -c lq -n '__lq_at' -a help -d 'explain a command'\n"
          "complete -c lq -n '__lq_at' -l version -d 'print the version'\n",
          f);
    for (size_t i = 0; cli_command_at(i); i++) {
        const cli_command *c = cli_command_at(i);
        const int first = (int)first_word(c);
        const char *second = c->name[first] ? c->name + first + 1 : NULL;
        if (!is_repeated(i)) {
            fprintf(f, "complete -c lq -n '__lq_at' -a %.*s -d '", first, c->name);
            if (second) put_second_words(f, c);
            else put_brief(f, c->summary);
            fputs("'\n", f);
        }
        if (second) {
            fprintf(f, "complete -c lq -n '__lq_at %.*s' -a %s -d '", first, c->name, second);
            put_brief(f, c->summary);
            fputs("'\n", f);
        }
        for (const cli_option *o = next_option(c, NULL); o; o = next_option(c, o)) fish_option(f, c, o);
        const cli_operand *p = c->operands;
        if (!p || !p->name) continue;
        fprintf(f, "complete -c lq -n '__lq_is %s' ", c->name);
        if (operand_kind(p) == VALUE_PATH) {
            fputs("-F\n", f);
        } else {
            fputs("-a '", f);
            put_operand_words(f, p);
            fputs("'\n", f);
        }
    }
}

/* ------------------------------------------------------------------------------------------------ the command */

static int run(cli *c, const void *arguments) {
    static const struct {
        const char *name;
        void (*write)(FILE *f);
    } shells[] = {{"bash", bash_script}, {"zsh", zsh_script}, {"fish", fish_script}};
    const args *a = arguments;
    char *text = NULL;
    size_t bytes = 0, i = 0;
    while (i < CLI_COUNT(shells) && strcmp(shells[i].name, a->shell) != 0) i++;
    if (i == CLI_COUNT(shells)) return cli_usage(c, "%s: there are rules for bash, zsh and fish", a->shell);
    if (!c->json) {
        shells[i].write(stdout);
        return CLI_OK;
    }
    FILE *f = open_memstream(&text, &bytes);
    if (!f) return cli_nomem(c);
    shells[i].write(f);
    if (fclose(f) != 0) {
        free(text);
        return cli_nomem(c);
    }
    json_t *o = json_object();
    cli_set_text(o, "shell", a->shell);
    cli_set(o, "script", cli_json_text(text, bytes));
    free(text);
    return cli_json_print(c, o, CLI_OK);
}

const cli_command cli_command_completion = {
    .name = "completion",
    .summary = "print rules by which a shell completes lq",
    .about = "With these rules the Tab key completes commands, options, names of schemes and files. An installed lq\n"
             "has them where bash, zsh and fish look by themselves; else read them in a startup file.\n",
    .operands = operands,
    .options = options,
    .examples = "  source <(lq completion bash)                                  in ~/.bashrc\n"
                "  source <(lq completion zsh)                                   in ~/.zshrc, after compinit\n"
                "  lq completion fish > ~/.config/fish/completions/lq.fish       once\n",
    .args_size = sizeof(args),
    .run = run,
};
