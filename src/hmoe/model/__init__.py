"""The model on one device: no torch.distributed here.

Letters in tensor names, everywhere in the package: `B` sequences, `L` positions, `T` tokens (B*L), `V`
vocabulary, `D` model width, `H` heads, `G` key/value heads, `C` head width, `E` experts, `K` chosen, `N`
token-expert pairs, `F` expert widths summed, `M` rows of one expert, `h` hidden units of one expert, `P` rows
with padding.
"""
