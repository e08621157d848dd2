#!/bin/sh
# fuzz.sh SECONDS TARGET...: run fuzz targets, JOBS at once (2), and say how many inputs each took and what it reached.
#
# A target is a libFuzzer program FOLDER/fuzz_NAME. Its corpus grows in FOLDER/corpus-NAME, from the seeds in
# tests/golden/fuzz-NAME and with the words of tests/golden/fuzz-NAME.dict where there are such. An input that crashes,
# leaks, hangs for 10 s or takes 2 GiB is kept as FOLDER/NAME-crash-... and the script fails, once all had their time.
# "edges" are the branches of compiled code that the corpus reaches, "features" what libFuzzer tells apart.
set -u
cd "$(dirname "$0")/.." || exit 1

one() { # SECONDS TARGET
    seconds=$1 target=$2
    name=${target##*/fuzz_}
    case "$target" in /*) ;; *) target=./$target ;; esac
    out=${target%/*} corpus=${target%/*}/corpus-$name log=${target%/*}/$name.log
    mkdir -p "$corpus" || return 1
    seeds=tests/golden/fuzz-$name
    set -- "$corpus"
    [ ! -d "$seeds" ] || set -- "$@" "$seeds"
    [ ! -f "$seeds.dict" ] || set -- -dict="$seeds.dict" "$@"
    T_TMP=$(mktemp -d "${TMPDIR:-/tmp}/lq-fuzz.XXXXXX") || return 1
    export T_TMP
    trap 'rm -rf "$T_TMP"' EXIT
    trap 'exit 130' INT TERM
    "$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 -verbosity=1 \
        -artifact_prefix="$out/$name-" "$@" >"$log" 2>&1
    rc=$?
    # "0m3.1s 0m0.2s": user and system time, of this shell and of the target
    times >"$T_TMP/times"
    cpu=$(awk 'NR == 2 { for (i = 1; i <= 2; i++) { split($i, t, /[ms]/); s += 60 * t[1] + t[2] }
        printf "%d", s + 0.5 }' "$T_TMP/times")
    runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
    if [ "$rc" -ne 0 ] || [ "${runs:-0}" -eq 0 ]; then
        tail -60 "$log"
        echo "fuzz_$name: FAILED after ${runs:-some} inputs (status $rc)"
        return 1
    fi
    reached=$(sed -n 's/.* cov: \([0-9]*\) ft: \([0-9]*\) .*/\1 edges, \2 features/p' "$log" | tail -1)
    echo "fuzz_$name: $runs inputs in $seconds s ($cpu CPU s), ${reached:-nothing reached}, $(find "$corpus" -type f | wc -l) kept"
}

if [ "${1:-}" = one ]; then
    one "$2" "$3"
    exit
fi
seconds=${1:?"usage: fuzz.sh SECONDS TARGET..."}
shift
[ $# -gt 0 ] || { echo "fuzz.sh: no target"; exit 1; }
printf '%s\n' "$@" | xargs -P "${JOBS:-2}" -n 1 "$0" one "$seconds"
rc=$?
[ "$rc" -eq 0 ] && echo "fuzz: $# targets passed" || echo "fuzz: FAILED"
exit "$rc"
