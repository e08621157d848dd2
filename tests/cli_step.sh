#!/bin/sh
# cli_step.sh: lq run with stop strings and guesses, and lq embed.
. "$(dirname "$0")/cli_lib.sh"
"$LQ" quantize "$POCKET" q4.gguf -s q4_k_m 2>/dev/null
"$LQ" quantize "$POCKET" q2.gguf -s q2_k 2>/dev/null
r() { "$LQ" run q4.gguf -p "The ship" -n 40 "$@"; }
hash_of() { sed -n 's/.*logits \([0-9a-f]\{8\}\)$/\1/p' "$err"; }

# A text in a file is the same text; one of both is needed.
exits 0 "run" r; cp "$out" text; h=$(hash_of)
printf 'The ship' >prompt.txt
exits 0 "-f" "$LQ" run q4.gguf -f prompt.txt -n 40; same "-f" "$out" text
exits 0 "-f -" true; "$LQ" run q4.gguf -f - -n 40 <prompt.txt >"$out" 2>"$err"; same "-f -" "$out" text
exits 2 "no text" "$LQ" run q4.gguf -n 4; says "no text" "--prompt TEXT or --file FILE"
exits 2 "two texts" r -f prompt.txt
exits 4 "no file" "$LQ" run q4.gguf -f none.txt; says "no file" "none.txt"

# A stop string is cut from the text, and what comes before it is there to the byte.
stop=$(cut -c 12-17 text | head -n 1)
holds "a stop string to look for" "${#stop}" -ge 4
exits 0 "--stop" r --stop "nowhere to be found" --stop "$stop"; says "--stop" "stopped: before '$stop'"
all=$(cat text) want=${all%%"$stop"*}
printf '%s' "$want" >want; same "--stop" "$out" want
exits 0 "--stop JSON" r --stop "$stop" --json; json_is "--stop JSON"
holds "--stop JSON" "$(json stop)" = stop; holds "--stop JSON: which" "$(json stop_string)" = "$stop"
exits 2 "--stop ''" r --stop ''; says "--stop ''" "empty text"

# Guesses change nothing: text and logits.
exits 0 "--ngram" r --ngram 2; same "--ngram" "$out" text; holds "--ngram: hash" "$(hash_of)" = "$h"
exits 0 "--draft" r --draft q4.gguf --draft-tokens 5 --json; json_is "--draft"
holds "--draft: hash" "$(json logits_hash)" = "$h"; compare "--draft: guesses" "$(json accepted)" ">" 20
holds "--draft: all right" "$(json accepted)" = "$(json drafted)"
exits 0 "drawn" r --temp 0.9 --seed 5; cp "$out" drawn
exits 0 "--draft, drawn" r --temp 0.9 --seed 5 --draft q2.gguf --ngram 3 --stats; same "--draft, drawn" "$out" drawn
says "--stats" "guesses: [1-9][0-9]* tokens, [0-9]* right"; says "--stats" "context: 4[0-9] of 256 tokens used, 2[0-9]* left"
says "--stats" "of . of the prompt were known\|of [0-9]* of the prompt were known\|[0-9]* of [0-9]* of the prompt were known"
exits 2 "--draft-tokens alone" r --draft-tokens 3; says "--draft-tokens alone" "--ngram or --draft"
exits 0 "info" "$LQ" info q4.gguf --ctx 256 --json; total=$(json memory.total) kv=$(json memory.kv)
exits 0 "info --draft" "$LQ" info q4.gguf --ctx 256 --draft q2.gguf --json; json_is "info --draft"
holds "info --draft: KV of both" "$(json memory.kv)" -eq $((2 * kv))
holds "info --draft: in all" "$(json memory.total)" -gt $((total + kv + $(stat -c %s q2.gguf) / 2))
holds "info --draft: weights" "$(json memory.draft.bytes)" -gt $(($(stat -c %s q2.gguf) / 2))
exits 0 "info --draft in words" "$LQ" info q4.gguf --draft q2.gguf; says "info --draft in words" "the draft model's .*(of both models)" "$out"
exits 2 "info --draft alone" "$LQ" info --schemes --draft q2.gguf; says "info --draft alone" "plans a MODEL"
exits 4 "--draft of no file" r --draft none.gguf; says "--draft of no file" "none.gguf"

# Vectors: a line each, the same alone and together, of length 1 unless it is not asked for.
printf 'The ship is late.\n\nShe said no.\nThe ship is late.\n' >lines.txt
exits 0 "embed" "$LQ" embed q4.gguf -f lines.txt; cp "$out" vectors
holds "embed: lines" "$(wc -l <vectors)" -eq 4; holds "embed: width" "$(head -n 1 vectors | wc -w)" -eq 256
holds "embed: equal texts" "$(sed -n 1p vectors)" = "$(sed -n 4p vectors)"
holds "embed: length 1" "$(awk 'NR == 3 { for (i = 1; i <= NF; i++) s += $i * $i; print (s > 0.99999 && s < 1.00001) }' vectors)" = 1
exits 0 "embed TEXT" "$LQ" embed q4.gguf 'She said no.'; sed -n 3p vectors >want; same "embed TEXT" "$out" want
exits 0 "embed stdin" true; "$LQ" embed q4.gguf -t 1 <lines.txt >"$out" 2>"$err"; same "embed stdin" "$out" vectors
exits 0 "embed JSON" "$LQ" embed q4.gguf -f lines.txt --pooling last --no-normalize --json; json_is "embed JSON"
has "embed JSON" pooling embedding texts.0.text texts.0.tokens texts.3.vector.255
holds "embed JSON" "$(json pooling)" = last; holds "embed JSON: normalized" "$(json normalized)" = false
exits 0 "embed --whole" "$LQ" embed q4.gguf -f lines.txt --whole --pooling cls; holds "embed --whole" "$(wc -l <"$out")" -eq 1
i=0; while [ $i -lt 70 ]; do echo "line $i of many, $i"; i=$((i + 1)); done >many.txt
exits 0 "embed many" "$LQ" embed q4.gguf -f many.txt; holds "embed many" "$(wc -l <"$out")" -eq 70
sed -n 69p "$out" >want; exits 0 "embed one of many" "$LQ" embed q4.gguf "$(sed -n 69p many.txt)"
same "embed one of many" "$out" want
exits 2 "embed --pooling max" "$LQ" embed q4.gguf x --pooling max; says "embed --pooling max" "mean, last, first"
exits 2 "embed both" "$LQ" embed q4.gguf x -f lines.txt
exits 2 "embed and not" "$LQ" embed q4.gguf x --normalize --no-normalize
exits 2 "embed too long" "$LQ" embed q4.gguf "$(head -c 3000 "$TEXT/prose.txt")"; says "embed too long" "text 1 has [0-9]* tokens"
exits 2 "embed nothing" "$LQ" embed q4.gguf -f /dev/null; says "embed nothing" "there is no text"
finish
