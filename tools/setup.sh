#!/bin/sh
# setup.sh: install the packages that building and testing need, where they are missing.
#
# Debian and its descendants: lists what is missing, asks first on a terminal, goes ahead without one (CI, containers),
# and uses sudo unless root. Elsewhere it installs nothing and says what to look for. Succeeds whenever the essentials
# are there: a compiler, make, and the headers of jansson and Check. `make SETUP=0` skips it.
# Quiet when nothing is missing, since every `make test` comes through here.
#
# setup.sh --aarch64: what `make test-aarch64` needs on a Debian system of another architecture: a cross compiler, an
# emulator, and the libraries for arm64, for which that architecture is added to dpkg's list.
set -u
essential='gcc libc6-dev make pkg-config libjansson-dev check'
optional='glslang-tools clang libclang-rt-14-dev gcovr' # shader checks of the formats; second compiler; fuzzing; coverage
optional="$optional g++ python3 mandoc zsh fish"         # C++ header; binding; manual pages; completion
# The Vulkan backend: headers and loader, compiler of shaders; a device without a GPU, and judges of what it is given.
optional="$optional libvulkan-dev glslc mesa-vulkan-drivers vulkan-validationlayers spirv-tools"
optional="$optional libopenblas0-pthread" # Hessians: `lq calibrate --hessians`, the quantizer gptq; and `lq bench kernels`
cc=${CC:-cc} foreign=
case "${1:-}" in
'') ;;
--aarch64)
    case "$(uname -m)" in aarch64|arm64) exit 0 ;; esac # `make test` is all of it
    cc=aarch64-linux-gnu-gcc foreign=arm64 optional=''
    essential='gcc-aarch64-linux-gnu libc6-dev-arm64-cross make pkg-config qemu-user-static libjansson-dev:arm64 check:arm64'
    ;;
*) echo 'usage: setup.sh [--aarch64]' >&2; exit 2 ;;
esac

has_header() { echo "#include <$1>" | "$cc" -E - >/dev/null 2>&1; }

# Without a package manager to ask: look for the things themselves.
missing_essentials() {
    command -v "$cc" >/dev/null 2>&1 || { echo "a C compiler ($cc)"; return; }
    command -v make >/dev/null 2>&1 || echo 'make'
    if [ "$foreign" ]; then
        command -v qemu-aarch64-static >/dev/null 2>&1 || echo 'an emulator (qemu-aarch64-static)'
        echo 'int main(void) { return 0; }' | "$cc" -x c - -o /dev/null -ljansson -lcheck >/dev/null 2>&1 ||
            echo "jansson and Check for $foreign"
    fi
    has_header jansson.h || echo 'jansson with its headers'
    has_header check.h || echo 'Check (libcheck) with its headers'
}

# The end of every way that did not install everything: fine if the essentials are there.
conclude() {
    lacking=$(missing_essentials)
    [ -z "$lacking" ] && exit 0
    echo 'setup: cannot go on without:' >&2
    echo "$lacking" | sed 's/^/  /' >&2
    exit 1
}

if ! command -v dpkg-query >/dev/null 2>&1 || ! command -v apt-get >/dev/null 2>&1; then
    [ -z "$(missing_essentials)" ] && exit 0
    echo 'setup: not a Debian system, so nothing is installed. What the build uses, by its Debian names:' >&2
    echo "  needed:   $essential" >&2
    echo "  optional: $optional" >&2
    conclude
fi

# pkgconf is the newer name of pkg-config. Any version of libclang-rt goes with some version of clang. Packages of
# another architecture are NAME:ARCHITECTURE.
native=$(dpkg --print-architecture)
have=$(dpkg-query -W -f '${db:Status-Status} ${Package}:${Architecture}\n' $essential $optional pkgconf \
    'libclang-rt-*-dev' 2>/dev/null | sed "s/:$native\$//; s/:all\$//")
installed() {
    case "
$have
" in *"
installed $1
"*) return 0 ;; esac
    return 1
}
missing=''
for p in $essential; do
    installed "$p" && continue
    [ "$p" = pkg-config ] && installed pkgconf && continue
    missing="$missing $p"
done
for p in $optional; do
    installed "$p" && continue
    case "$p" in libclang-rt-*)
        case "
$have" in *"
installed libclang-rt-"*) continue ;; esac ;;
    esac
    missing="$missing $p"
done
[ -z "$missing" ] && exit 0

echo "setup: these packages are missing:$missing"
case "$foreign" in ?*) echo "setup: this adds the architecture $foreign to dpkg's list" ;; esac
if [ -t 0 ] && [ -t 1 ]; then
    printf 'Install them now? [Y/n] '
    read -r answer
    case "$answer" in [nN]*) conclude ;; esac
fi

as_root=''
if [ "$(id -u)" -ne 0 ]; then
    if ! command -v sudo >/dev/null 2>&1; then
        echo 'setup: installing needs root, and there is no sudo' >&2
        conclude
    fi
    as_root='sudo'
    [ -t 0 ] || as_root='sudo -n'
fi
apt() {
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" </dev/null
}
if [ "$foreign" ]; then $as_root dpkg --add-architecture "$foreign" || conclude; fi
apt update || echo 'setup: the package lists could not be refreshed (make SETUP=0 skips all this)' >&2
# shellcheck disable=SC2086 # the lists are words
if apt install -y --no-install-recommends $missing; then exit 0; fi
# One name that this release does not have must not keep the others away.
for p in $missing; do
    apt install -y --no-install-recommends "$p" || echo "setup: $p could not be installed" >&2
done
conclude
