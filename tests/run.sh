#!/bin/sh
# run.sh: run every test program and test script, add up, and end with "N passed, N failed, N skipped".
#
# Up to JOBS tests run at once (the number of processors, at most 4, unless set), those that took longest last time
# first; what they say comes out whole and in the order of their names. A test that takes longer than LIMIT seconds is
# ended and has failed. ONLY=part of a name picks tests; WITHOUT=names, which may be patterns, leaves some out, each
# counted as skipped. RUNNER=a command runs the test programs, such as an emulator of the processor that they are for.
#
# A program prints Check's closing line; a script prints "N passed, N failed" as its last line. Lines "SKIP: why" are
# counted as skipped tests. Everything a test writes lies below a folder of its own, T_TMP, that is removed here.
set -u
cd "$(dirname "$0")/.." || exit 1
B=${B:-build}; export B
T_ROOT=$(pwd); export T_ROOT
export CK_DEFAULT_TIMEOUT="${CK_DEFAULT_TIMEOUT:-300}"
export LSAN_OPTIONS="${LSAN_OPTIONS:-print_suppressions=0}"
LIMIT=${LIMIT:-900}
RUNNER=${RUNNER:-}
if [ "$RUNNER" ]; then T_EMULATED=1; CK_TIMEOUT_MULTIPLIER=20; export T_EMULATED CK_TIMEOUT_MULTIPLIER; fi
JOBS=${JOBS:-}
if [ -z "$JOBS" ]; then
    JOBS=$(nproc 2>/dev/null || echo 1)
    [ "$JOBS" -le 4 ] || JOBS=4
fi
tmp=$(mktemp -d "${TMPDIR:-/tmp}/lq-test.XXXXXX") || exit 1
workers=
clean() { chmod -R u+rwx "$tmp" 2>/dev/null; rm -rf "$tmp"; }
# shellcheck disable=SC2086 # a list of process ids
stop() {
    trap '' INT TERM
    [ -z "$workers" ] || kill -TERM $workers 2>/dev/null
    wait
    exit 130
}
trap clean EXIT
trap stop INT TERM

# The tests by name, and in the order in which they are begun: one never seen counts as a long one, scripts the most.
seen=$B/tests/seconds
[ -s "$seen" ] || seen=/dev/null
only=${ONLY:-} count=0
for t in "$B"/tests/test_* tests/check_*.sh tests/cli_*.sh; do
    [ -x "$t" ] || continue
    case "$t" in *.d|*.o) continue ;; esac
    [ -z "$only" ] || case "$t" in *$only*) ;; *) continue ;; esac
    count=$((count + 1))
    printf '%s\n' "$t" >"$tmp/$count.path"
    awk -v name="${t##*/}" -v i=$count '$1 == name { s = $2 }
        END { print (s != "" ? s : name ~ /^cli_/ ? 9999 : 9998), i }' "$seen"
done >"$tmp/order"
order=$(sort -k1,1nr -k2,2n "$tmp/order" | cut -d' ' -f2)
count=$(wc -l <"$tmp/order")

# left_out NAME: it matches a word of WITHOUT.
left_out() {
    set -f
    for pattern in ${WITHOUT:-}; do
        # shellcheck disable=SC2254 # a pattern is meant as one
        case $1 in $pattern) set +f; return 0 ;; esac
    done
    set +f
    return 1
}

