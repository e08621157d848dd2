#!/bin/sh
# cli_basic.sh: usage, help, errors and their exit codes, closed descriptors, lq info.
. "$(dirname "$0")/cli_lib.sh"
commands="quantize info run embed eval"

# Help teaches, on standard output; wrong usage goes to standard error.
exits 2 "no command" "$LQ"; silent "no command"; says "no command" "Usage: lq"
exits 0 "help" "$LQ" help; says "help" "bench quality" "$out"
exits 0 "--help" "$LQ" --help
exits 0 "version" "$LQ" --version; says "version" "^lq 0\.[0-9]*\.[0-9]* (libquant " "$out"
for c in $commands "bench quality" "bench model"; do
    # shellcheck disable=SC2086
    exits 0 "help $c" "$LQ" help $c; says "help $c" "^Examples" "$out"; says "help $c" "--json" "$out"
    cp "$out" "$T_TMP/help"
    # shellcheck disable=SC2086
    exits 0 "$c --help" "$LQ" $c --help; same "$c --help" "$out" "$T_TMP/help"
    if awk 'length > 120 { exit 1 }' "$out"; then pass; else fail "$c --help: a line is too long"; fi
done
exits 0 "help bench" "$LQ" help bench; says "help bench" "bench model" "$out"
exits 2 "bench alone" "$LQ" bench; says "bench alone" "bench quality"
exits 2 "bench x" "$LQ" bench speed; says "bench x" "bench model"
exits 2 "unknown command" "$LQ" quantise; says "unknown command" "nearest is 'quantize'"
exits 2 "unknown help" "$LQ" help quantise

# Wrong usage is refused before anything is loaded.
exits 2 "unknown option" "$LQ" quantize none none --bits 17; says "unknown option" "nearest is --scheme NAME"
says "unknown option" "lq quantize --help"
exits 2 "misspelt option" "$LQ" eval none --txet f; says "misspelt option" "nearest is --text FILE"
exits 2 "unknown letter" "$LQ" run none -Z; says "unknown letter" "unknown option -Z"
for v in 0 -1 1e9 99999999999999999999999 4x '' ' 2'; do
    exits 2 "--threads '$v'" "$LQ" run none -p x --threads "$v"; says "--threads '$v'" "a whole number from 1 to"
done
exits 2 "--threads=0" "$LQ" run none -p x --threads=0
exits 2 "--ctx 1" "$LQ" run none -p x --ctx 1
exits 2 "--temp -1" "$LQ" run none -p x --temp -1; says "--temp" "a number from 0"
exits 2 "--temp nan" "$LQ" run none -p x --temp nan
exits 2 "--top-p 1,5" "$LQ" run none -p x --top-p 0,5
exits 2 "missing value" "$LQ" run none -p; says "missing value" "prompt needs a value"
exits 2 "missing value" "$LQ" eval none --text --json; says "missing value" "text needs a value"
exits 2 "flag with value" "$LQ" quantize a b --scheme q8_0 --force=1; says "flag with value" "takes no value"
exits 2 "missing operand" "$LQ" quantize; says "missing operand" "SRC is missing"
exits 2 "missing operand" "$LQ" eval --text x; says "missing operand" "MODEL is missing"
exits 2 "first operand of two" "$LQ" quantize a --scheme q8_0; says "first operand of two" "DST is missing"
for v in 0.5 1 2e0 .5; do exits 4 "--temp $v" "$LQ" run none.gguf -p x --temp "$v"; done # the file is what is wrong
exits 2 "--temp empty" "$LQ" run none.gguf -p x --temp ''
exits 4 "an option twice" "$LQ" run none.gguf -p x --threads 1 -t2
exits 4 "an operand like an option" "$LQ" info -- --none.gguf; says "an operand like an option" "cannot open --none.gguf"
exits 4 "a value like an option" "$LQ" run none.gguf --prompt=--json; silent "a value like an option"
exits 4 "a list" "$LQ" bench quality --model none.gguf --text a --text=b --schemes q8_0; says "a list" "none.gguf"
exits 2 "letters together" "$LQ" run none.gguf -hx
exits 2 "too many operands" "$LQ" run a b -p x; says "too many operands" "unexpected argument 'b'"
exits 2 "unknown scheme" "$LQ" quantize none none --scheme q4_k_n; says "unknown scheme" "nearest is q4_k_[ms]"
exits 2 "info of nothing" "$LQ" info
exits 2 "info of two" "$LQ" info --schemes --formats
exits 2 "activations" "$LQ" eval none --text x --activations f64

