"""The letters in which byte-level tokenizers write bytes."""


def map_letters_to_bytes() -> dict[str, int]:
    """Return, for each printable character in which byte-level tokenizers write a byte, that byte.

    Printable Latin-1 stands for itself, the other 68 bytes are the characters from 256 on, as in GPT-2.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {
        chr(256 + index): byte for index, byte in enumerate(others)
    }
