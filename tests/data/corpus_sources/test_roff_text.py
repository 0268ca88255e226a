from hmoe.data.corpus_sources.roff_text import convert_roff

PAGE = r""".\" a comment
.TH LS 1 2023 "GNU"
.SH NAME
ls \- list \fBfiles\fR\" ends here
.de XX
.PP
.B ls
.RI [ option " more" ]...
.BI "int " set \
", int " message ;
.IP \(bu 2
say \[aq]hi\[aq]\&. \*(lq \e\|x \\n
.sp
'br
.TP
.BR a (1), \f[B]b\f[]
"""


def test_headings_fonts_and_escapes() -> None:
    assert convert_roff(PAGE) == (
        "LS 1 2023 GNU\n\nNAME\nls - list files\n\n\nls\n[option more]...\nint set, int message;\n\n* 2\n"
        "say 'hi'.  \\x \\n\n\n\na(1),b".replace("\n\n\n", "\n\n")
    )