# Errors as JSON: the object on standard output, the text on standard error.
exits 2 "JSON usage" "$LQ" run none --json --bits; json_is "JSON usage"
holds "JSON usage" "$(json error.status)" = LQ_E_ARG; holds "JSON usage" "$(json error.exit)" = 2
exits 4 "JSON missing file" "$LQ" info none.gguf --json; json_is "JSON missing file"
holds "JSON missing file" "$(json error.status)" = LQ_E_IO; says "JSON missing file" "none.gguf"

# Exit codes for files.
exits 4 "no such file" "$LQ" info none.gguf; says "no such file" "none.gguf"; silent "no such file"
: >empty.gguf
exits 3 "empty file" "$LQ" info empty.gguf; says "empty file" "empty.gguf"
printf 'GGUF\003\000\000\000' >short.gguf
exits 3 "truncated file" "$LQ" info short.gguf
printf 'GGUF\011\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000' >new.gguf
exits 6 "later version" "$LQ" info new.gguf
head -c 4096 /dev/urandom >noise.gguf
exits 3 "noise" "$LQ" info noise.gguf
mkdir -p folder && exits 3 "folder without a model" "$LQ" info folder; says "folder without a model" "config.json"
cp "$POCKET/model.safetensors" x.gguf && exits 3 "wrong name" "$LQ" run x.gguf -p a

# lq info.
exits 0 "info" "$LQ" info "$POCKET"; says "info" "architecture  *llama" "$out"; says "info" "ffn_down" "$out"
says "info" "memory to run" "$out"
exits 0 "info JSON" "$LQ" info "$POCKET" --json --tensors --meta --ctx 128; json_is "info JSON"
has "info JSON" architecture container layers classes.0.bytes memory.total tensor_list.0.shape bits_per_weight
holds "info JSON" "$(json layers)" = 6; holds "info JSON" "$(json context)" = 256
holds "info JSON" "$(json memory.context)" = 128; holds "info JSON" "$(json tensors)" = "$(json tensor_list)"
kv=$(json memory.kv)
exits 0 "info --sequences" "$LQ" info "$POCKET" --json --ctx 128 --sequences 8
holds "info: keys and values of all sequences" "$(json memory.kv)" = $((kv * 8)); holds "info --sequences" "$(json memory.sequences)" = 8
exits 0 "info JSON" "$LQ" info "$POCKET" --json --ctx 128
# A plan is for the placing that will be asked for.
holds "info: nothing locked" "$(json memory.locked)" = 0
exits 0 "info --mlock" "$LQ" info "$POCKET" --ctx 128 --mlock --huge-pages off --numa off --json; json_is "info --mlock"
holds "info --mlock" "$(json memory.locked)" -gt 0; holds "info --mlock" "$(json memory.locked)" -le "$(json memory.total)"
exits 2 "info --huge-pages" "$LQ" info "$POCKET" --huge-pages some
for what in devices formats schemes; do
    exits 0 "info --$what" "$LQ" info --$what; holds "info --$what" -s "$out"
    exits 0 "info --$what JSON" "$LQ" info --$what --json; has "info --$what" 0.name
done
exits 0 "check" "$LQ" info "$POCKET" --check-tensors

# Output that nobody can read.
"$LQ" info --schemes >&- 2>"$err"; rc=$?
holds "stdout closed" "$rc" -eq 4; says "stdout closed" "standard output"
{ "$LQ" info "$POCKET" --tensors 2>"$err"; echo $? >rc; } | : ; sleep 0.1
case $(cat rc) in 0|4) pass ;; *) fail "pipe closed: exit $(cat rc)" ;; esac
if [ -w /dev/full ]; then
    "$LQ" info --schemes >/dev/full 2>"$err"; rc=$?
    holds "stdout full" "$rc" -eq 4; says "stdout full" "No space left"
else skip "no /dev/full"; fi
"$LQ" info none.gguf 2>&- >"$out"; holds "stderr closed" $? -eq 4
finish
