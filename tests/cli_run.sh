#!/bin/sh
# cli_run.sh: lq run and the example program: pure output, the same text again, streams, interruption.
. "$(dirname "$0")/cli_lib.sh"
"$LQ" quantize "$POCKET" f16.gguf -s f16 2>/dev/null
"$LQ" quantize "$POCKET" q4.gguf -s q4_k_m 2>/dev/null
r() { "$LQ" run q4.gguf "$@"; }
hash_of() { sed -n 's/.*logits \([0-9a-f]\{8\}\)$/\1/p' "$err"; }

# Standard output is the text, byte for byte what --json reports.
exits 0 "run" r -p "The ship" -n 24; cp "$out" text; h=$(hash_of)
says "run: speed" "tokens/s, .* GB/s"; holds "run: hash" "${#h}" -eq 8; holds "run: text" -s text
exits 0 "run JSON" r -p "The ship" -n 24 --json; json_is "run JSON"
has "run JSON" text ids.0 prefill.tokens_per_s decode.tokens_per_s decode.bytes_per_s logits_hash stop
printf '%s' "$(json text)" >again; printf '%s' "$(cat text)" >text.
same "run JSON" again text.; holds "run JSON: hash" "$(json logits_hash)" = "$h"; holds "run JSON" "$(json tokens)" = 24
exits 0 "stdin" true; printf 'The ship' | r -p - -n 24 >"$out" 2>"$err"; same "prompt from standard input" "$out" text

# Equal hashes for any number of threads, equal texts for equal seeds.
for t in 1 2; do
    exits 0 "threads $t" r -p "The ship" -n 24 --threads $t; same "threads $t" "$out" text
    holds "threads $t" "$(hash_of)" = "$h"
done
exits 0 "--no-pack" r -p "The ship" -n 24 --no-pack; same "--no-pack" "$out" text; holds "--no-pack" "$(hash_of)" = "$h"
exits 0 "seed" r -p "The ship" -n 24 --temp 0.9 --top-k 40 --top-p 0.95 --min-p 0.02 --seed 7; cp "$out" seed7
exits 0 "seed" r -p "The ship" -n 24 --temp 0.9 --top-k 40 --top-p 0.95 --min-p 0.02 --seed 7; same "seed" "$out" seed7
exits 0 "seed" r -p "The ship" -n 24 --temp 0.9 --top-k 40 --top-p 0.95 --min-p 0.02 --seed 8
if cmp -s "$out" seed7; then fail "another seed gave the same text"; else pass; fi

# Every option of the choice changes something, and says what it needs.
exits 0 "plain" r -p "The ship and the ship and the" -n 24 --temp 1 --seed 3; cp "$out" plain
for o in "--repeat-penalty 3" "--frequency-penalty 2" "--presence-penalty 4" "--repeat-penalty 3 --repeat-last-n 3" "--top-k 1" \
    "--dry 9 --dry-length 1" "--typical-p 0.3" "--top-p 0.3" "--min-p 0.3" "--xtc 1" "--mirostat 2" "--logit-bias ,=-inf" "--seed 4"; do
    # shellcheck disable=SC2086 # options are words
    exits 0 "$o" r -p "The ship and the ship and the" -n 24 --temp 1 --seed 3 $o
    if cmp -s "$out" plain; then fail "$o changed nothing"; else pass; fi
