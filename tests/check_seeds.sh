#!/bin/sh
# check_seeds.sh: every fuzz target still accepts its own seeds, in this build: tests/golden/fuzz-NAME through NAME.
#
# With CORPORA=FOLDER what fuzzing has kept there (corpus-NAME) goes through as well. SEEDS=0 skips: coverage.sh wants
# to know what the other tests reach.
set -u
cd "$(dirname "$0")/.." || exit 1
B=${B:-build}
T_TMP=${T_TMP:-$(mktemp -d)}; export T_TMP
passed=0 failed=0
[ "${SEEDS:-1}" != 0 ] || { echo "SKIP: seeds, as asked"; echo "0 passed, 0 failed"; exit 0; }
for seeds in tests/golden/fuzz-*; do
    [ -d "$seeds" ] || continue
    name=${seeds##*/fuzz-} kept=
    [ ! -d "${CORPORA:-/none}/corpus-$name" ] || kept=$CORPORA/corpus-$name
    # shellcheck disable=SC2086 # nothing or one folder
    if "$B/replay/$name" "$seeds" $kept >"$T_TMP/out" 2>&1; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL: $name"; tail -30 "$T_TMP/out"; fi
done
for target in tests/fuzz_*.c; do
    name=${target##*/fuzz_} name=${name%.c}
    if [ -d "tests/golden/fuzz-$name" ]; then passed=$((passed + 1))
    else failed=$((failed + 1)); echo "FAIL: $target has no seeds in tests/golden/fuzz-$name"; fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
