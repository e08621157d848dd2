#!/bin/sh
# cli_quantize.sh: lq quantize: every scheme, refusals and what lifts them, odd file names, limits, interruption.
. "$(dirname "$0")/cli_lib.sh"
q() { "$LQ" quantize "$@"; }
nothing_left() { # WHAT: no file but those that were there before
    left=$(find "$T_TMP" -name '*.gguf*' -newer mark -o -name '.*gguf*' -newer mark -o -name '*.tmp*' -newer mark)
    if [ -z "$left" ]; then pass; else fail "$1: left $left"; fi
}

# Every scheme, and what info says of the result.
for s in $("$LQ" info --schemes | grep -v 'Hugging Face directory' | cut -d' ' -f1); do
    exits 0 "scheme $s" q "$POCKET" "$s.gguf" --scheme "$s" --json; json_is "scheme $s"
    bytes=$(json bytes)
    holds "scheme $s: bytes" "$(wc -c <"$s.gguf")" -eq "${bytes:-0}"
    exits 0 "info $s" "$LQ" info "$s.gguf" --json
    holds "info $s" "$(json scheme)" = "$s"
done
holds "q4_k_m is smaller than q8_0" "$(wc -c <q4_k_m.gguf)" -lt "$(wc -c <q8_0.gguf)"

# Schemes of directories; a directory of floats.
for s in $("$LQ" info --schemes | grep 'Hugging Face directory' | cut -d' ' -f1 | grep -vE '^(gptq|awq)'); do
    exits 0 "scheme $s" q "$POCKET" "d-$s" --scheme "$s" --json; json_is "scheme $s"
    holds "scheme $s: bytes" "$(cat "d-$s"/* | wc -c)" -eq "$(json bytes)"
    exits 6 "$s as a GGUF file" q "$POCKET" x.gguf --scheme "$s"
    says "$s as a GGUF file" "nearest scheme of GGUF files"
    exits 6 "$s from a GGUF file" q f16.gguf x --scheme "$s"; says "$s from a GGUF file" "no config.json"
done
exits 2 "GPTQ without statistics" q "$POCKET" d-gptq -s gptq-4bit-g128
says "GPTQ without statistics" "needs calibration statistics.*--hessians"; absent "GPTQ without statistics" d-gptq
exits 2 "AWQ without factors" q "$POCKET" d-awq -s awq-4bit-g128
says "AWQ without factors" "--for awq-4bit-g128 -o STATS"; absent "AWQ without factors" d-awq
exits 6 "AWQ as a GGUF file" q "$POCKET" x.gguf -s awq-4bit-g128; says "AWQ as a GGUF file" "GGUF files: awq+q4_k_m"
exits 0 "floats" q "$POCKET" floats/ -s bf16; exits 0 "floats open" "$LQ" info floats
exits 2 "directory exists" q "$POCKET" floats -s int8; says "directory exists" "--force"
exits 0 "directory replaced" q "$POCKET" floats -s int8 --force
holds "directory replaced" "$(ls -A floats | wc -l)" -eq 4
mkdir -p floats/mine; exits 2 "a folder inside" q "$POCKET" floats -s int8 --force; says "a folder inside" "'mine'"
rm -r floats d-*

# The same bytes for any number of threads, and from a GGUF as from the folder.
exits 0 "one thread" q "$POCKET" t1.gguf -s q4_k_m -t 1; silent "one thread"
same "one thread" t1.gguf q4_k_m.gguf
exits 0 "from a GGUF" q f16.gguf g.gguf -s q4_0; same "from a GGUF" g.gguf q4_0.gguf
exits 0 "-v" q "$POCKET" v.gguf -s bf16 -v
says "-v" "ffn_down" "$out"; says "-v" "rel. error" "$out"; says "-v" "bits per weight"

