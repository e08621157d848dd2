# cli_lib.sh: what the command-line tests share; read with `.`, not run.
#
# A check runs a command (call CMD...), then asserts on $rc, the files $out and $err. Standard input is empty. finish
# prints the closing line that run.sh reads.
set -u
T_ROOT=${T_ROOT:-$(pwd)}
T_TMP=${T_TMP:-$(mktemp -d)}
B=${B:-build}
case $B in /*) ;; *) B=$T_ROOT/$B ;; esac
LQ=$B/lq
POCKET=$T_ROOT/bench/data/pocket
TEXT=$T_ROOT/bench/data/text
out=$T_TMP/out err=$T_TMP/err
passed=0 failed=0
cd "$T_TMP" || exit 1
unset NO_COLOR
# Drivers keep memory until the process ends, and are not built for sanitizers: there only the scripts that are about
# devices (T_DEVICES=1) let Vulkan find one, and then leaks are not looked for.
if [ -n "${SAN:-}" ]; then
    if [ -n "${T_DEVICES:-}" ]; then export ASAN_OPTIONS="${ASAN_OPTIONS:+$ASAN_OPTIONS:}detect_leaks=0"
    else export VK_ICD_FILENAMES=/dev/null VK_DRIVER_FILES=/dev/null; fi
fi

pass() { passed=$((passed + 1)); }
fail() {
    failed=$((failed + 1))
    echo "FAIL: $*"
    [ ! -s "$err" ] || sed 's/^/    stderr: /' "$err" | head -5
}
skip() { echo "SKIP: $*"; }

call() { "$@" >"$out" 2>"$err" </dev/null; rc=$?; }
# exits CODE WHAT CMD...: the command ends with this code.
exits() {
    _want=$1 _what=$2; shift 2
    call "$@"
    if [ "$rc" -eq "$_want" ]; then pass; else fail "$_what: exit $rc, expected $_want: $*"; fi
}
# interrupts SIGNAL SECONDS CMD...: a program (no shell function) that gets a signal after a while; $rc, $out and $err
# as with call. It has to end with 128 + the signal, unless it was done before.
interrupts() {
    _signal=$1 _pause=$2; shift 2
    "$@" >"$out" 2>"$err" </dev/null & _pid=$!
    sleep "$_pause"
    _state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' /proc/$_pid/status 2>/dev/null)
    kill -"$_signal" $_pid 2>/dev/null; wait $_pid; rc=$?
    case $_signal in INT) _want=130 ;; *) _want=143 ;; esac
    if [ "$rc" -eq $_want ]; then pass
    elif [ "$rc" -eq 0 ] && [ "${_state:-Z}" = Z ]; then skip "the machine was faster than SIG$_signal: $*"
    else fail "SIG$_signal after $_pause s: exit $rc, expected $_want: $*"; fi
}
# says WHAT PATTERN [FILE]: standard error (or FILE) has a line that matches.
says() { if grep -q -e "$2" "${3:-$err}"; then pass; else fail "$1: nothing like '$2' was said"; fi; }
silent() { if [ ! -s "$out" ]; then pass; else fail "$1: standard output is not empty"; fi; }
# holds WHAT CONDITION...: test(1) holds.
holds() { _what=$1; shift; if [ "$@" ]; then pass; else fail "$_what: not [ $* ]"; fi; }
same() { if cmp -s "$2" "$3"; then pass; else fail "$1: $2 and $3 differ"; fi; }
absent() { if [ ! -e "$2" ]; then pass; else fail "$1: $2 exists"; fi; }

# A JSON reader of our own: json PATH prints what is there in $out.
${CC:-cc} ${SAN:+-fsanitize=$SAN} -o "$T_TMP/json_get" "$T_ROOT/tests/json_get.c" -ljansson || exit 1
json() { "$T_TMP/json_get" "$@" <"$out" 2>>"$err"; }
# json_is WHAT: $out is one valid JSON value. has WHAT KEY...: and has these keys.
json_is() { if json >/dev/null; then pass; else fail "$1: not one valid JSON value"; fi; }
has() {
    _what=$1; shift
    for key in "$@"; do
        if json "$key" >/dev/null; then pass; else fail "$_what: no JSON key $key"; fi
    done
}
# compare WHAT A OP B: for numbers that may have fractions.
compare() {
    if awk "BEGIN { exit !(($2) $3 ($4)) }" </dev/null 2>>"$err"; then pass; else fail "$1: not $2 $3 $4"; fi
}

finish() {
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
    exit
}