done
exits 0 "--logit-bias" r -p "The ship" -n 3 --logit-bias 300=90 --json; holds "--logit-bias" "$(json ids.2)" = 300
d() { r -p "The ship and the ship and the" -n 24 --temp 1 --seed 3 --dry 9 --dry-length 1 "$@"; }
exits 0 "--dry-breaker" d --dry-breaker none; cp "$out" unbroken
exits 0 "--dry-breaker" d --dry-breaker e --dry-breaker '\n' --dry-breaker h
if cmp -s "$out" unbroken; then fail "--dry-breaker changed nothing"; else pass; fi
exits 0 "--logprobs" r -p "The ship" -n 3 --json --logprobs 2; json_is "--logprobs"
has "--logprobs" logprobs.0.text logprobs.2.top.1.logprob
holds "--logprobs" "$(json logprobs.1.id)" = "$(json ids.1)"; holds "--logprobs" "$(json logprobs.1.top.0.id)" = "$(json ids.1)"
compare "--logprobs" "$(json logprobs.0.top.1.logprob)" "<" "$(json logprobs.0.logprob)"
exits 2 "--logprobs" r -p "x" --logprobs 2; says "--logprobs" "--json"
exits 2 "--mirostat" r -p "x" --mirostat 3; says "--mirostat" "--temp"
exits 2 "--mirostat" r -p "x" --mirostat 3 --temp 1 --top-k 3; says "--mirostat" "in the place of"
exits 2 "--dry-base" r -p "x" --dry-base 3; says "--dry-base" "without it"
exits 2 "--xtc-threshold" r -p "x" --xtc-threshold .3; says "--xtc-threshold" "without --xtc"
exits 2 "--xtc-threshold" r -p "x" --xtc 1 --xtc-threshold .6; says "--xtc-threshold" "from 0 to 0.5"
for b in 3 =1 300= 300=x 300=inf 300=nan; do exits 2 "--logit-bias $b" r -p "x" --logit-bias $b; done
exits 2 "--logit-bias" r -p "x" --logit-bias nosuchtoken=1; says "--logit-bias" "no token that is spelled nosuchtoken"
exits 2 "--logit-bias" r -p "x" --logit-bias 99999999999=1; says "--logit-bias" "outside the vocabulary"

# Limits.
exits 0 "-n 0" r -p "The ship" -n 0; silent "-n 0"; holds "-n 0" "$(hash_of | wc -c)" -eq 9
exits 0 "context" r -p "The ship" -n 100 --ctx 32 --ignore-eos; says "context" "context of 32 tokens is full"
exits 2 "long prompt" r -p "$(head -c 3000 "$TEXT/prose.txt")" --ctx 64; says "long prompt" "64"; silent "long prompt"
exits 0 "slide" r -p "The ship" -n 100 --ctx 32 --ignore-eos --overflow slide --keep 3 --json; json_is "slide"
holds "slide" "$(json tokens)" = 100
compare "slide" "$(json dropped)" ">" 60; compare "slide" "$(json evaluated_again)" ">" 40
exits 0 "slide" r -p "$(head -c 3000 "$TEXT/prose.txt")" --ctx 64 -n 2 --overflow slide; says "slide" "to make room in the context of 64"
exits 2 "--overflow" r -p "x" --overflow error; says "--overflow" "'stop' or 'slide', not 'error'"
exits 2 "--keep" r -p "x" --keep 3; says "--keep" "goes with --overflow slide"
exits 0 "--rope-scaling" r -p "The ship" -n 4 --ctx 512 --rope-scaling yarn --json; json_is "--rope-scaling"
exits 2 "--rope-scaling" r -p "x" --ctx 512; says "--rope-scaling" "trained for 256"
exits 2 "--rope-scaling" r -p "x" --ctx 1024 --rope-scaling ntk --rope-factor 2; says "--rope-scaling" "gives 512"
exits 2 "--rope-scaling" r -p "x" --rope-scaling warp; says "--rope-scaling" "warp"
exits 5 "--max-ram" r -p "x" --max-ram 2M; says "--max-ram" "the longest context that fits is [0-9][0-9]* tokens"
fits=$(sed -n 's/.*that fits is \([0-9]*\) tokens.*/\1/p' "$err")
exits 0 "--max-ram" r -p "x" -n 2 --max-ram 2M --ctx "$fits"
exits 2 "--max-ram" r -p "x" --max-ram some; says "--max-ram" "not a number of bytes"
exits 0 "empty prompt" r -p "" -n 8; holds "empty prompt" -s "$out"
exits 0 "empty standard input" r -p - -n 8
r -p - -n 8 <&- >"$out" 2>"$err"; holds "closed standard input" $? -eq 4
exits 0 "bytes" r -p "$(printf 'a\377b\303')" -n 4 --json; json_is "bytes"
exits 0 "dashes" r --prompt=--json -n 4; holds "dashes" -s "$out"
exits 0 "plain special" r -p "</s>" -n 2 --json; plain=$(json prompt_tokens)
exits 0 "--special" r -p "</s>" -n 2 --json --special; compare "--special" "$(json prompt_tokens)" "<" "$plain"

