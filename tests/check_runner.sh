#!/bin/sh
# check_runner.sh: run.sh itself, over a small tree of tests that pass, fail, hang, and meet each other.
set -u
cd "$(dirname "$0")/.." || exit 1
if [ -z "${T_TMP:-}" ]; then T_TMP=$(mktemp -d) || exit 1; trap 'rm -rf "$T_TMP"' EXIT; fi
passed=0 failed=0
pass() { passed=$((passed + 1)); }
fail() { failed=$((failed + 1)); echo "FAIL: $*"; sed 's/^/    /' "$T_TMP/log"; }
# holds WHAT CONDITION...: test(1) holds.
holds() { what=$1; shift; if [ "$@" ]; then pass; else fail "$what: not [ $* ]"; fi; }

unset RUNNER
tree=$T_TMP/tree
mkdir -p "$tree/tests" "$tree/build/tests" "$T_TMP/tmp"
cp tests/run.sh "$tree/tests"
make_test() { # NAME: a script from standard input
    { echo '#!/bin/sh'; cat; } >"$tree/tests/$1"; chmod +x "$tree/tests/$1"
}
# a and c wait for each other's sign, which two jobs alone can give; each has a folder of its own.
make_test cli_a.sh <<'T'
[ -z "$(ls "$T_TMP")" ] || exit 1
: >"$T_TMP/x"; : >"$SIGNS/a"; until [ -e "$SIGNS/c" ]; do sleep 0.05; done
sleep 0.3; echo 'SKIP: a reason'; echo '1 passed, 0 failed'
T
make_test cli_c.sh <<'T'
[ -z "$(ls "$T_TMP")" ] || exit 1
: >"$T_TMP/x"; : >"$SIGNS/c"; until [ -e "$SIGNS/a" ]; do sleep 0.05; done
mkdir "$T_TMP/closed"; chmod 0 "$T_TMP/closed"; echo '2 passed, 0 failed'
T
make_test cli_b.sh <<'T'
echo 'words of b'; echo '3 passed, 1 failed'; exit 1
T
# run JOBS LIMIT [WITHOUT]: the runner over this tree; what it says, without the seconds.
run() {
    rm -rf "$T_TMP/signs"; mkdir "$T_TMP/signs"
    env -u ONLY WITHOUT="${3:-}" B=build JOBS="$1" LIMIT="$2" SIGNS="$T_TMP/signs" TMPDIR="$T_TMP/tmp" \
        "$tree/tests/run.sh" >"$T_TMP/log" 2>&1
    rc=$?
    sed 's/skipped .*/skipped/; s/  */ /g' "$T_TMP/log" | tr '\n' '|' >"$T_TMP/said"
}
left() { ls "$T_TMP/tmp"; }

run 2 60
holds "a failure fails" $rc -eq 1
holds "reports are whole and in order" "$(cat "$T_TMP/said")" = "SKIP: a reason|cli_a.sh 1 passed 0 failed 1 skipped|\
words of b|3 passed, 1 failed|cli_b.sh 3 passed 1 failed 0 skipped|cli_c.sh 2 passed 0 failed 0 skipped|\
failed: cli_b.sh|6 passed, 1 failed, 1 skipped|"
holds "nothing is left" -z "$(left)"

# One that hangs, and has a child that hangs, is ended and has failed.
rm "$tree/tests/cli_a.sh" "$tree/tests/cli_c.sh"
make_test cli_b.sh <<'T'
sleep 987 & echo $! >"$SIGNS/child"; echo 'before'; wait
T
make_test cli_d.sh <<'T'
echo '1 passed, 0 failed'
T
run 1 1
holds "a hung test fails" $rc -eq 1
holds "a hung test is named" "$(cat "$T_TMP/said")" = "before|FAIL: cli_b.sh did not end within 1 s|\
cli_b.sh 0 passed 1 failed 0 skipped|cli_d.sh 1 passed 0 failed 0 skipped|failed: cli_b.sh| FAIL: cli_b.sh did not end within 1 s|\
1 passed, 1 failed, 0 skipped|"
# alive: whether the child of the hung test runs (a process that ended and was not waited for does not).
alive() {
    sed -n 's/^State:[[:space:]]*\([^Z[:space:]]\).*/alive/p' "/proc/$(cat "$T_TMP/signs/child")/status" 2>/dev/null
}
holds "its children are ended" -z "$(alive)"

# Left out by a pattern, told and counted.
run 1 60 'no_such cli_[a-b]*'
holds "nothing but d runs" $rc -eq 0
holds "what is left out is told" "$(cat "$T_TMP/said")" = "SKIP: cli_b.sh is left out, as asked|\
cli_b.sh 0 passed 0 failed 1 skipped|cli_d.sh 1 passed 0 failed 0 skipped|1 passed, 0 failed, 1 skipped|"

# RUNNER is put before programs, not before scripts.
printf '#!/bin/sh\nexit 1\n' >"$tree/build/tests/test_p"; chmod +x "$tree/build/tests/test_p"
# shellcheck disable=SC2016 # for the script
printf '#!/bin/sh\n[ "${1##*/}" = test_p ] && echo "4 passed, 0 failed"\n' >"$T_TMP/by"; chmod +x "$T_TMP/by"
RUNNER=$T_TMP/by; export RUNNER
run 1 60 cli_b.sh
holds "a run through another command passes" $rc -eq 0
holds "programs run through it" "$(cat "$T_TMP/said")" = "test_p 4 passed 0 failed 0 skipped|\
SKIP: cli_b.sh is left out, as asked|cli_b.sh 0 passed 0 failed 1 skipped|cli_d.sh 1 passed 0 failed 0 skipped|\
5 passed, 0 failed, 1 skipped|"
unset RUNNER
rm "$tree/build/tests/test_p"

# An interrupted run takes its tests and its folder with it. What a shell starts in the background ignores SIGINT: not
# this one.
for signal in INT TERM; do
    rm -f "$T_TMP/signs/child"
    B=build JOBS=2 LIMIT=60 SIGNS="$T_TMP/signs" TMPDIR="$T_TMP/tmp" \
        env -u ONLY -u WITHOUT --default-signal=INT "$tree/tests/run.sh" >"$T_TMP/log" 2>&1 &
    pid=$!
    until [ -s "$T_TMP/signs/child" ]; do sleep 0.05; done
    kill -$signal $pid; wait $pid
    holds "SIG$signal: status" $? -eq 130
    holds "SIG$signal: the test is ended" -z "$(alive)"
    holds "SIG$signal: nothing is left" -z "$(left)"
done

echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
