# man3.awk: the manual page libquant(3) out of include/libquant.h, which is the manual: nothing is said twice.
#
#     awk -f tools/man3.awk -v version=0.1.0 -v date=2026-01-31 include/libquant.h > libquant.3
#
# The comment that opens the header becomes the description, "/* ---- name */" a section, and every other comment at the
# start of a line the text under the declarations that follow it.

function escape(s) { # text; what is `quoted` is a name
    gsub(/\\/, "\\e", s)
    while (match(s, /`[^`]*`/))
        s = substr(s, 1, RSTART - 1) "\\fI" substr(s, RSTART + 1, RLENGTH - 2) "\\fR" substr(s, RSTART + RLENGTH)
    return s ~ /^[.']/ ? "\\&" s : s
}
function code_escape(s) { gsub(/\\/, "\\e", s); gsub(/-/, "\\-", s); if (s ~ /^[ ]*[.']/) s = "\\&" s; return s }

# What was collected: declarations first, then the comment that stood before them.
function flush(    i) {
    while (codes > 0 && code[codes] == "") codes--
    if (codes == 0 && texts == 0) return
    if (codes > 0) {
        print (section ? "" : ".PP\n") ".nf"
        for (i = 1; i <= codes; i++) print code_escape(code[i])
        print ".fi"
    }
    if (texts > 0) {
        if (codes > 0) print ".RS 4"
        else if (!section) print ".PP"
        for (i = 1; i <= texts; i++) print escape(text[i])
        if (codes > 0) print ".RE"
    }
    codes = texts = section = 0
}

# A line of the opening comment: paragraphs, then rules as "  Name   text", whose further lines are indented more.
function opening(line,    name) {
    sub(/^ \*/, "", line)
    if (line == "") { blank = 1; return }
    if (match(line, /^   ?[A-Z][a-z]+  +/)) {
        name = substr(line, 1, RLENGTH)
        gsub(/ /, "", name)
        print ".TP\n.B " name
        line = substr(line, RLENGTH + 1)
    } else if (blank) print ".PP"
    blank = 0
    sub(/^ +/, "", line)
    print escape(line)
}

BEGIN {
    print ".TH LIBQUANT 3 \"" date "\" \"libquant " version "\" \"libquant manual\""
    print ".SH NAME\nlibquant \\- quantize large language models and run them"
    print ".SH SYNOPSIS\n.nf\n.B #include <libquant.h>\n.PP"
    print "\\fBcc\\fR \\fIprogram.c\\fR \\fB$(pkg\\-config \\-\\-cflags \\-\\-libs libquant)\\fR\n.fi"
    print ".SH DESCRIPTION"
}
NR == 1 { sub(/^\/\* libquant\.h: /, ""); print "libquant.h is"; print escape($0); head = 1; next }
head && /^ \*\// { head = 0; print ".SH FUNCTIONS AND TYPES"; next }
head { opening($0); next }
/^#define LQ_(VERSION)/ { codes++; code[codes] = $0; next }
/^#|^extern "C"|^}$/ { if (/^#if defined\(__GNUC__\)/) flush(); next }
/^\/\* -+ .* \*\/$/ {
    flush()
    gsub(/^\/\* -+ | \*\/$/, "")
    print ".SS " $0
    section = 1 # a paragraph begins with it
    next
}
/^\/\*/ { if (codes > 0 || texts > 0) flush(); in_text = 1 }
in_text {
    line = $0
    done = line ~ /\*\//
    sub(/^(\/\*| \*) ?/, "", line)
    sub(/ *\*\/.*/, "", line)
    if (line != "") text[++texts] = line
    if (done) in_text = 0
    next
}
/^$/ { if (codes > 0) flush(); next }
{
    if (open) sub(/^       /, "") # what went on under "LQ_API "
    open = (open || /^LQ_API /) && !/;$/
    sub(/^LQ_API /, "")
    code[++codes] = $0
}
END {
    flush()
    print ".SH SEE ALSO\n.BR lq (1)"
}