# Outputs that nobody reads; signals.
r -p "The ship" -n 24 >&- 2>"$err"; holds "stdout closed" $? -eq 4; says "stdout closed" "standard output"
{ r -p "The ship" -n 200 --ignore-eos 2>"$err"; echo $? >rc; } | head -c 4 >/dev/null; sleep 0.2
holds "reader gone" "$(cat rc)" -eq 4
mkfifo pipe
for sig in INT TERM; do
    case $sig in INT) want=130 ;; *) want=143 ;; esac
    "$LQ" run q4.gguf -p - <pipe >"$out" 2>"$err" & pid=$!
    exec 9>pipe; sleep 0.2; kill -$sig $pid; wait $pid; rc=$?; exec 9>&-
    holds "SIG$sig while reading" $rc -eq $want
    interrupts $sig 0.8 "$LQ" run f16.gguf -p "The ship" -n 240 --ignore-eos --isa scalar -t 1
    [ $rc -eq 0 ] || says "SIG$sig" "interrupted"
    [ ! -s "$out" ] || says "SIG$sig: hash" "logits"
done
# Within a layer, not only between tokens: nothing comes out when the prompt was still being read.
interrupts INT 0.4 "$LQ" run f16.gguf -p "$(head -c 500 "$TEXT/prose.txt")" -n 4 --isa scalar -t 1
[ $rc -eq 0 ] || silent "SIGINT while the prompt is evaluated"
# The example: under 40 lines, libquant.h and the library alone, the same greedy text as `lq run`.
example=$T_ROOT/tools/examples/generate.c
holds "example: lines" "$(wc -l <"$example")" -lt 40
instruments=${SAN:+-fsanitize=$SAN}
if nm "$B/libquant.a" 2>/dev/null | grep -q ' __gcov_'; then instruments=--coverage; fi
if ${CC:-cc} -std=c11 -Wall -Wextra -Werror $instruments -I"$T_ROOT/include" -o generate "$example" \
    "$B/libquant.a" -lm -pthread 2>"$err"; then pass; else fail "the example does not compile"; fi
exits 0 "example" ./generate f16.gguf "The ship"; cp "$out" text
call "$LQ" run f16.gguf -p "The ship" -n 32
printf 'The ship%s\n' "$(cat "$out")" >again; same "example" again text
exits 2 "example usage" ./generate

# Adapters, unmerged: as merged ones in f32; with scale 0 they are not there.
LORA=$T_ROOT/tests/golden/lora
exits 0 "--lora" "$LQ" run "$POCKET" -p "The ship" -n 24 --activations f32 --lora "$LORA"; cp "$out" unmerged
call "$LQ" quantize "$POCKET" merged.gguf -s f32 --lora "$LORA"
call "$LQ" run merged.gguf -p "The ship" -n 24 --activations f32; same "--lora as merged" "$out" unmerged
call "$LQ" run "$POCKET" -p "The ship" -n 24; cp "$out" plain
exits 0 "--lora with 0" "$LQ" run "$POCKET" -p "The ship" -n 24 --lora "$LORA:0"; same "--lora with 0" "$out" plain
says "--lora with 0" "adds nothing"
if cmp -s plain unmerged; then fail "--lora changes nothing"; else pass; fi
exits 0 "info --lora" "$LQ" info "$POCKET" --lora "$LORA" --json
exits 2 "info --lora alone" "$LQ" info --formats --lora "$LORA"
exits 3 "run --lora of no adapter" "$LQ" run "$POCKET" -p x --lora "$POCKET"
exits 1 "example error" ./generate none.gguf x; says "example error" "LQ_E_IO"
finish
