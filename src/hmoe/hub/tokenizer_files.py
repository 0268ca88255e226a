"""A tokenizer as the files that AutoTokenizer reads, such that a text begins as the model's texts do."""

import json
from pathlib import Path

from tokenizers import Tokenizer

from hmoe.data.hugging_face_tokenizer import HuggingFaceTokenizer
from hmoe.runs.chat_templates import iterate_template_files
from hmoe.runs.hf_folder import read_json_object
from hmoe.runs.hf_tokenizer import ROLES, encode_bytes_tokenizer, name_special_roles
from hmoe.runs.open_model import OpenedModel


def write_tokenizer_files(opened: OpenedModel, folder: Path) -> None:
    """Write tokenizer.json (or .model), tokenizer_config.json, and the chat template if there is one.

    Args:
        opened: the model whose tokenizer it is.
        folder: which gets the files.
    """
    tokenizer = opened.tokenizer
    name = tokenizer.file_name or "tokenizer.json"
    content = tokenizer.content if tokenizer.file_name else encode_bytes_tokenizer()
    if isinstance(tokenizer, HuggingFaceTokenizer):
        content = tokenizer.content_with_begin(opened.begin)
    (folder / name).write_bytes(content)
    config: dict[str, object] = {
        "model_max_length": opened.context_length,
        "clean_up_tokenization_spaces": False,
    }
    if name == "tokenizer.json":
        definition = Tokenizer.from_str(content.decode())
        config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        config |= name_special_roles(definition, tokenizer.separator, opened.begin) | _own_roles(
            opened, definition
        )
        if len(opened.begin) < 2:  # of several, tokenizer.json alone can tell
            config["add_bos_token"] = bool(opened.begin)
    else:
        pad = next(text for text, token in tokenizer.specials.items() if token == tokenizer.separator)
        config |= {"tokenizer_class": "LlamaTokenizer", "add_bos_token": bool(opened.begin), "pad_token": pad}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    for file, text in iterate_template_files(opened.folder, opened.chat_template):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_text(text, encoding="utf-8")


def _own_roles(opened: OpenedModel, definition: Tokenizer) -> dict[str, object]:
    """Return the roles that the model's folder gives to tokens of its vocabulary, which chat templates use.

    The tokens that begin and end a text are known otherwise and are left out.
    """
    file = opened.folder / "tokenizer_config.json" if opened.folder is not None else None
    named = read_json_object(file) if file is not None and file.is_file() else {}
    texts = {
        role: named.get(role)
        for role in ROLES
        if role != "eos_token" and not (role == "bos_token" and opened.begin)
    }
    texts = {role: text.get("content") if isinstance(text, dict) else text for role, text in texts.items()}
    return {
        role: text
        for role, text in texts.items()
        if isinstance(text, str) and definition.token_to_id(text) is not None
    }
