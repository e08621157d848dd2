#!/bin/sh
# cli_device.sh: --device and --gpu-layers: what is refused and in which words; on each Vulkan device that is here, the
# processor's text and perplexity in every scheme, the same bits again, plans and what crossed the border.
# shellcheck disable=SC2034 # read there
T_DEVICES=1
. "$(dirname "$0")/cli_lib.sh"
T=$TEXT/prose.txt new=8

# ---- what needs no device
for c in "run $POCKET -p x" "eval $POCKET --text $T" "info $POCKET" "bench model $POCKET"; do
    # shellcheck disable=SC2086 # words
    {
        exits 2 "$c: layers of nothing" "$LQ" $c --gpu-layers 2 --json; says "$c: layers of nothing" "--device vulkan:0"
        holds "$c: layers of nothing" "$(json error.status)" = LQ_E_ARG
        exits 2 "$c: 0 layers of nothing" "$LQ" $c --gpu-layers 0; says "$c: 0 layers of nothing" "--device vulkan:0"
        exits 2 "$c: layers of the processor" "$LQ" $c --device cpu --gpu-layers 2
        says "$c: layers of the processor" "runs all layers by itself"
        for d in gpu vulkan: vulkan:x vulkan:-1 vulkan:0x1 '' 'cpu:0 '; do
            exits 2 "$c: device '$d'" "$LQ" $c --device "$d"; says "$c: device '$d'" "device '$d'"
            says "$c: device '$d': what next" "lq info --devices"
        done
        exits 6 "$c: second processor" "$LQ" $c --device cpu:1; says "$c: second processor" "lq info --devices"
        exits 2 "$c: --ngl" "$LQ" $c --ngl 3; says "$c: --ngl" "nearest is --gpu-layers N"
        exits 2 "$c: -1 layers" "$LQ" $c --device vulkan:0 --gpu-layers -1
        "$LQ" $c --device vulkan:200 >"$out" 2>"$err" </dev/null; rc=$?
        case $rc in 2|6) pass ;; *) fail "$c: vulkan:200: exit $rc" ;; esac # not in this build, or not here
        says "$c: vulkan:200" "lq info --devices"
    }
done
exits 2 "calibrate has no --device" "$LQ" calibrate "$POCKET" --text "$T" -o stats.gguf --device cpu
exits 2 "devices of a device" "$LQ" info --devices --device cpu; says "devices of a device" "MODEL"
exits 2 "bench quality" "$LQ" bench quality --schemes q8_0 --gpu-layers 2; says "bench quality" "--device vulkan:0"
exits 2 "instruction sets of a device" "$LQ" bench model "$POCKET" --device vulkan:0 --versus-isa scalar
says "instruction sets of a device" "instruction sets of the processor"
exits 2 "activations" "$LQ" run "$POCKET" -p x --activations f16; says "activations" "only f32"

# The processor by name is the processor; so are no layers elsewhere.
exits 0 "run" "$LQ" run "$POCKET" -p "The ship" -n 12 --json; cp "$out" plain.json
want=$(json logits_hash)
for how in "--device cpu" "--device cpu:0" "--device cpu --gpu-layers 0" "--device vulkan:0 --gpu-layers 0"; do
    # shellcheck disable=SC2086 # words
    exits 0 "$how" "$LQ" run "$POCKET" -p "The ship" -n 12 --json $how
    holds "$how" "$(json logits_hash)" = "$want"
    if json device >/dev/null; then fail "$how: a device in the JSON"; else pass; fi
done
exits 0 "plan of the processor" "$LQ" info "$POCKET" --device cpu
if grep -q '^  device' "$out"; then fail "a plan of no device"; else pass; fi

