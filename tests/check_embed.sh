#!/bin/sh
# check_embed.sh: the library as one file, as another project would build it: copied to a folder of its own with
# libquant.h, compiled without this tree's flags, linked into a program.
#
# The compilers are given fused multiply-add instructions and their default (GNU) mode, in which they would use them
# unasked: the program still has to write the same file and compute the same logits as with libquant.a.
set -u
cd "$(dirname "$0")/.." || exit 1
T_TMP=${T_TMP:-$(mktemp -d)}
B=${B:-build}
root=$(pwd)
pocket=$root/bench/data/pocket
passed=0 failed=0
pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAIL: $1"; [ ! -s "${2:-}" ] || head -20 "$2"; }
skip() { echo "SKIP: $*"; }
if [ -n "${SAN:-}${T_SLOW:-}" ]; then
    skip 'the library as one file is compared with a build without sanitizers and coverage'
    exit 0
fi

MAKEFLAGS='' make -s --no-print-directory SETUP=0 B="$B" CC="${CC:-cc}" embed >"$T_TMP/log" 2>&1
cp "$B/embed/quant_all.c" "$B/embed/libquant.h" "$T_TMP/" 2>>"$T_TMP/log" || { fail 'make embed' "$T_TMP/log"; exit 1; }
lib=$B/libquant.a
case $lib in /*) ;; *) lib=$root/$lib ;; esac
cd "$T_TMP" || exit 1

# Nothing is missing and nothing is there twice, whatever the processor.
for f in $(cd "$root" && find libquant kernels/ref kernels/cpu -name '*.c'); do
    n=$(grep -cF "/* ======== $f */" quant_all.c)
    if [ "$n" -eq 1 ]; then pass; else fail "$f is $n times in quant_all.c"; fi
done
if grep -q '#include "' quant_all.c; then fail 'quant_all.c includes files of the tree'; else pass; fi

# A program that prints what must not depend on how the library was built.
cat >program.c <<'C'
#include "libquant.h"

#include <stdio.h>
#include <string.h>

int main(int argc, char **argv) {
    static const char *const isas[] = {"scalar", NULL};
    const lq_quantize_options how = {.size = sizeof how, .scheme = "q4_k_m"};
    for (int i = 0; i < 2 && argc == 3; i++) {
        const lq_options options = {.size = sizeof options, .isa = isas[i], .threads = 2};
        lq_stats stats = {.size = sizeof stats};
        lq_ctx *ctx;
        lq_model *model;
        lq_session *session;
        int32_t ids[64];
        size_t n = 64;
        if (lq_open(&options, &ctx) || (i == 0 && lq_quantize(ctx, argv[1], argv[2], &how, NULL)) ||
            lq_model_open(ctx, argv[2], NULL, &model) || lq_session_open(model, NULL, &session) ||
            lq_tokenize(model, "Once upon a time", 16, LQ_TOKENIZE_BOS, ids, &n) ||
            lq_decode(session, &(lq_item){.ids = ids, .count = n, .logits_from = n - 1}, 1) ||
            lq_session_stats(session, &stats))
            return fprintf(stderr, "%s\n", lq_error_detail()), 1;
        printf("%08x\n", stats.last_logits_hash);
        lq_session_close(session);
        lq_model_close(model);
        lq_close(ctx);
    }
    return 0;
}
C
libs='-lm -pthread'
fma=
case $(uname -m) in x86_64) grep -qw fma /proc/cpuinfo && fma=-mfma ;; esac
# shellcheck disable=SC2086
if ${CC:-cc} -o of_tree program.c "$lib" $libs 2>log &&
    ./of_tree "$pocket" of_tree.gguf >of_tree.out 2>log; then pass; else fail 'the program with libquant.a' log; fi

for cc in gcc clang; do
    command -v $cc >/dev/null 2>&1 || { skip "$cc is not here: the library as one file"; continue; }
    rm -f log
    # clang without optimization: its frames are the largest then, and it fuses unasked all the same.
    case $cc in gcc) level=-O1 ;; *) level=-O0 ;; esac
    # shellcheck disable=SC2086
    if $cc $level $fma -Wall -Wextra -fPIC -c quant_all.c -o $cc.o >log 2>&1 && [ ! -s log ]; then pass
    else fail "$cc: quant_all.c does not compile without a message" log; continue; fi
    # shellcheck disable=SC2086
    if $cc -o $cc.program program.c $cc.o $libs >log 2>&1 && ./$cc.program "$pocket" $cc.gguf >$cc.out 2>log; then pass
    else fail "$cc: the program with quant_all.c" log; continue; fi
    if cmp -s of_tree.out $cc.out; then pass; else fail "$cc: other logits than with libquant.a"; fi
    if cmp -s of_tree.gguf $cc.gguf; then pass; else fail "$cc: another file than with libquant.a"; fi
    # shellcheck disable=SC2086
    $cc -shared -o $cc.so $cc.o $libs 2>log && nm -D --defined-only $cc.so | grep -v ' lq_' >log
    if [ -e $cc.so ] && [ ! -s log ]; then pass; else fail "$cc: a shared object shows more than lq_*" log; fi
done

# Other processors get none of these kernels.
cross=aarch64-linux-gnu-gcc
if command -v $cross >/dev/null 2>&1; then
    if $cross -O0 -c quant_all.c -o cross.o >log 2>&1; then pass; else fail "$cross: quant_all.c" log; fi
else skip "$cross is not here: the library as one file for another processor"; fi

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
