from hmoe.data.corpus_sources.html_text import convert_html

PAGE = """<html><head><title>T</title><script>if (a < b) x();</script></head><body>
<div class="navheader" summary="x"><div>Prev</div> Up</div>
<h1>Title &amp;  more</h1><p>One <b>bold</b>
word.<br>Next &lt;line&gt;.</p><ul><li>a</li><li>b</li></ul>
<table><tr><td>1</td><td>2</td></tr><tr><td>3</td></tr></table>
<pre>  keep
    this</pre><style>p {}</style>after
</body></html>"""


def test_blocks_stand_on_lines_of_their_own_and_the_rest_is_gone() -> None:
    assert convert_html(PAGE) == (
        "Title & more\n\nOne bold word.\nNext <line>.\n\na\nb\n\n1 2\n3\n\n  keep\n    this\n\nafter"
    )


def test_a_skipped_element_ends_with_its_own_end() -> None:
    assert convert_html('<div class="a navfooter">x<div>y</div>z</div>w') == "w"
