#!/bin/sh
# run.sh: run every test program and test script, add up, and end with "N passed, N failed, N skipped".
#
# A program prints Check's closing line; a script prints "N passed, N failed" as its last line. Lines "SKIP: why" are
# counted as skipped tests. Everything a test writes lies below a temporary folder that is removed here.
set -u
cd "$(dirname "$0")/.." || exit 1
B=${B:-build}
T_ROOT=$(pwd); export T_ROOT
export CK_DEFAULT_TIMEOUT="${CK_DEFAULT_TIMEOUT:-300}"
export LSAN_OPTIONS="${LSAN_OPTIONS:-print_suppressions=0}"
tmp=$(mktemp -d "${TMPDIR:-/tmp}/lq-test.XXXXXX") || exit 1
trap 'chmod -R u+rwx "$tmp" 2>/dev/null; rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
passed=0 failed=0 skipped=0
only=${ONLY:-}
for t in "$B"/tests/test_* tests/check_*.sh tests/cli_*.sh; do
    [ -x "$t" ] || continue
    case "$t" in *.d|*.o) continue ;; esac
    [ -z "$only" ] || case "$t" in *$only*) ;; *) continue ;; esac
    name=$(basename "$t"); T_TMP="$tmp/$name"; export T_TMP; mkdir -p "$T_TMP"
    begin=$(date +%s)
    B="$B" "$t" >"$tmp/out" 2>&1; rc=$?
    s=$(grep -c '^SKIP: ' "$tmp/out")
    line=$(grep -E '^[0-9]+%: Checks: ' "$tmp/out" | tail -1)
    if [ -n "$line" ]; then
        c=$(echo "$line" | sed 's/.*Checks: \([0-9]*\).*/\1/')
        f=$(echo "$line" | sed 's/.*Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 + \2/'); f=$(($f))
        p=$((c - f - s))
    else
        line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$tmp/out" | tail -1)
        p=$(echo "${line:-0}" | sed 's/ passed.*//'); f=$(echo "${line:-0, 0 f}" | sed 's/.*, \([0-9]*\) f.*/\1/')
    fi
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then f=1; fi
    if [ "$rc" -eq 0 ] && [ $((p + f + s)) -eq 0 ]; then echo "no test ran in $name" >>"$tmp/out"; f=1; fi
    [ "$f" -eq 0 ] || cat "$tmp/out"
    [ "$f" -ne 0 ] || grep '^SKIP: ' "$tmp/out"
    printf '%-28s %4d passed %3d failed %3d skipped  %4d s\n' "$name" "$p" "$f" "$s" $(($(date +%s) - begin))
    passed=$((passed + p)); failed=$((failed + f)); skipped=$((skipped + s))
    chmod -R u+rwx "$T_TMP" 2>/dev/null; rm -rf "$T_TMP"
done
echo "$passed passed, $failed failed, $skipped skipped"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