# A recipe of one's own, and words joined to a scheme.
printf '# mine\nffn_up q8_0:rtn\n* q4_0\n' >mine.txt
exits 0 "--recipe" q "$POCKET" mine.gguf --recipe mine.txt --json; json_is "--recipe"
holds "--recipe" "$(json recipe)" = mine.txt
says "--recipe: q8_0 by rtn" '"quantizer": "rtn"' "$out"; says "--recipe: weighted error" '"weighted_error"' "$out"
exits 2 "no scheme" q "$POCKET" x.gguf; says "no scheme" "q4_k_m is the usual choice"
exits 2 "scheme and recipe" q "$POCKET" x.gguf -s q4_0 --recipe mine.txt
exits 2 "misspelt scheme" q "$POCKET" x.gguf -s q4_k_n; says "misspelt scheme" "nearest is q4_k_m"
echo 'ffn_up q8_0' >half.txt
exits 3 "half a recipe" q "$POCKET" x.gguf --recipe half.txt; says "half a recipe" "half.txt, line 1"
exits 2 "+imatrix without" q "$POCKET" x.gguf -s q4_0+imatrix; says "+imatrix without" "lq calibrate"
absent "refusals" x.gguf
exits 0 "q4_0:rtn" q "$POCKET" rtn.gguf -s q4_0:rtn
holds "q4_0:rtn" "$(wc -c <rtn.gguf)" -eq "$(wc -c <q4_0.gguf)"
if cmp -s rtn.gguf q4_0.gguf; then fail "q4_0:rtn is as q4_0"; else pass; fi

# Adapters.
LORA=$T_ROOT/tests/golden/lora
exits 0 "--lora" q "$POCKET" lora.gguf -s q8_0 --lora "$LORA:0.5" --lora="$LORA" --json; json_is "--lora"
holds "--lora" "$(json adapted)" -eq 8; holds "--lora: the list" "$(json lora.1)" = "$LORA"
says "--lora: of a tensor" '"adapters": 2' "$out"; says "--lora: of another" '"adapters": 0' "$out"
says "--lora in the file" 'libquant.lora.0.scale' lora.gguf
exits 0 "--lora -v" q "$POCKET" x.gguf -s q8_0 --lora "$LORA" -v
says "--lora -v" "blk.5.ffn_down.*with an adapter" "$out"
cp -r "$LORA" co:2; exits 0 "a colon in the path" q "$POCKET" x.gguf -s q8_0 --lora co:2:1 -f
exits 4 "a path for a scale" q "$POCKET" x.gguf -s q8_0 --lora co:2 -f
exits 2 "a scale that is not finite" q "$POCKET" x.gguf -s q8_0 --lora "$LORA:inf" -f
says "a scale that is not finite" "finite"
exits 3 "no adapter" q "$POCKET" x.gguf -s q8_0 --lora "$POCKET" -f; says "no adapter" "adapter_config.json"
exits 2 "quantized base" q lora.gguf y.gguf -s q4_0 --lora "$LORA"; says "quantized base" "already quantized"
exits 0 "quantized base with --requantize" q lora.gguf y.gguf -s q4_0 --lora "$LORA" --requantize
exits 2 "an adapter as a model" "$LQ" run "$LORA" -p x; says "an adapter as a model" "is an adapter"
rm -rf co:2 lora.gguf x.gguf y.gguf

# With the standard descriptors closed no message ends up in a file.
"$LQ" quantize "$POCKET" closed.gguf -s bf16 -v <&- >&- 2>&-; same "closed descriptors" closed.gguf bf16.gguf

# A dry run says the same and writes nothing.
touch mark
exits 0 "dry run" q "$POCKET" dry.gguf -s q4_k_m --dry-run --json; absent "dry run" dry.gguf; nothing_left "dry run"
holds "dry run" "$(json bytes)" -eq "$(wc -c <q4_k_m.gguf)"
exits 0 "dry run" q "$POCKET" dry.gguf -s q4_k_m --dry-run; says "dry run" "would write"

