"""A tokenizer as the files that AutoTokenizer reads, such that a text begins as the model's texts do."""

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from hmoe.data.byte_letters import byte_letters
from hmoe.data.hugging_face_tokenizer import HuggingFaceTokenizer
from hmoe.data.tokenizer import ByteTokenizer
from hmoe.folders.open import Opened

_SEPARATOR = "<|endoftext|>"


def write(opened: Opened, folder: Path) -> None:
    """tokenizer.json (or tokenizer.model), tokenizer_config.json, and the chat template if there is one."""
    tokenizer = opened.tokenizer
    name = tokenizer.file_name or "tokenizer.json"
    content = tokenizer.content if tokenizer.file_name else bytes_tokenizer()
    if isinstance(tokenizer, HuggingFaceTokenizer):
        content = tokenizer.content_with_begin(opened.begin)
    (folder / name).write_bytes(content)
    config: dict[str, object] = {"model_max_length": opened.context_length, "clean_up_tokenization_spaces": False}
    if name == "tokenizer.json":
        name_of = Tokenizer.from_str(content.decode()).id_to_token
        begin, end = name_of([*opened.begin, tokenizer.separator][0]), name_of(tokenizer.separator)
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end}
        if len(opened.begin) < 2:  # of several, tokenizer.json alone can tell
            config["add_bos_token"] = bool(opened.begin)
    else:
        config |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    if opened.chat_template is not None:
        (folder / "chat_template.jinja").write_text(opened.chat_template, encoding="utf-8")


def bytes_tokenizer() -> bytes:
    """The byte tokenizer as a tokenizer.json: BPE without merges, whose 256 letters are the bytes in order."""
    tokenizer = Tokenizer(models.BPE(vocab=byte_letters(), merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(_SEPARATOR, special=True)])
    assert tokenizer.token_to_id(_SEPARATOR) == ByteTokenizer.separator
    return tokenizer.to_str().encode()
