"""Use a Hugging Face tokenizer.json as a Tokenizer, whatever its model, decoder and stored settings are."""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer as HuggingFace
from tokenizers import models

from hmoe.data.byte_letters import map_letters_to_bytes
from hmoe.data.control_tokens import hide_control_tokens
from hmoe.data.detokenizer import Detokenizer
from hmoe.data.post_processor import read_frame, write_frame
from hmoe.errors import DataError

SEPARATOR = "<|endoftext|>"
_END_TOKENS = ("</s>", SEPARATOR, "<|end_of_text|>", "<eos>", "<|im_end|>", "[SEP]")
# Words and letters that a vocabulary has, and such as it lacks unless it has bytes or an unknown token.
_PROBES = (
    "a",
    "the",
    " ",
    "0",
    "zqxjkv",
    "98171",
    "\u05e9\u05dc",
    "\u6f22",
    "\U0001f600",
    "\ue123",
    "\u00eb!",
)
# Pieces to which no decoder does anything; two, as CTC drops repetitions.
_BEFORE, _AFTER = ("\ue000", "\ue001")
_BYTE_OF = map_letters_to_bytes()


class HuggingFaceTokenizer:
    """The tokenizer that a `tokenizer.json` defines; its end-of-text token separates documents.

    Args:
        content: bytes of the file.
        where: its path, for errors.
        separator: text of the end-of-text token; None: the first of the usual ones that the vocabulary has.
        ends: further ids that end a text.

    Raises:
        DataError: if it is no tokenizer, has no end-of-text token, or cannot encode every text.
    """

    file_name = "tokenizer.json"

    def __init__(
        self,
        content: bytes,
        where: str,
        separator: str | None = None,
        ends: Sequence[int] = (),
    ) -> None:
        self._where = where
        with self._errors("not a Hugging Face tokenizer"):
            self._tokenizer = _load_plain(content)
            definition = json.loads(content)
        self.content = content
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = max(self._tokenizer.get_vocab().values(), default=-1) + 1  # ids may have holes
        self.separator = self._find_separator(_END_TOKENS if separator is None else [separator])
        others = [token for token in ends if token != self.separator and 0 <= token < self.vocab_size]
        self.ends = (self.separator, *others)
        self.unknown = self._unknown_token(definition["model"])
        added = self._tokenizer.get_added_tokens_decoder()
        self.specials = {
            added_token.content: token for token, added_token in added.items() if added_token.special
        }
        self._decoders = list(_flat_decoders(definition.get("decoder")))
        self._control: set[int] = {*self.specials.values(), *self.ends} - {self.unknown}
        self._is_fitted = any(definition.get(name) for name in ("truncation", "padding"))
        self._frame = read_frame(self._tokenizer, self._check_encoding())
        self.begin, self.after = self._frame
        self._control.update(self.begin)
        # Ends and begins that the file does not flag as special are control tokens too.
        self.specials |= {
            str(self._tokenizer.id_to_token(token)): token for token in (*self.ends, *self.begin)
        }

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text; control tokens typed in a text become ordinary pieces."""
        encodings = self._encode(self._tokenizer, texts)
        typed = [place for place, ids in enumerate(encodings) if not self._control.isdisjoint(ids)]
        if typed:  # rare, so only these texts pay for a second tokenizer
            plain = self._encode(self._without_control, [texts[place] for place in typed])
            for place, ids in zip(typed, plain, strict=True):
                encodings[place] = ids
        return encodings

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, control tokens left out."""
        return self.decode_batch([ids])[0]

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        """Return the text of each list of ids, decoded over all cores."""
        plain = [[token for token in ids if token not in self._control] for ids in batch]
        with self._errors("cannot decode"):
            texts = iter(
                self._tokenizer.decode_batch([ids for ids in plain if ids], skip_special_tokens=False)
            )
        return [next(texts) if ids else "" for ids in plain]  # some decoders panic where there are no ids

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """Return what decodes tokens as they come after `context`."""
        return Detokenizer(self.decode, self._is_open, context)

    def normalize(self, text: str) -> str:
        """Return the text as the tokenizer's own normalizer leaves it."""
        normalizer = self._tokenizer.normalizer
        with self._errors("cannot normalize"):
            return text if normalizer is None else str(normalizer.normalize_str(text))

    def content_with_begin(self, begin: Sequence[int]) -> bytes:
        """Return a tokenizer.json that puts `begin` before every text and nothing after it.

        It is the same bytes where the tokenizer does so already.
        """
        if self._frame == (tuple(begin), ()) and not self._is_fitted:
            return self.content
        return write_frame(self.content, begin)

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of one token within a text; none for control tokens and holes."""
        piece = self._tokenizer.id_to_token(token)
        if piece is None or token in self._control:
            return b""
        kinds = {decoder["type"] for decoder in self._decoders}
        if "ByteLevel" in kinds and all(letter in _BYTE_OF for letter in piece):
            return bytes(_BYTE_OF[letter] for letter in piece)
        if "ByteFallback" in kinds and _is_byte(piece):
            return bytes([int(piece[3:5], 16)])
        # Other decoders look at a piece's neighbours, so it is decoded between two, whose text is removed.
        within, without = self._decode_pieces(_BEFORE, piece, _AFTER), self._decode_pieces(_BEFORE, _AFTER)
        return within.removesuffix(without.removeprefix(_BEFORE)).removeprefix(_BEFORE).encode()

    def _decode_pieces(self, *pieces: str) -> str:
        with self._errors("cannot decode"):
            decoder = self._tokenizer.decoder
            return " ".join(pieces) if decoder is None else str(decoder.decode(list(pieces)))

    def _encode(self, tokenizer: HuggingFace, texts: list[str]) -> list[list[int]]:
        with self._errors("cannot encode every text"):
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    @cached_property
    def _without_control(self) -> HuggingFace:
        """The same tokenizer without control tokens, for the few texts in which they are typed."""
        names = [str(self._tokenizer.id_to_token(token)) for token in sorted(self._control)]
        with self._errors("cannot encode every text"):
            return _load_plain(hide_control_tokens(self.content, names))

    def _find_separator(self, names: Sequence[str]) -> int:
        """Return the id of the first of `names` that the vocabulary has; raise DataError if it has none."""
        ids = [token for token in map(self._tokenizer.token_to_id, names) if token is not None]
        if ids:
            return ids[0]
        if len(names) > 1:
            raise DataError(
                f"{self._where}: no end-of-text token to separate documents; looked for {', '.join(names)}; "
                "name one as separator"
            )
        special = [
            token.content for token in self._tokenizer.get_added_tokens_decoder().values() if token.special
        ]
        near = difflib.get_close_matches(names[0], special or list(self._tokenizer.get_vocab()), 1, 0)
        hint = f"; nearest is {near[0]}" if near else ""
        raise DataError(
            f"{self._where}: no end-of-text token {names[0]!r} in the vocabulary{hint}; name one as separator"
        )

    def _unknown_token(self, model: dict[str, Any]) -> int | None:
        """Return the id of text that the vocabulary lacks, if any; raise DataError if it ends texts."""
        unknown: int | None = model.get("unk_id")
        if unknown is None and model.get("unk_token") is not None:
            unknown = self._tokenizer.token_to_id(model["unk_token"])
        if unknown not in self.ends:
            return unknown
        if isinstance(self._tokenizer.model, models.BPE):  # a byte-level one has no use for it
            self._tokenizer.model.unk_token = None
            return None
        raise DataError(
            f"{self._where}: unknown text would become {self._tokenizer.id_to_token(unknown)}, which ends texts"
        )

    def _check_encoding(self) -> str:
        """Return a text that has tokens; raise DataError if there is none, or if a text cannot be encoded."""
        tokens = [token for token in self._tokenizer.get_vocab().values() if token not in self._control]
        encodings = self._encode(self._tokenizer, list(_PROBES))
        texts = [
            text
            for text, ids in zip(_PROBES, encodings, strict=True)
            if ids and self._control.isdisjoint(ids)
        ]
        if not texts:  # the first letters may not be in a small vocabulary
            candidates = self.decode_batch([[token] for token in sorted(tokens)[:1000]])
            encodings = self._encode(self._tokenizer, candidates)
            texts = [text for text, ids in zip(candidates, encodings, strict=True) if ids]
        if not texts:
            raise DataError(
                f"{self._where}: gives no token for any text; it has {len(tokens)} tokens besides control tokens"
            )
        return texts[0]

    def _is_open(self, token: int) -> bool:
        """Return whether the text of a token may change with the tokens after it.

        A run of bytes is decoded as a whole, and a replacement of several characters may span tokens.
        """
        fused = False
        for decoder in self._decoders:
            if decoder["type"] == "ByteFallback" and _is_byte(self._tokenizer.id_to_token(token) or ""):
                return True
            if fused and decoder["type"] == "Replace" and len(decoder["pattern"].get("String", "  ")) > 1:
                return True
            fused |= decoder["type"] in ("Fuse", "ByteLevel")
        return False

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Turn whatever the library raises into a DataError of one line."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit, MemoryError, DataError):
            raise
        except BaseException as error:  # bare Exception, and panics of Rust, which are no Exception
            raise DataError(f"{self._where}: {what}: {' '.join(str(error).split())[:200]}") from None


def _load_plain(content: bytes) -> HuggingFace:
    """Load a tokenizer without its stored settings for batches of fixed length or for training with noise."""
    tokenizer = HuggingFace.from_str(content.decode())
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def _flat_decoders(decoder: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    """List the steps of a decoder in order, those of nested sequences too."""
    for inner in decoder.get("decoders", [decoder]) if decoder else []:
        yield from _flat_decoders(inner) if inner["type"] == "Sequence" else [inner]


def _is_byte(piece: str) -> bool:
    return re.fullmatch("<0x[0-9A-Fa-f]{2}>", piece) is not None
