/* replay.c: runs a fuzz target over files, without a fuzzer: the seeds as a test with any compiler and sanitizer, and
 * one input under a debugger. A folder stands for its files. The target ends the program where something does not
 * hold. */
#include "help_fuzz.h"

#include <dirent.h>
#include <sys/stat.h>

/* Mutation is libFuzzer's. */
size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max) {
    Q_UNUSED(data);
    Q_UNUSED(max);
    return size;
}

static unsigned runs;

static void run_file(const char *path) {
    FILE *f = fopen(path, "rb");
    demand(f);
    uint8_t *data = NULL;
    size_t n = 0, cap = 0;
    for (size_t got = 1; got; n += got) {
        if (n == cap) {
            cap = cap ? cap * 2 : 65536;
            data = (uint8_t *)realloc(data, cap);
            demand(data);
        }
        got = fread(data + n, 1, cap - n, f);
    }
    fclose(f);
    uint8_t *input = (uint8_t *)fuzz_copy(data, n);
    free(data);
    fprintf(stderr, "%s\n", path); /* the last one is the one that failed */
    LLVMFuzzerTestOneInput(input, n);
    free(input);
    runs++;
}

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        struct stat st;
        demand(stat(argv[i], &st) == 0);
        if (!S_ISDIR(st.st_mode)) {
            run_file(argv[i]);
            continue;
        }
        DIR *d = opendir(argv[i]);
        demand(d);
        for (struct dirent *e; (e = readdir(d));) {
            char path[4096];
            snprintf(path, sizeof path, "%s/%s", argv[i], e->d_name);
            if (e->d_name[0] != '.') run_file(path);
        }
        closedir(d);
    }
    printf("%u inputs\n", runs);
    return runs == 0;
}