# run_one I: the test with this number; its report and its figures become files. The limiter gives the test a group of
# processes of its own, which a signal to the limiter ends whole; background processes of a shell ignore SIGINT, and
# what they start would inherit that.
run_one() {
    read -r t <"$tmp/$1.path"
    name=${t##*/} report=$tmp/$1.out begin=$(date +%s)
    T_TMP=$tmp/$name; export T_TMP; mkdir -p "$T_TMP"
    if left_out "$name"; then echo "SKIP: $name is left out, as asked" >"$report"; rc=0
    else
        case "$t" in "$B"/*) runner=$RUNNER ;; *) runner= ;; esac
        # shellcheck disable=SC2086 # a command and its options
        env --default-signal=INT,QUIT timeout -k 10 "$LIMIT" $runner "$t" >"$report" 2>&1 </dev/null &
        child=$!
        wait $child; rc=$?
        child=
    fi
    s=$(grep -c '^SKIP: ' "$report")
    line=$(grep -E '^[0-9]+%: Checks: ' "$report" | tail -1)
    if [ -n "$line" ]; then
        c=$(echo "$line" | sed 's/.*Checks: \([0-9]*\).*/\1/')
        f=$(echo "$line" | sed 's/.*Failures: \([0-9]*\), Errors: \([0-9]*\).*/\1 + \2/'); f=$(($f))
        p=$((c - f - s))
    else
        line=$(grep -E '^[0-9]+ passed, [0-9]+ failed' "$report" | tail -1)
        p=$(echo "${line:-0}" | sed 's/ passed.*//'); f=$(echo "${line:-0, 0 f}" | sed 's/.*, \([0-9]*\) f.*/\1/')
    fi
    case $rc in 124|137) echo "FAIL: $name did not end within $LIMIT s" >>"$report"; f=$((f + 1)) ;; esac
    if [ "$rc" -ne 0 ] && [ "$f" -eq 0 ]; then echo "FAIL: $name ended with status $rc" >>"$report"; f=1; fi
    if [ "$rc" -eq 0 ] && [ $((p + f + s)) -eq 0 ]; then echo "no test ran in $name" >>"$report"; f=1; fi
    chmod -R u+rwx "$T_TMP" 2>/dev/null; rm -rf "$T_TMP"
    echo "$name $p $f $s $(($(date +%s) - begin))" >"$tmp/$1.part"
    mv "$tmp/$1.part" "$tmp/$1.done"
}

# Print what is complete up to the first test that still runs; one worker at a time.
flush() {
    until mkdir "$tmp/printing" 2>/dev/null; do sleep 0.1; done
    while next=$(($(cat "$tmp/printed") + 1)) && [ -e "$tmp/$next.done" ]; do
        read -r name p f s seconds <"$tmp/$next.done"
        if [ "$f" -ne 0 ]; then cat "$tmp/$next.out"; else grep '^SKIP: ' "$tmp/$next.out"; fi
        printf '%-28s %4d passed %3d failed %3d skipped  %4d s\n' "$name" "$p" "$f" "$s" "$seconds"
        echo "$next" >"$tmp/printed"
    done
    rmdir "$tmp/printing"
}

worker() {
    child=
    trap - EXIT
    trap '[ -z "$child" ] || { kill -TERM $child; wait $child; } 2>/dev/null; exit 130' TERM
    for i in $order; do
        mkdir "$tmp/$i.taken" 2>/dev/null || continue
        run_one "$i"
        flush
    done
}

echo 0 >"$tmp/printed"
n=0
while [ $n -lt "$JOBS" ]; do worker & workers="$workers $!"; n=$((n + 1)); done
wait

[ "$(cat "$tmp/printed")" -eq "$count" ] || { echo "FAIL: a worker of run.sh was lost"; exit 1; }
for i in $order; do cat "$tmp/$i.done"; done >"$tmp/all"
{ awk '{ print $1, $5 }' "$tmp/all"; cat "$seen"; } | awk '!had[$1]++' >"$tmp/seconds"
cp "$tmp/seconds" "$B/tests/seconds" 2>/dev/null
# What failed once more, at the end, where a long log is looked at first.
for i in $order; do
    read -r name _ f _ <"$tmp/$i.done"
    [ "$f" -eq 0 ] || { echo "failed: $name"; grep -E '^FAIL: |:[FE]:' "$tmp/$i.out" | head -n 5 | sed 's/^/    /'; }
done
awk '{ p += $2; f += $3; s += $4 }
     END { printf "%d passed, %d failed, %d skipped\n", p, f, s; exit f > 0 || p == 0 }' "$tmp/all"
