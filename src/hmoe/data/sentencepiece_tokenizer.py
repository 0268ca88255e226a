"""Use a SentencePiece model as a Tokenizer; this needs the [data] extra."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from hmoe.data.detokenizer import Detokenizer
from hmoe.errors import DataError, make_missing_extra_error


class SentencePieceTokenizer:
    """A SentencePiece model such as LLaMA-2's `tokenizer.model`; its control pieces never come from a text.

    Args:
        content: bytes of the model.
        where: its path, for errors.
        add_bos: whether texts begin with its BOS; the model cannot say so, tokenizer_config.json may.

    Raises:
        ConfigError: if sentencepiece is not installed.
        DataError: if it is no such model, or has no end-of-text token.
    """

    file_name = "tokenizer.model"
    after: tuple[int, ...] = ()

    def __init__(self, content: bytes, where: str, add_bos: bool = False) -> None:
        try:
            import sentencepiece  # noqa: PLC0415 - optional extra
        except ImportError:
            raise make_missing_extra_error("SentencePiece tokenizers", "data") from None
        try:
            self._model: Any = sentencepiece.SentencePieceProcessor(model_proto=content)
        except RuntimeError as error:
            raise DataError(
                f"{where}: not a SentencePiece model: {' '.join(str(error).split())[:200]}"
            ) from None
        if self._model.eos_id() < 0:  # a piece of that name which users defined counts as text
            raise DataError(
                f"{where}: the SentencePiece model has no end-of-text token to separate documents"
            )
        self.content = content
        self.fingerprint = hashlib.sha256(content).hexdigest()
        self.vocab_size = self._model.vocab_size()
        self.separator = self._model.eos_id()
        self.begin: tuple[int, ...] = (self._model.bos_id(),) if add_bos and self._model.bos_id() >= 0 else ()
        self.unknown: int | None = self._model.unk_id()
        self.ends: tuple[int, ...] = (self.separator,)
        controls = filter(self._model.is_control, range(self.vocab_size))
        self.specials = {self._model.id_to_piece(token): token for token in controls}

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, encoded over all cores."""
        ids: list[list[int]] = self._model.encode(texts, num_threads=-1)
        return ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of ids, the separator and ids above the vocabulary left out."""
        known = [token for token in ids if token != self.separator and token < self.vocab_size]
        text: str = self._model.decode(known)
        return text

    def decode_batch(self, batch: list[list[int]]) -> list[str]:
        """Return the text of each list of ids."""
        return [self.decode(ids) for ids in batch]

    def detokenizer(self, context: Sequence[int] = ()) -> Detokenizer:
        """Return what decodes tokens as they come after `context`."""
        return Detokenizer(self.decode, lambda token: False, context)

    def normalize(self, text: str) -> str:
        """Return the text as the model's own rules leave it."""
        return str(self._model.normalize(text))

    def token_bytes(self, token: int) -> bytes:
        """Return the UTF-8 bytes of one token within a text; none for control pieces."""
        if token >= self.vocab_size or self._model.is_control(token):
            return b""
        piece = self._model.id_to_piece(token)
        byte_piece = re.fullmatch("<0x([0-9A-F]{2})>", piece)
        return bytes([int(byte_piece[1], 16)]) if byte_piece else piece.replace("\u2581", " ").encode()
