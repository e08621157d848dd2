/* cli_scheme.c: what the commands of `lq` know of a scheme's words beyond lq_scheme_name: whether it writes a
 * directory. What the words mean is the library's; it refuses those that are none. */
#include "cli.h"

#include <string.h>

bool cli_scheme_has(const char *scheme, const char *word) {
    const size_t n = strlen(word);
    for (const char *at = scheme; at; at = strchr(at, '+')) {
        if (*at == '+') at++;
        if (strncmp(at, word, n) == 0 && (!at[n] || at[n] == '+' || at[n] == ':')) return true;
    }
    return false;
}

bool cli_scheme_is_directory(const char *scheme) {
    static const char begins[] = "Hugging Face directory"; /* the description of each, and of no other */
    const char *description = "";
    for (uint32_t i = 0; i < lq_scheme_count(); i++)
        if (cli_scheme_has(scheme, lq_scheme_name(i, &description)))
            return strncmp(description, begins, sizeof begins - 1) == 0;
    return false;
}
