#!/bin/bash
# cli_completion.sh: `lq completion`, as the shells use it: bash's function is called with the words of a command line,
# fish is asked what it would offer, zsh's rules run over stand-ins for its own functions.
. tests/cli_lib.sh

# bash: offers WORD... = what the last WORD could become, with spaces between.
exits 0 "bash" "$LQ" completion bash
cp "$out" lq.bash
offers() {
    bash --norc -c '. ./lq.bash; COMP_WORDS=("$@"); COMP_CWORD=$#-1; COMP_CWORD=$((COMP_CWORD)); _lq
        [[ -z ${COMPREPLY[0]} ]] || printf "%s\n" "${COMPREPLY[@]}"' _ "$@" 2>"$err" | LC_ALL=C sort | tr '\n' ' ' | sed 's/ $//'
}
is() { # is EXPECTED WORD...
    _want=$1; shift
    got=$(offers "$@")
    holds "bash: $*: '$got', expected '$_want'" "$got" = "$_want"
}
has_words() { # has_words "A B" WORD...: these among others
    _want=$1; shift
    got=" $(offers "$@") "
    for w in $_want; do case $got in *" $w "*) pass ;; *) fail "bash: $*: no $w among$got" ;; esac; done
}
commands=$(sed -n 's/^COMMAND(\([a-z_]*\)).*/\1/p' "$T_ROOT/tools/commands.def")
for c in $commands; do
    case $c in
    bench_*) sub=${c#bench_}; has_words "${sub//_/-}" lq bench ''; has_words "${sub//_/-}" lq help bench '' ;;
    *) has_words "$c" lq ''; has_words "$c" lq help '' ;;
    esac
done
is quantize lq qu
is bench lq b
is quality lq bench qu
is 'bash fish zsh' lq completion ''
is '' lq completion bash ''
is --scheme lq quantize --sch
is --scheme lq quantize a b --force --sch
has_words '--model --schemes --json --help' lq bench quality --
is '' lq nothing ''
# What --scheme takes: schemes and formats; `begin PREFIX` = those that begin so.
{ "$LQ" info --schemes; "$LQ" info --formats | sed 1d; } | sed 's/ .*//' | LC_ALL=C sort -u >names
begin() { grep "^$1" names | sed "s/^/${2-}/" | tr '\n' ' ' | sed 's/ $//'; }
holds 'names of schemes and formats' "$(grep -cE '^(q4_k_m|nf4|q3_k)$' names)" -eq 3
is "$(begin '')" lq quantize --scheme ''
is "$(begin '')" lq quantize -s ''
is "$(begin q4_)" lq quantize --scheme q4_
is "$(begin q4_)" lq quantize --scheme = q4_
is "$(begin '')" lq quantize --scheme =
is "$(begin q5 q4_0,)" lq bench quality --schemes q4_0,q5
has_words "$(sed -n 's/^ISA(\([a-z0-9_]*\),.*/\1/p' "$T_ROOT/kernels/cpu/isa.def")" lq run --isa ''
is '' lq run --threads ''
is 'cpu vulkan:0' lq run --device ''
is vulkan:0 lq eval --device v
is '' lq run --gpu-layers ''
is '' lq run --prompt ''
mkdir 'a folder'; : >'a model.gguf'; : >a.txt
is 'a folder a model.gguf a.txt' lq run a
is 'a model.gguf' lq run -p --special 'a m'
is 'a folder a model.gguf a.txt' lq eval --text a
is 'a.txt' lq eval --text = a.
is 'a.txt' lq run --device vulkan : 0 a. # bash takes the name apart at its colon
is '' lq run a.txt a
# Read by a shell it is registered for lq, and says nothing.
call bash --norc -c '. ./lq.bash; complete -p lq'
says 'bash: registered' '-F _lq lq' "$out"; holds 'bash: silent' ! -s "$err"

# An option that a command has is one that its completion offers, and the other way round.
for c in quantize info run eval 'bench quality' 'bench model'; do
    # shellcheck disable=SC2086
    want=$("$LQ" $c --help | sed -n 's/^  \(-., \|    \)--\([a-z0-9-]*\).*/--\2/p' | LC_ALL=C sort | tr '\n' ' ' | sed 's/ $//')
    # shellcheck disable=SC2086
    got=$(offers lq $c --)
    holds "bash: options of $c: $got" "$got" = "$want"
done

exits 0 "zsh" "$LQ" completion zsh
cp "$out" _lq
if command -v zsh >/dev/null 2>&1; then
    exits 0 "zsh: syntax" zsh -n ./_lq
    cat >drive.zsh <<'Z'
compdef() { true }
_describe() { print -r -- describe ${${(P)2}%%:*} }
_arguments() { print -rl -- "arguments ${words[1]} $CURRENT" "$@" }
. ./_lq
words=("$@") CURRENT=$#
_lq
Z
    exits 0 "zsh: commands" zsh -f ./drive.zsh lq ''
    says "zsh: commands" '^describe quantize .*bench .*help$' "$out"
    exits 0 "zsh: groups" zsh -f ./drive.zsh lq bench ''; says "zsh: groups" '^describe quality model' "$out"
    exits 0 "zsh: help" zsh -f ./drive.zsh lq help bench ''; says "zsh: help" '^describe quality model' "$out"
    exits 0 "zsh: options" zsh -f ./drive.zsh lq bench quality --sch
    says "zsh: options" '^arguments quality 2$' "$out"; says "zsh: list" '--schemes=.*:_values -s , .*q4_k_m' "$out"
    says "zsh: repeated" '^\*-x+\[' "$out"
    exits 0 "zsh: operands" zsh -f ./drive.zsh lq quantize ''
    says "zsh: operands" '^2:DST:_files$' "$out"; says "zsh: words" '^(-s --scheme)--scheme=\[.*:NAME:(.*q4_k_m' "$out"
    says "zsh: flag" '^(-f --force)-f\[replace' "$out"
    exits 0 "zsh: a colon" zsh -f ./drive.zsh lq run ''; says "zsh: a colon" ':NAME:(cpu vulkan.:0)$' "$out"
else skip "zsh is not here: its completion"; fi

exits 0 "fish" "$LQ" completion fish
cp "$out" lq.fish
if command -v fish >/dev/null 2>&1; then
    mkdir -p home
    fish_is() { # fish_is EXPECTED LINE
        got=$(HOME=$T_TMP/home XDG_CONFIG_HOME='' XDG_DATA_HOME='' fish --no-config -c ". ./lq.fish; complete -C '$2'" 2>"$err" |
            cut -f1 | LC_ALL=C sort | tr '\n' ' ')
        holds "fish: '$2': '$got', expected '$1'" "$got" = "$1"
    }
    exits 0 "fish: syntax" fish --no-config -n ./lq.fish
    fish_is 'quantize ' 'lq qu'
    fish_is 'quality ' 'lq bench qu'
    fish_is 'quality ' 'lq help bench qu'
    fish_is '--scheme ' 'lq quantize --sch'
    fish_is "$(begin q4_) " 'lq quantize --scheme q4_'
    fish_is "$(begin q5 q4_0,) " 'lq bench quality --schemes q4_0,q5'
    fish_is 'bash fish zsh ' 'lq completion '
    fish_is 'a.txt ' 'lq run a.t'
    fish_is '' 'lq bench quality '
else skip "fish is not here: its completion"; fi

exits 2 "another shell" "$LQ" completion csh; says "another shell" 'bash, zsh and fish'
exits 0 "JSON" "$LQ" completion bash --json; holds "JSON" "$(json shell)" = bash
json script >from_json; says "JSON: script" '^complete -F _lq lq$' from_json
finish
