#!/bin/sh
# baseline.sh: measure this machine into one CSV file: its roof, every kernel, and models of a real shape. Some minutes.
#
#   bench/baseline.sh OUT.csv [LQ]      LQ: the program to measure (build/lq)
#
# Models of 1.1 billion random weights are made in $TMPDIR (up to 2.3 GB at a time) and removed again.
set -eu
out=${1:?usage: bench/baseline.sh OUT.csv [LQ]}
lq=${2:-$(dirname "$0")/../build/lq}
[ ! -e "$out" ] || { echo "$out exists: lines would be added to it" >&2; exit 2; }
tmp=$(mktemp -d "${TMPDIR:-/tmp}/lq-baseline.XXXXXX")
trap 'rm -rf "$tmp"' EXIT
trap 'exit 130' INT TERM
"$lq" bench roof --csv "$out"
"$lq" bench kernels --repeat 9 --csv "$out"
for scheme in f16 q8_0 q6_k q4_k_m q4_0 iq4_xs; do
    "$lq" bench make-model --shape llama-1.1b --scheme $scheme "$tmp/model.gguf" --force
    for threads in "--threads 1" ""; do # one thread: its processor time stands for itself (tokens/cpu-s)
        # shellcheck disable=SC2086 # two words or none
        "$lq" bench model "$tmp/model.gguf" --prefill 256 --decode 16 --repeat 5 $threads --csv "$out"
    done
done
"$lq" bench make-model --shape llama-1.1b --scheme q4_k_m "$tmp/model.gguf" --force
"$lq" bench model "$tmp/model.gguf" --prefill 16 --decode 16 --context 4096 --repeat 5 --threads 1 --csv "$out"
