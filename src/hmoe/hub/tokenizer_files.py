"""A tokenizer as the files that AutoTokenizer reads; its definition is kept byte for byte."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hmoe.data.tokenizer import ByteTokenizer
from hmoe.folders.open import Opened

_SEPARATOR = "<|endoftext|>"


def write(opened: Opened, folder: Path) -> None:
    """tokenizer.json (or tokenizer.model), tokenizer_config.json, and the chat template if there is one."""
    tokenizer = opened.tokenizer
    content = tokenizer.content if tokenizer.file_name else bytes_tokenizer()
    name = tokenizer.file_name or "tokenizer.json"
    (folder / name).write_bytes(content)
    config: dict[str, object] = {"model_max_length": opened.context_length, "clean_up_tokenization_spaces": False}
    if name == "tokenizer.json":
        end = Tokenizer.from_str(content.decode()).id_to_token(tokenizer.separator)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": end, "eos_token": end}
    else:
        config |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if opened.chat_template is not None:
        (folder / "chat_template.jinja").write_text(opened.chat_template, encoding="utf-8")


def bytes_tokenizer() -> bytes:
    """The byte tokenizer as a tokenizer.json: BPE without merges, whose 256 letters are the bytes in order."""
    letters = _letters()
    tokenizer = Tokenizer(models.BPE(vocab={letters[byte]: byte for byte in range(256)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_SEPARATOR, special=True)])
    assert tokenizer.token_to_id(_SEPARATOR) == ByteTokenizer.separator
    return tokenizer.to_str().encode()


def _letters() -> list[str]:
    """GPT-2's letter for each byte: itself where it is printable, else the next free one from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
