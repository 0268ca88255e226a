from hmoe.data.corpus_sources.pod_text import convert_pod

POD = """=encoding utf8

=head1 B<NAME> of it

perl - I<practical> C<< $x->{y} < 3 >> and L<the list|perlfunc>, L<perlop>, E<lt>E<eacute>E<33>E<sol>.X<index>

=for html <p>gone</p>

=over 4

=item 1

    verbatim  B<kept>

=back

=begin man

gone

=end man

B<an I<inner> one>

=cut
"""


def test_commands_and_codes_are_resolved() -> None:
    assert convert_pod(POD) == (
        "NAME of it\n\nperl - practical $x->{y} < 3 and the list, perlop, <é!/.\n\n1\n\n    verbatim  B<kept>\n\n"
        "an inner one"
    )
