"""The tokenizer of a folder as transformers has it, which knows the roles of tokens and encodes chats."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hmoe.data import tokenizer as tokenizers
from hmoe.data.byte_letters import map_letters_to_bytes
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.errors import ConfigError, make_missing_extra_error

_SEPARATOR = "<|endoftext|>"
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def load_transformers_tokenizer(
    tokenizer: tokenizers.Tokenizer, begin: Sequence[int], folder: Path | None
) -> Any:
    """Return transformers' tokenizer of a folder, made from hmoe's where AutoTokenizer cannot read it.

    `begin` are the tokens that every text of the model begins with, for a tokenizer that is made here.

    Raises:
        ConfigError: if it cannot be made, or if transformers is missing.
    """
    try:
        from transformers import AutoTokenizer, PreTrainedTokenizerFast  # noqa: PLC0415 - optional extra, slow
        from transformers.utils import logging  # noqa: PLC0415
    except ImportError:
        raise make_missing_extra_error("chat templates", "serve") from None
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that it does not know hmoe's models
    try:
        if folder is not None and (folder / "tokenizer_config.json").is_file():
            return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if tokenizer.file_name == "tokenizer.model":
            from transformers import LlamaTokenizer  # noqa: PLC0415

            return LlamaTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever transformers raises
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ConfigError(
            f"{folder}: transformers cannot read its tokenizer for the chat template ({why})"
        ) from None
    finally:
        logging.set_verbosity(verbosity)
    content = tokenizer.content if tokenizer.file_name else encode_bytes_tokenizer()
    definition = Tokenizer.from_str(content.decode())
    roles = name_special_roles(definition, tokenizer.separator, begin)
    return PreTrainedTokenizerFast(tokenizer_object=definition, **roles)


def name_special_roles(definition: Tokenizer, separator: int, begin: Sequence[int]) -> dict[str, str | None]:
    """Return what transformers calls the tokens around a text; without `begin` the separator does both."""
    # The separator is the padding too: there must be one for batches, and a vocabulary cannot grow.
    ids = {"bos_token": [*begin, separator][0], "eos_token": separator, "pad_token": separator}
    return {role: definition.id_to_token(token) for role, token in ids.items()}


def encode_bytes_tokenizer() -> bytes:
    """Return the byte tokenizer as a tokenizer.json: BPE without merges, whose 256 letters are the bytes."""
    tokenizer = Tokenizer(models.BPE(vocab=map_letters_to_bytes(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_SEPARATOR, special=True)])
    assert tokenizer.token_to_id(_SEPARATOR) == ByteTokenizer.separator
    return tokenizer.to_str().encode()
