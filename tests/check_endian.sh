#!/bin/sh
# check_endian.sh: a compiler for a big-endian machine is refused, by a sentence that says why, in every file of the
# library that is not for one processor alone. The compiler here plays such a one by its macro.
set -u
cd "$(dirname "$0")/.." || exit 1
tmp=$(mktemp -d "${T_TMP:-${TMPDIR:-/tmp}}/endian.XXXXXX") || exit 1
trap 'rm -rf "$tmp"' EXIT
passed=0 failed=0
compile() { # FILE [OPTION...]: 0 = it compiles
    file=$1; shift
    # shellcheck disable=SC2086 # CC may be a command with options
    ${CC:-cc} -std=c11 -D_GNU_SOURCE -DQ_HOST -fsyntax-only -x c "$@" "$file" >"$tmp/log" 2>&1
}
result() { # OK WHAT
    if [ "$1" = 1 ]; then passed=$((passed + 1)); else failed=$((failed + 1)); echo "FAIL: $2"; sed 's/^/    /' "$tmp/log"; fi
}

compile libquant/base.h
result "$([ $? -eq 0 ] && echo 1)" 'base.h compiles for this machine'
for f in libquant/*.c libquant/*/*.c kernels/ref/*.c kernels/cpu/*.c; do
    [ "$f" != libquant/quant_all.c ] || continue # includes the others
    compile "$f" -U__BYTE_ORDER__ -D__BYTE_ORDER__=__ORDER_BIG_ENDIAN__
    result "$([ $? -ne 0 ] && grep -q 'error:.*big-endian machines are not supported' "$tmp/log" && echo 1)" \
        "$f is not refused on a big-endian machine"
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
