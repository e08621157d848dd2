#!/bin/sh
# install.sh: what `make install` puts where, and what `make uninstall` takes away again: one list for both.
#
# Called by the Makefile alone, which sets DESTDIR, B, VERSION, MANPAGES, LDCONFIG and the folders. Everything goes
# below DESTDIR; DESTDIR is written into no file. Folders that are libquant's own are removed when they are empty,
# others stay.
set -eu
mode=$1
umask 022

put() { # put MODE SOURCE FOLDER [NAME]
    to=$DESTDIR$3/${4:-$(basename "$2")}
    if [ "$mode" = uninstall ]; then rm -f "$to"; return; fi
    mkdir -p "$DESTDIR$3"
    rm -f "$to" # a program or library in use keeps its old file
    cp "$2" "$to"
    chmod "$1" "$to"
}
link() { # link TARGET FOLDER NAME
    if [ "$mode" = uninstall ]; then rm -f "$DESTDIR$2/$3"; else ln -sf "$1" "$DESTDIR$2/$3"; fi
}
own_folder() { [ "$mode" = install ] || rmdir "$DESTDIR$1" 2>/dev/null || true; }

abi=${VERSION%%.*}
put 755 "$B/lq" "$BINDIR"
put 644 include/libquant.h "$INCLUDEDIR"
put 644 include/libquant.hpp "$INCLUDEDIR"
put 644 "$B/install/libquant.a" "$LIBDIR"
put 755 "$B/libquant.so" "$LIBDIR" "libquant.so.$VERSION"
link "libquant.so.$VERSION" "$LIBDIR" "libquant.so.$abi"
link "libquant.so.$abi" "$LIBDIR" libquant.so

# libquant.pc is written for these folders: relative to its prefix where they lie below it, so that it can be moved.
if [ "$mode" = install ]; then
    below() { case $1 in "$PREFIX"/*) echo "\${prefix}${1#"$PREFIX"}" ;; *) echo "$1" ;; esac; }
    {
        echo "prefix=$PREFIX"
        echo "libdir=$(below "$LIBDIR")"
        echo "includedir=$(below "$INCLUDEDIR")"
        echo
        echo 'Name: libquant'
        echo 'Description: quantizes large language models and runs them'
        echo "Version: $VERSION"
        # shellcheck disable=SC2016 # for pkg-config
        echo 'Cflags: -I${includedir}'
        # shellcheck disable=SC2016
        echo 'Libs: -L${libdir} -lquant'
        echo 'Libs.private: -lm -pthread'
    } >"$B/install/libquant.pc"
fi
put 644 "$B/install/libquant.pc" "$PKGCONFIGDIR"

for f in $MANPAGES; do put 644 "$B/man/$f" "$MANDIR/man${f##*.}"; done
put 644 "$B/completion/bash" "$BASHDIR" lq
put 644 "$B/completion/zsh" "$ZSHDIR" _lq
put 644 "$B/completion/fish" "$FISHDIR" lq.fish

# The bundled model and texts, where bin/lq looks for them, and the binding for Python.
data=$PREFIX/share/libquant
for f in bench/data/pocket/*; do put 644 "$f" "$data/pocket"; done
for f in bench/data/text/*; do put 644 "$f" "$data/text"; done
put 644 bench/data/README.md "$data"
put 644 tools/bindings/libquant.py "$data/python"
if [ "$mode" = uninstall ]; then rm -f "$DESTDIR$data"/python/__pycache__/libquant.*.pyc; fi # Python's, made of ours
for d in pocket text python/__pycache__ python; do own_folder "$data/$d"; done
own_folder "$data"

for f in README.md LICENSE CHANGELOG.md SECURITY.md; do
    if [ -e "$f" ]; then put 644 "$f" "$DOCDIR"; fi
done
for f in tools/examples/*; do put 644 "$f" "$DOCDIR/examples"; done
own_folder "$DOCDIR/examples"
own_folder "$DOCDIR"

# The loader's cache knows the new library only after this. Not for a package being built, nor without the right to.
if [ -z "$DESTDIR" ] && [ -w /etc/ld.so.cache ]; then $LDCONFIG || true; fi
