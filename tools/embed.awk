# embed.awk: writes the whole library as one C file, for programs that embed it in a build of their own.
#
#     awk -f tools/embed.awk -v gen=build/gen FILE.c... > quant_all.c          (make embed)
#
# Every FILE and every header it includes by a quoted name is copied in once, .def and .inc lists wherever they are
# included. Files of the library may use the same names for what is local to them (`one`, `PANEL`, `struct block`); in
# one translation unit these would collide, so a name that more than one file declares at file scope becomes FILE_NAME
# here. Names that begin with q_, Q_, lq_ or LQ_ belong to the whole library and are left alone. Macros of a .c file end
# with it. A header that a .c file includes after a #define of its own is a template: it is copied for each such file,
# and everything that it declares gets that file's name by a macro, so that it may paste names together. Kernels of an instruction set go between #if and #endif for their processor; a folder of kernels that this
# script does not know is refused.
#
# What it understands of C is what the tree is written in; tests/check_embed.sh compiles the result and compares what
# it computes.

function fail(why) { print "embed.awk: " why | "cat >&2"; failed = 1; exit 1 }
function stem(path) { sub(/.*\//, "", path); sub(/\.[a-z]*$/, "", path); return path }
function folder(path) { return match(path, /.*\//) ? substr(path, 1, RLENGTH - 1) : "." }
function is_shared(name) { return name ~ /^(q_|Q_|lq_|LQ_)/ }

function normal(path,    n, i, k, part, keep, out) { # a/b/../c is a/c
    n = split(path, part, "/")
    for (i = 1; i <= n; i++) {
        if (part[i] == ".." && k > 0 && keep[k] != "..") k--
        else if (part[i] != "" && part[i] != ".") keep[++k] = part[i]
    }
    out = keep[1]
    for (i = 2; i <= k; i++) out = out "/" keep[i]
    return out
}

# The lines of a file, once: text[path, 1 .. lines[path]].
function load(path,    line, n, got) {
    if (path in lines) return
    while ((got = (getline line < path)) > 0) text[path, ++n] = line
    if (got < 0) fail(path ": cannot be read")
    close(path)
    lines[path] = n
}

# The path that an include line of `from` means; "" for a header of the system.
function included(line, from,    name) {
    if (line !~ /^[ \t]*#[ \t]*include[ \t]*"/) return ""
    match(line, /"[^"]*"/)
    name = substr(line, RSTART + 1, RLENGTH - 2)
    return name ~ /\.inc$/ ? gen "/" name : normal(folder(from) "/" name)
}

# Cut the first token off `rest`. kind: n name, d number, s string or comment part, b blanks, o anything else.
# in_comment goes on from line to line.
function token(    end) {
    if (in_comment) {
        end = index(rest, "*/")
        in_comment = !end
        kind = "s"
        return cut(end ? end + 1 : length(rest))
    }
    if (match(rest, /^[A-Za-z_][A-Za-z0-9_]*/)) { kind = "n"; return cut(RLENGTH) }
    if (match(rest, /^\.?[0-9]([eEpP][+-]|[A-Za-z0-9_.])*/)) { kind = "d"; return cut(RLENGTH) }
    if (match(rest, /^[ \t]+/)) { kind = "b"; return cut(RLENGTH) }
    if (match(rest, /^("([^"\\]|\\.)*"|'([^'\\]|\\.)*')/)) { kind = "s"; return cut(RLENGTH) }
    if (substr(rest, 1, 2) == "//") { kind = "s"; return cut(length(rest)) }
    if (substr(rest, 1, 2) == "/*") {
        end = index(substr(rest, 3), "*/")
        in_comment = !end
        kind = "s"
        return cut(end ? end + 3 : length(rest))
    }
    kind = "o"
    return cut(rest ~ /^->/ ? 2 : 1)
}
function cut(n,    t) { t = substr(rest, 1, n); rest = substr(rest, n + 1); return t }

# ---- first pass: what each file declares at file scope

function declare(name, owner) {
    if (name == "" || (owner, name) in owns) return
    if (of_template) { # whatever it is called
        if (!((owner, name) in copies)) made[owner] = made[owner] " " name
        copies[owner, name] = 1
    } else if (!is_shared(name)) {
        owns[owner, name] = 1
        owners[name]++
    }
}

# A statement at file scope, cut into word[1 .. words], ends with `;` or begins a body with `{`.
function statement(owner, ending,    i, name, depth) {
    if (words == 0) return
    if (word[1] == "extern" || word[1] == "_Static_assert") return
    for (i = 1; i <= words; i++) { # the name before the first parenthesis, bracket or `=`, else the last
        if (word[i] == "__attribute__") { # skip its parentheses
            for (depth = 0; i < words; ) {
                i++
                if (word[i] == "(") depth++
                if (word[i] == ")" && --depth == 0) break
            }
            continue
        }
        if (i + 1 < words && word[i] == "(" && word[i + 1] == "*") { name = word[i + 2]; break } # (*name)(
        if (word[i] ~ /^[(\[=]$/) break
        if (word[i] ~ /^[A-Za-z_]/) name = word[i]
    }
    if (name ~ /^[A-Z][A-Z0-9_]*$/) return # a macro makes the name
    if (word[1] == "typedef" || ending == ";" || word[words] == ")" || word[words] == "=") {
        if (!aggregate || word[words] != "}") declare(name, owner)
    }
}

# Read the declarations of `path` as those of `owner`: of itself, or of the file whose template it is.
function scan(path, owner,    i, line, t, depth, to, continued, defines, templates, list) {
    if ((path, owner) in scanned) return
    scanned[path, owner] = 1
    load(path)
    words = depth = 0
    in_comment = aggregate = enumerating = 0
    for (i = 1; i <= lines[path]; i++) {
        line = text[path, i]
        if (!in_comment && (continued || line ~ /^[ \t]*#/)) {
            to = included(line, path)
            if (line ~ /^[ \t]*#[ \t]*define/) defines = 1
            if (to ~ /\.h$/ && path ~ /\.c$/ && defines) {
                template[path, to] = 1
                templates = templates " " to
            } else if (to ~ /\.[ch]$/) pending[++pendings] = to
            continued = line ~ /\\$/
            continue
        }
        # A macro call that ends without a semicolon is no part of what follows: Q_FORMAT(q4_0, 32, 18)
        if (line ~ /^[A-Za-z_]/ && word[words] == ")" && word[1] ~ /^[A-Z][A-Z0-9_]*$/ && word[2] == "(") words = 0
        for (rest = line; rest != "";) {
            t = token()
            if (kind == "b" || kind == "s") continue
            if (t == "{") {
                if (depth++ == 0) {
                    # extern "C" { in libquant.h, which has only names of its own
                    aggregate = enumerating = 0
                    for (to = 1; to <= words; to++) {
                        if (word[to] == "=" || word[to] == "(") { aggregate = enumerating = 0; break }
                        if (word[to] ~ /^(struct|union|enum)$/) {
                            aggregate = 1
                            enumerating = word[to] == "enum"
                            if (to < words && word[to + 1] ~ /^[A-Za-z_]/) declare(word[to + 1], owner)
                        }
                    }
                    if (!aggregate) statement(owner, "{")
                    first = 1
                }
                if (enumerating && depth == 1) { first = 1; continue }
                continue
            }
            if (t == "}") {
                if (--depth == 0) {
                    if (aggregate) word[++words] = "}"
                    else if (words && word[words] != "=") words = 0
                    enumerating = 0
                }
                continue
            }
            if (depth == 0) {
                if (t == ";") {
                    if (!(words && word[words] == "}")) statement(owner, ";")
                    words = aggregate = 0
                } else word[++words] = t
            } else if (enumerating && depth == 1) {
                if (first && kind == "n") declare(t, owner)
                first = t == ","
            }
        }
    }
    depth = split(templates, list, " ")
    for (i = 1; i <= depth; i++) {
        of_template = 1
        scan(list[i], path)
        of_template = 0
    }
}

# ---- second pass: copy

# Tokens of a line with the names of `file` that collide replaced. Members of records keep theirs: they follow `.` or
# `->`, or stand in a struct before what ends a declarator.
function renamed(line, file,    out, t, before, next_one) {
    for (rest = line; rest != "";) {
        t = token()
        if (kind == "b" || kind == "s") { out = out t; continue }
        if (kind == "n" && (file, t) in owns && owners[t] > 1 && before != "." && before != "->") {
            match(rest, /^[ \t]*/)
            next_one = substr(rest, RLENGTH + 1, 1)
            if (!(in_record && next_one ~ /^[;,:\[)]$/ && before != "[")) t = stem(file) "_" t
        }
        if (t == "struct" || t == "union") record = 1
        else if (t == "{") {
            braces++
            if (record && !in_record) in_record = braces
            record = 0
        } else if (t == "}") {
            if (in_record == braces) in_record = 0
            braces--
        } else if (t ~ /^[;=()]$/) record = 0
        out = out t
        before = t
    }
    return out
}

function put(line) { body[++body_lines] = line }

# Copy `path`. Lists (.def, .inc) and templates are part of the file that includes them, `owner`, and share its names.
function copy(path, owner,    i, line, to, level, base, guard, comment, macro, list) {
    load(path)
    put("\n/* ======== " path " */")
    if (path == owner) {
        to = split(made[owner], list, " ")
        for (i = 1; i <= to; i++) put("#define " list[i] " " stem(owner) "_" list[i])
    }
    for (i = 1; i <= lines[path]; i++) {
        line = text[path, i]
        if (!comment && line ~ /^[ \t]*#[ \t]*if/) { # a header's own guard does not make its includes conditional
            if (!guard++ && path ~ /\.h$/ && line ~ /^#ifndef/) base = 1
            level++
        }
        if (!comment && line ~ /^[ \t]*#[ \t]*endif/) level--
        to = comment ? "" : included(line, path)
        if (to != "") {
            if (to ~ /\.(def|inc)$/ || (owner, to) in template) copy(to, owner)
            else if (!(to in done)) {
                if (level <= base) done[to] = 1
                if (only != "") inside[to] = 1
                copy(to, to)
            }
            continue
        }
        if (!comment && line ~ /^[ \t]*#[ \t]*include[ \t]*</) {
            match(line, /<[^>]*>/)
            to = "#include " substr(line, RSTART, RLENGTH)
            # Declared before the pragmas, which are not for the functions of the system.
            if (only == "" && level <= base) system_headers[to] = system_headers[to] ? system_headers[to] : ++headers
            else put("#pragma GCC visibility push(default)\n" to "\n#pragma GCC visibility pop")
            continue
        }
        if (!comment && owner ~ /\.c$/ && match(line, /^[ \t]*#[ \t]*define[ \t]+[A-Za-z_][A-Za-z0-9_]*/)) {
            macro = substr(line, 1, RLENGTH)
            sub(/.*[ \t]/, "", macro)
            if (!(macro in defined)) { defined[macro] = 1; macros[owner] = macros[owner] " " macro }
        }
        in_comment = comment
        put(renamed(line, owner))
        comment = in_comment
    }
    if (path != owner) return
    to = split(macros[owner] made[owner], list, " ")
    for (i = 1; i <= to; i++) { put("#undef " list[i]); delete defined[list[i]] }
}

# What kernels of a folder need; "" nothing.
function processor(path) {
    if (path !~ /^kernels\/cpu\/[^\/]+\//) return ""
    if (path ~ /^kernels\/cpu\/x86\//) return "defined(__x86_64__)"
    if (path ~ /^kernels\/cpu\/arm\//) return "defined(__aarch64__)"
    fail(path ": for which processor are the kernels of this folder?")
}

function add(file) {
    if (file in done) return
    done[file] = 1
    copy(file, file)
}

# The end of an #if: headers that were first met inside are not there for others.
function leave(    to) {
    if (only != "") put("#endif /* " only " */")
    for (to in inside) if (to ~ /\.h$/) delete done[to]
    split("", inside)
    only = ""
}

BEGIN {
    if (gen == "") fail("-v gen=FOLDER is missing")
    for (i = 1; i < ARGC; i++) scan(normal(ARGV[i]), normal(ARGV[i]))
    while (pendings > 0) { to = pending[pendings--]; scan(to, to) }

    for (i = 1; i < ARGC; i++) # first what every processor has: the kernels of one include parts of it
        if (processor(normal(ARGV[i])) == "") add(normal(ARGV[i]))
    for (i = 1; i < ARGC; i++) {
        file = normal(ARGV[i])
        if (processor(file) == "") continue
        if (processor(file) != only) {
            leave()
            only = processor(file)
            put("\n#if " only)
        }
        inside[file] = 1
        add(file)
    }
    leave()

    print "/* quant_all.c: all of libquant in one file. Made from its sources (make embed): change those instead."
    print " *"
    print " * Compile it as C11 or later with gcc or clang, without any option of its own, and link with -lm"
    print " * -pthread. libquant.h is its interface. Models run on the processor: of devices, the kernels are in the tree's own"
    print " * build, with the compilers that they need."
    print " *"
    while ((getline line < "LICENSE") > 0) print " *" (line == "" ? "" : " " line)
    print " */"
    print "#ifndef _GNU_SOURCE\n#define _GNU_SOURCE 1\n#endif"
    print "#define Q_HOST 1 /* formats: besides the decoders, what writes blocks */"
    for (i = 1; i <= headers; i++)
        for (to in system_headers) if (system_headers[to] == i) print to
    print "/* Results are the same bits everywhere only where no compiler fuses a product and a sum on its own. */"
    print "#if defined(__clang__)\n#pragma STDC FP_CONTRACT OFF"
    print "#else\n#pragma GCC push_options\n#pragma GCC optimize(\"fp-contract=off\")\n#endif"
    print "/* Warnings are for the build of the library, which has none, not for whoever embeds it. */"
    print "#pragma GCC diagnostic push\n#pragma GCC diagnostic ignored \"-Wunused-function\""
    print "#if !defined(__clang__)\n#pragma GCC diagnostic ignored \"-Wmaybe-uninitialized\"\n#endif"
    print "/* Nothing but lq_* leaves a shared object that this becomes part of. */"
    print "#pragma GCC visibility push(hidden)"
    for (i = 1; i <= body_lines; i++) print body[i]
    print "\n#pragma GCC visibility pop"
    print "#pragma GCC diagnostic pop\n#if !defined(__clang__)\n#pragma GCC pop_options\n#endif"
    exit
}
END { if (failed) exit 1 }
