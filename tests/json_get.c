/* json_get.c: for the command-line tests: is standard input one valid JSON value, and what is at a path in it?
 *
 * json_get [KEY.KEY.2.KEY]: prints the value at the path, texts without quotes; exit 1 when it is missing, 2 when the
 * input is not valid JSON (trailing text and duplicate keys counted). */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    json_error_t e;
    json_t *root = json_loadf(stdin, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e), *at = root;
    if (!root) return fprintf(stderr, "not JSON: line %d: %s\n", e.line, e.text), 2;
    char *path = argc > 1 ? argv[1] : NULL;
    for (char *key = path ? strtok(path, ".") : NULL; key && at; key = strtok(NULL, ".")) {
        at = json_is_array(at) ? json_array_get(at, (size_t)atoi(key)) : json_object_get(at, key);
    }
    if (!at) return fprintf(stderr, "no such key\n"), 1;
    if (json_is_string(at)) puts(json_string_value(at));
    else if (json_is_array(at)) printf("%zu\n", json_array_size(at));
    else if (path) {
        json_dumpf(at, stdout, JSON_ENCODE_ANY | JSON_REAL_PRECISION(10) | JSON_COMPACT);
        putchar('\n');
    }
    json_decref(root);
    return 0;
}
