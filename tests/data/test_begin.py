"""What texts begin with follows the tokenizer's own post-processor, and is recorded in the data."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, processors
from tokenizers.processors import TemplateProcessing

from hmoe import DataError
from hmoe.data.prepare import PrepareRequest, prepare_data
from hmoe.data.shards import open_index
from hmoe.data.tokenizer import get_begin_tokens, load_tokenizer
from tests.data import kinds


def template(single: str) -> TemplateProcessing:
    return TemplateProcessing(single=single, special_tokens=[("<unk>", 0), ("<s>", 1), ("</s>", 2)])


@pytest.mark.parametrize(
    ("processor", "begin", "after"),
    [
        (template("<s> $A"), [1], ()),
        (template("<s> <unk> $A </s>"), [1, 0], (2,)),
        (template("$A <unk>"), [], (0,)),
        (processors.BertProcessing(("</s>", 2), ("<s>", 1)), [1], (2,)),
        (processors.Sequence([processors.ByteLevel(), template("<s> $A")]), [1], ()),
        (processors.ByteLevel(), [], ()),
        (template("</s> $A"), [2], ()),  # the separator itself
    ],
)
def test_begin_is_what_the_post_processor_puts_before_a_text(
    processor: Any, begin: list[int], after: tuple[int, ...], tmp_path: Path
) -> None:
    tokenizer = kinds.byte_level(begin=False)
    tokenizer.post_processor = processor
    tokenizer.enable_padding(length=24, pad_id=0)
    tokenizer.enable_truncation(2)
    loaded = load_tokenizer(kinds.write(tokenizer, tmp_path))
    assert get_begin_tokens(loaded) == begin
    assert loaded.after == after
    assert len(loaded.encode(["the bird"])[0]) == 8


@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("begin", [True, False])
def test_the_post_processor_decides_as_it_does_for_transformers(
    add: bool, begin: bool, tmp_path: Path
) -> None:
    """Whatever add_bos_token says, which transformers 5 does not read beside a tokenizer.json."""
    kinds.write(kinds.byte_level(begin=begin), tmp_path)
    config = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": add}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.begin == ((1,) if begin else ())
    expected_ids = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)("the bird")["input_ids"]
    assert expected_ids == [*tokenizer.begin, *tokenizer.encode(["the bird"])[0]]


def prepared(tokenizer: Tokenizer, folder: Path, **options: Any) -> Any:
    text = folder / "text.jsonl"
    text.write_text('{"text": "the bird"}\n{"text": "the </s>"}\n')
    request = PrepareRequest([str(text)], str(kinds.write(tokenizer, folder)), validation=0, **options)
    return prepare_data(request, folder / "data")


def test_every_document_begins_as_the_tokenizer_says(tmp_path: Path) -> None:
    index, tokenizer = prepared(kinds.byte_level(), tmp_path), load_tokenizer(tmp_path)
    documents = tokenizer.encode(["the bird", "the </s>"])
    assert index.tokens(index.shards[0]).tolist() == [1, *documents[0], 2, 1, *documents[1], 2]
    assert index.begin == open_index(tmp_path / "data").begin == (1,)
    assert index.shards[0].tokens == sum(map(len, documents)) + 4
    with pytest.raises(DataError, match=r"other inputs or options \(begin\)"):
        prepared(kinds.byte_level(), tmp_path, begin=())


def test_data_without_a_record_begins_with_nothing_and_keeps_its_fingerprint(tmp_path: Path) -> None:
    index, file = prepared(kinds.byte_level(), tmp_path, begin=()), tmp_path / "data" / "index.json"
    assert index.begin == ()
    assert not {"begin", "losses"} & json.loads(file.read_text()).keys()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"begin": [1]}))
    assert open_index(tmp_path / "data").fingerprint != index.fingerprint


def test_a_folder_of_another_format_is_not_one_of_bytes(tmp_path: Path) -> None:
    assert not load_tokenizer(tmp_path).file_name
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(DataError, match=r"holds vocab\.json but no tokenizer\.json.*save_pretrained"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("separator", ["<s", ""])
def test_a_separator_that_is_not_in_the_vocabulary_is_refused(separator: str, tmp_path: Path) -> None:
    file = kinds.write(kinds.byte_level(), tmp_path)
    with pytest.raises(
        DataError, match=f"no end-of-text token '{separator}' in the vocabulary; nearest is <"
    ):
        load_tokenizer(file, separator)


def test_documents_may_begin_with_the_separator(tmp_path: Path) -> None:
    byte_level = kinds.byte_level(begin=False)
    byte_level.post_processor = template("</s> $A")
    index, tokenizer = prepared(byte_level, tmp_path), load_tokenizer(tmp_path)
    documents = tokenizer.encode(["the bird", "the </s>"])
    assert index.tokens(index.shards[0]).tolist() == [2, *documents[0], 2, 2, *documents[1], 2]
