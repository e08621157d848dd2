/* cli_json.c: JSON output of `lq` over jansson: any bytes and any number become valid JSON.
 *
 * Strings that are not UTF-8 (file names, the text a model makes) get U+FFFD for each bad byte; numbers that are not
 * finite become null. An allocation that fails leaves a field out; printing then still gives valid JSON. */
#include "cli.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Bytes of the valid UTF-8 character at p (n bytes left), 0 = none: no overlong forms, surrogates or beyond
 * U+10FFFF. */
static size_t utf8_length(const unsigned char *p, size_t n) {
    if (p[0] < 0x80) return 1;
    const size_t len = p[0] >= 0xC2 && p[0] <= 0xDF   ? 2
                       : (p[0] & 0xF0) == 0xE0        ? 3
                       : p[0] >= 0xF0 && p[0] <= 0xF4 ? 4
                                                      : 0;
    if (len == 0 || len > n) return 0;
    for (size_t i = 1; i < len; i++) {
        if ((p[i] & 0xC0) != 0x80) return 0;
    }
    if ((p[0] == 0xE0 && p[1] < 0xA0) || (p[0] == 0xED && p[1] > 0x9F)) return 0;
    if ((p[0] == 0xF0 && p[1] < 0x90) || (p[0] == 0xF4 && p[1] > 0x8F)) return 0;
    return len;
}

json_t *cli_json_text(const char *text, size_t bytes) {
    const unsigned char *p = (const unsigned char *)text;
    if (bytes > SIZE_MAX / 3 - 1) return NULL;
    char *clean = malloc(bytes * 3 + 1);
    if (!clean) return NULL;
    size_t n = 0;
    for (size_t i = 0; i < bytes;) {
        const size_t len = utf8_length(p + i, bytes - i);
        if (len) {
            memcpy(clean + n, p + i, len);
            n += len, i += len;
        } else {
            memcpy(clean + n, "\xEF\xBF\xBD", 3);
            n += 3, i++;
        }
    }
    json_t *value = json_stringn_nocheck(clean, n);
    free(clean);
    return value;
}

/* json_object_set_new refuses NULL and releases the value when it fails: nothing is left to do. */
void cli_set(json_t *object, const char *key, json_t *value) { (void)json_object_set_new(object, key, value); }

void cli_set_text(json_t *object, const char *key, const char *text) {
    cli_set(object, key, cli_json_text(text, strlen(text)));
}

void cli_set_int(json_t *object, const char *key, uint64_t value) {
    cli_set(object, key, json_integer((json_int_t)value));
}

void cli_set_real(json_t *object, const char *key, double value) {
    cli_set(object, key, isfinite(value) ? json_real(value) : json_null());
}

void cli_set_bool(json_t *object, const char *key, bool value) { cli_set(object, key, json_boolean(value)); }

int cli_json_print(cli *c, json_t *value, int code) {
    if (!value) return cli_nomem(c);
    const int failed = json_dumpf(value, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
    json_decref(value);
    if (!failed) putchar('\n');
    return cli_finish(c, code);
}
