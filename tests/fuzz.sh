#!/bin/sh
# fuzz.sh TARGET SECONDS: run one fuzz target and say how many inputs it took.
#
# TARGET is a libFuzzer program build/fuzz/fuzz_NAME. The corpus grows in build/fuzz/corpus-NAME, from the seeds in
# tests/golden/fuzz-NAME where there are some. An input that crashes, leaks, hangs for 10 s or takes 2 GiB is kept in
# build/fuzz as crash-..., and the script fails.
set -u
cd "$(dirname "$0")/.." || exit 1
target=${1:?"usage: fuzz.sh TARGET SECONDS"}
seconds=${2:-60}
name=$(basename "$target" | sed 's/^fuzz_//')
case "$target" in /*) ;; *) target=./$target ;; esac
out=$(dirname "$target")
corpus=$out/corpus-$name
log=$out/$name.log
mkdir -p "$corpus" || exit 1
seeds=tests/golden/fuzz-$name
[ -d "$seeds" ] || seeds=
T_TMP=$(mktemp -d "${TMPDIR:-/tmp}/lq-fuzz.XXXXXX") || exit 1
export T_TMP
trap 'rm -rf "$T_TMP"' EXIT
trap 'exit 130' INT TERM
# shellcheck disable=SC2086 # no seeds: no argument
"$target" -max_total_time="$seconds" -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 -verbosity=1 \
    -artifact_prefix="$out/" "$corpus" $seeds >"$log" 2>&1
rc=$?
runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -1)
if [ "$rc" -ne 0 ]; then
    tail -60 "$log"
    echo "fuzz_$name: FAILED after ${runs:-some} inputs"
    exit 1
fi
echo "fuzz_$name: ${runs:-0} inputs in $seconds s, $(find "$corpus" -type f | wc -l) kept"
[ "${runs:-0}" -gt 0 ]