# ---- devices
exits 0 "devices" "$LQ" info --devices --json; json_is "devices"
holds "devices: the processor first" "$(json 0.name)" = cpu:0
devices='' i=1 n=$(json)
while [ "$i" -lt "${n:-1}" ]; do
    if d=$(json $i.name 2>/dev/null) && [ "$d" ] && [ "$d" != null ]; then
        devices="$devices $d"; compare "$d: memory" "$(json $i.memory)" ">" 0
        has "$d" $i.description $i.isa $i.threads
    else
        has "a device that cannot be used" $i.error.status $i.error.message
    fi
    i=$((i + 1))
done
exits 0 "devices, text" "$LQ" info --devices
for d in $devices; do says "devices, text: $d" "^$d .* of memory$" "$out"; done
[ "$n" -gt 1 ] || says "no device" "no other device is here: .*this build knows cpu"
if [ -z "$devices" ]; then
    skip "models on a device: only the processor is here"
    finish
fi

"$LQ" run "$POCKET" -p "The ship" -n $new --activations f32 --json >"$out" 2>"$err"; cp "$out" cpu.json
text=$(json text) length=$(json prompt_tokens)
near() { # near WHAT A B: within 0.02 %
    compare "$1" "(($2) / ($3) - 1) ^ 2" "<" "0.0002 ^ 2"
}
# plan WHAT: the parts of the plan in $out make its whole, and it fits.
plan() {
    has "$1" device.name device.memory device.staging device.border_bytes_per_token
    compare "$1: total" \
        "$(json device.weights) + $(json device.kv) + $(json device.activations) + $(json device.own)" "==" "$(json device.total)"
    compare "$1: fits" "$(json device.total)" "<=" "$(json device.memory)"
    holds "$1: fits" "$(json device.fits)" = true
}
for d in $devices; do
    r() { "$LQ" run "$POCKET" -p "The ship" -n $new --activations f32 --device "$d" "$@"; }

    # All of it: the processor's text, twice the same bits, the plan before the run and what it took.
    exits 0 "$d" r --json; json_is "$d"; plan "$d"
    holds "$d: text" "$(json text)" = "$text"; hash=$(json logits_hash)
    holds "$d: layers" "$(json device.layers)" = 6; holds "$d: embedding" "$(json device.embedding)" = true
    holds "$d: border" "$(json device.border_bytes_per_token)" = 0
    if json border >/dev/null; then fail "$d: a border where there is none"; else pass; fi
    whole=$(json device.total) kv=$(json device.kv)
    exits 0 "$d again" r; printf '%s' "$(cat "$out")" >got; printf '%s' "$text" >want; same "$d again: text" got want
    says "$d again: the same bits" "logits $hash\$"
    says "$d: plan" "^$d runs the embedding, all 6 layers and the output: .* of weights, .* of KV cache, .* of activations, .* to copy through (.* of .*)"
    holds "$d: no border" "$(grep -c border "$err")" -eq 0
    for n in 6 600; do
        exits 0 "$d, $n layers" r --json --gpu-layers $n
        holds "$d, $n layers: the same bits" "$(json logits_hash)" = "$hash"
    done
    exits 0 "$d, no layers" r --json --gpu-layers 0
    holds "$d, no layers" "$(json logits_hash)" = "$(json logits_hash <cpu.json)"

    # Guesses, made here and there, give the same text; vectors are the processor's.
    exits 0 "$d, guesses" r --ngram 2 --draft "$POCKET" --stats; same "$d, guesses: text" "$out" got
    says "$d, guesses" "guesses: [1-9]"
    e() { "$LQ" embed "$POCKET" "The ship is late, she said." --activations f32 "$@"; }
    exits 0 "embed" e; cp "$out" vectors
    for n in 2 6; do
        exits 0 "$d, $n layers, embed" e --device "$d" --gpu-layers $n; cat "$out" >>vectors
    done
    awk '{ for (i = 1; i <= NF; i++) { if (NR == 1) a[i] = $i; s[NR] += a[i] * $i } }
         END { exit !(NR == 3 && s[2] > 0.999999 && s[3] > 0.999999 && s[2] < 1.000001) }' vectors
    holds "$d, embed: as the processor" $? -eq 0

    # Keys and values in other formats: the processor's text again, in fewer bytes.
    for f in "q8_0" "q4_0" "q8_0 --kv-v bf16"; do
        # shellcheck disable=SC2086 # words
        exits 0 "$d, kv $f, on the processor" "$LQ" run "$POCKET" -p "The ship" -n $new --activations f32 --json --kv $f
        mine=$(json text)
        # shellcheck disable=SC2086 # words
        exits 0 "$d, kv $f" r --json --kv $f; plan "$d, kv $f"; holds "$d, kv $f: text" "$(json text)" = "$mine"
        compare "$d, kv $f: bytes" "$(json device.kv)" "<" "$kv"
    done

    # Some of it.
    exits 0 "$d, 2 layers" r --gpu-layers 2; same "$d, 2 layers: text" "$out" got
    says "$d, 2 layers: plan" "^$d runs layers 4 to 5 and the output: .* of KV cache, .*; the processor runs the embedding and"
    says "$d, 2 layers: plan" "embedding and layers 0 to 3; 1024 bytes per token cross the border\.\$"
    says "$d, 2 layers: border" "^border: .* in [0-9.]* s, [0-9.]* % of the time"
    hash=$(sed -n 's/.*logits \([0-9a-f]*\)$/\1/p' "$err")
    for t in 1 2; do
        exits 0 "$d, 2 layers, again" r --gpu-layers 2 --json -t $t; plan "$d, 2 layers"
        holds "$d, 2 layers: the same bits" "$(json logits_hash)" = "$hash"
    done
    holds "$d, 2 layers" "$(json device.layers)" = 2; holds "$d, 2 layers" "$(json device.first_layer)" = 4
    holds "$d, 2 layers" "$(json device.embedding)" = false
    compare "$d, 2 layers: less there" "$(json device.total)" "<" "$whole"
    # Each row goes out once and in once; the last token made is not evaluated.
    holds "$d, 2 layers: bytes" "$(json border.bytes)" -eq $(((length + new - 1) * 1024 * 2))
    compare "$d, 2 layers: seconds" "$(json border.seconds)" ">" 0
    exits 0 "$d, 1 layer" r --gpu-layers 1; says "$d, 1 layer" "^$d runs layer 5 and the output: "
    exits 0 "$d, 5 layers" r --gpu-layers 5; says "$d, 5 layers" "the processor runs the embedding and layer 0; "

    # The plan without running: the same numbers, in words and in JSON.
    r --json --gpu-layers 2 >"$out" 2>"$err"; for k in weights kv activations total; do json device.$k; done >ran
    exits 0 "$d: info" "$LQ" info "$POCKET" --device "$d" --gpu-layers 2 --json; plan "$d: info"
    json device.weights >planned; compare "$d: info" "$(cat planned)" "==" "$(head -1 ran)"
    exits 0 "$d: info, text" "$LQ" info "$POCKET" --device "$d" --gpu-layers 2
    says "$d: info, text" "^  device  *$d runs layers 4 to 5 and the output: " "$out"

    # Speed: no roof of the processor's memory, rows named by the device.
    exits 0 "$d: bench model" "$LQ" bench model "$POCKET" --device "$d" -p 32 -n 4 -r 1 --csv speed.csv
    says "$d: bench model" "^with  *$d: " "$out"; says "$d: bench model" "^$d runs the embedding"
    if grep -q roof "$out"; then fail "$d: bench model: a roof"; else pass; fi
    says "$d: bench model" "; $d 6 of 6 layers,tier" speed.csv
    says "$d: bench model" "^# .*; [1-9][0-9]* threads" speed.csv
    exits 0 "$d: bench model" "$LQ" bench model "$POCKET" --device "$d" --gpu-layers 3 -p 32 -n 4 -r 1 --json
    plan "$d: bench model"; has "$d: bench model" border.bytes; holds "$d: roof" "$(json decode.roof_fraction)" = null

    # Quality: every scheme as on the processor.
    schemes=$("$LQ" info --schemes | grep -v 'Hugging Face directory' | sed 's/ .*//')
    [ -z "${T_SLOW:-}" ] || schemes='f16 q4_k_m iq4_xs'
    for s in $schemes; do
        [ -e "$s.gguf" ] || "$LQ" quantize "$POCKET" "$s.gguf" -s "$s" 2>/dev/null
        e() { "$LQ" eval "$s.gguf" --text "$T" --ctx 128 --max-tokens 128 --activations f32 --json "$@"; } # one window
        [ -e "$s.ppl" ] || { e --isa scalar >"$out" 2>"$err"; json ppl >"$s.ppl"; }
        exits 0 "$d: $s" e --device "$d"; plan "$d: $s"
        near "$d: $s: perplexity" "$(json ppl)" "$(cat "$s.ppl")"
    done
    exits 0 "$d: 3 layers" e --device "$d" --gpu-layers 3
    near "$d: 3 layers: perplexity" "$(json ppl)" "$(cat "$s.ppl")"
    has "$d: 3 layers" border.bytes border.seconds
    exits 0 "$d: against itself" e --device "$d" --against "$s.gguf"; compare "$d: itself" "$(json kld_max)" "==" 0
    exits 0 "$d: bench quality" "$LQ" bench quality --device "$d" --schemes q4_0 --text "$T" --max-tokens 256 --json
    holds "$d: bench quality" "$(json schemes.0.device.name)" = "$d"

    interrupts INT 0.5 "$LQ" eval "$POCKET" --text "$T" --device "$d"
    silent "$d: SIGINT"

    # Weights that the device cannot hold, then a session beside those that it can: refused with the numbers, and with
    # what would fit. A file of 2 GiB: where the device's memory is that small, and there is room for the file.
    "$LQ" info "$POCKET" --device "$d" --json >"$out" 2>"$err"; memory=$(json device.memory)
    room=$(df -Pk "$T_TMP" | awk 'NR == 2 { print $4 }')
    if [ -n "${T_SLOW:-}" ] || [ "${memory:-0}" -gt 2147483648 ] || [ "${room:-0}" -lt 8000000 ]; then
        skip "$d: more than its memory holds: it has too much of it, or there is no room for the file"
        continue
    fi
    figures="[0-9][0-9]* bytes ([0-9.]* MiB) of $d.*which has [0-9][0-9]* ([0-9.]* MiB)"
    "$LQ" bench make-model --shape llama-1.1b --scheme f16 big.gguf 2>"$err"
    exits 5 "$d: too many weights" "$LQ" run big.gguf -p x -n 1 --device "$d"; silent "$d: too many weights"
    says "$d: too many weights" "the weights of 22 layers need $figures: gpu_layers [0-9]* would fit"
    says "$d: too many weights: what next" "lq info MODEL --device $d --gpu-layers N"
    fit=$(sed -n 's/.*gpu_layers \([0-9]*\) would fit.*/\1/p' "$err")
    exits 0 "$d: a plan that does not fit" "$LQ" info big.gguf --device "$d" --json
    holds "$d: a plan that does not fit" "$(json device.fits)" = false
    exits 0 "$d: a plan that does not fit" "$LQ" info big.gguf --device "$d"
    says "$d: a plan that does not fit" ", too much)" "$out"
    exits 5 "$d: too long a context" "$LQ" run big.gguf -p x -n 1 --device "$d" --gpu-layers "${fit:-1}" --ctx 32768 --json
    says "$d: too long a context" "a session with context 32768 .* needs $figures"
    says "$d: too long a context: what next" "^--gpu-layers N .*--ctx N"
    holds "$d: too long a context" "$(json error.status)" = LQ_E_NOMEM
    rm -f big.gguf
done
finish