# Refusals, and that they leave things as they are.
cp q8_0.gguf keep.gguf
exits 2 "exists" q "$POCKET" keep.gguf -s q4_0; says "exists" "--force"; same "exists" keep.gguf q8_0.gguf
exits 0 "--force" q "$POCKET" keep.gguf -s q4_0 --force; same "--force" keep.gguf q4_0.gguf
exits 2 "requantize" q q8_0.gguf r.gguf -s q4_0; says "requantize" "--requantize"; absent "requantize" r.gguf
exits 0 "--requantize" q q8_0.gguf r.gguf -s q4_0 --requantize; holds "--requantize" -s r.gguf
cp f16.gguf src.gguf; ln -s src.gguf link.gguf; ln src.gguf hard.gguf; mkdir sub
for dst in src.gguf link.gguf hard.gguf sub/../src.gguf; do
    exits 2 "same file as $dst" q src.gguf "$dst" -s q8_0 --force; says "same file" "same file\|is the source\|itself"
    same "same file as $dst" src.gguf f16.gguf
done

# The destination cannot be written.
touch mark
exits 4 "no such folder" q "$POCKET" none/x.gguf -s q8_0; says "no such folder" "none"
exits 4 "no such source" q none x.gguf -s q8_0; nothing_left "no such source"
if [ "$(id -u)" = 0 ]; then skip "read-only folder: root may write anywhere"; else
    mkdir ro && chmod 555 ro
    exits 4 "read-only folder" q "$POCKET" ro/x.gguf -s q8_0; chmod 755 ro
fi
touch mark
exits 2 "a folder as DST" q "$POCKET" sub -s q8_0 --force; nothing_left "a folder as DST"

# No room; a file size limit stands for a full disk.
touch mark
(ulimit -f 1000; q "$POCKET" big.gguf -s q8_0 >"$out" 2>"$err"); holds "no room" $? -eq 4
absent "no room" big.gguf; nothing_left "no room"

# Two at once; one of them is refused or both took turns.
q "$POCKET" two.gguf -s q4_1 >two.out 2>&1 & pid=$!
call q "$POCKET" two.gguf -s q4_1; wait $pid; first=$?
case "$first $rc" in "0 7"|"7 0"|"0 2"|"2 0") pass ;; *) fail "two at once: exits $first and $rc" ;; esac
same "two at once" two.gguf q4_1.gguf

# Names.
odd="a b
c.gguf"; mkdir "d e"
exits 0 "spaces and newline" q "$POCKET" "d e/$odd" -s f16; same "spaces and newline" "d e/$odd" f16.gguf
exits 0 "info of it" "$LQ" info "d e/$odd" --json; json_is "info of it"
bad=$(printf 'x\377y.gguf')
if : >"$bad" 2>/dev/null; then
    rm -f "$bad"
    exits 0 "not UTF-8" q "$POCKET" "$bad" -s f16 --json; json_is "not UTF-8"; same "not UTF-8" "$bad" f16.gguf
else skip "the file system wants UTF-8 names"; fi
long=$(printf '%04096d' 0)
exits 4 "4096-byte path" q "$POCKET" "$long" -s q4_0
exits 4 "4096-byte source" "$LQ" info "$long"
exits 0 "after --" q -s f16 -- "$POCKET" -x.gguf; same "after --" ./-x.gguf f16.gguf
if locale -a 2>/dev/null | grep -qi '^de_DE.utf-\?8$'; then
    LC_ALL=de_DE.UTF-8 exits 0 "de_DE" q "$POCKET" de.gguf -s f16 --json; json_is "de_DE"
else skip "no locale de_DE.UTF-8"; fi

# An interruption leaves nothing. Without a terminal nothing but lines is printed.
touch mark
for sig in INT TERM; do
    interrupts $sig 0.15 "$LQ" quantize "$POCKET" int.gguf -s q2_k -t 1
    [ $rc -ne 0 ] || rm -f int.gguf
    absent "SIG$sig" int.gguf; nothing_left "SIG$sig"
done
if grep -q "$(printf '\033')" "$err"; then fail "escape codes without a terminal"; else pass; fi
finish
