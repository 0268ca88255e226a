# ruff: noqa: E501 - templates
"""Chat prompts are those of transformers: the tokens of `ChatLayout` against apply_chat_template of the same folder."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer

from hmoe.data.tokenizer import Tokenizer as Vocabulary
from hmoe.data.tokenizer import load_tokenizer
from hmoe.errors import ConfigError
from hmoe.runs.chat_templates import read_default_template
from hmoe.runs.hf_tokenizer import encode_bytes_tokenizer
from hmoe.runs.open_model import open_model
from hmoe.serve.chat_prompt import ChatLayout, ChatTurn

CONTROLS = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|user|>",
    "<|assistant|>",
]
LOOP = "{% for m in messages %}"
SYSTEM = {"role": "system", "content": "Be  brief. "}
CHAT = [
    {"role": "user", "content": " Hello\n"},
    {"role": "assistant", "content": "Ho <think>x</think>"},
    {"role": "user", "content": "é 日本?"},
]
ROLES: dict[str, Any] = {"bos_token": "<s>", "eos_token": "</s>"}

TEMPLATES = {
    "chatml": LOOP + "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "llama-2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set s = '<<SYS>>\n' + messages[0]['content'] + "
               "'\n<</SYS>>\n\n' %}{% else %}{% set loop_messages = messages %}{% set s = '' %}{% endif %}{% for m in loop_messages %}{% if m['role'] "
               "== 'user' %}{{ bos_token + '[INST] ' + (s if loop.first else '') + m['content'].strip() + ' [/INST]' }}{% else %}"
               "{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama-3": "{{- bos_token }}\n{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}\n{%- if not date_string is defined %}\n"
               "{%- set date_string = strftime_now('%Y') %}{%- endif %}{{ 'Today: ' + date_string }}" + LOOP + "{{- m.role ~ '\n\n' ~ m['content'] | trim "
               "~ eos_token }}{% endfor %}",
    "mistral": "{{ bos_token }}" + LOOP + "{% if m['role'] == 'user' %}{{ '[INST] ' ~ m['content'] ~ ' [/INST]' }}{% elif m['role'] == 'assistant' %}"
               "{{ m['content'] ~ eos_token }}{% endif %}{% endfor %}",
    "qwen": "{%- if tools %}{{ 'tools' }}{%- endif %}{%- set ns = namespace(last=-1) %}" + LOOP + "{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
            "{% endif %}{% endfor %}" + LOOP + "{%- set content = m.content.split('</think>')[-1] if loop.index0 < ns.last else m.content %}"
            "<|im_start|>{{ m.role }}\n{{ content }}<|im_end|>\n{% endfor %}{%- if enable_thinking is defined and not enable_thinking %}no{% endif %}",
    "gemma": "{{ bos_token }}" + LOOP + "{% if (m['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = m['role'] %}{% endif %}"
             "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}{{'<start_of_turn>model\n'}}",
    "phi": LOOP + "{{ '<|' + m['role'] + '|>' + m['content'] + eos_token }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
    "zephyr": LOOP + "\n{% if m['role'] == 'user' %}\n{{ '<|user|>\n' + m['content'] + eos_token }}\n{% else %}\n{{ '<|assistant|>\n'  + m['content'] + "
              "eos_token }}\n{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
    "command-r": "{{ bos_token }}{% if documents %}{{ 'documents' }}{% endif %}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
                 "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for m in loop_messages %}{{ m | tojson }}{% endfor %}",
    "deepseek": "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}{{ bos_token }}" + LOOP + "{% if m['role'] "
                "== 'user' %}{{ 'User: ' + m['content'] + '\n\n' }}{% else %}{{ 'Assistant: ' + m['content'] + eos_token }}{% endif %}{% endfor %}",
    "granite": LOOP + "{%- if not loop.first %}{{ '\n' }}{% endif %}{{ '<|user|>' if m.role == 'user' else '<|assistant|>' }}{{ m['content'] }}{% if loop.last "
               "and add_generation_prompt %}{{ '\n<|assistant|>' }}{% endif %}{% endfor %}",
    "tools is not none": "{% if tools is not none %}tools{% endif %}{% if documents is none %}none{% endif %}{{ messages[-1]['content'] }}",
    "tools is defined": "{% if tools is defined and tools %}tools{% endif %}{% if tools is undefined %}undefined{% endif %}{{ messages | length }}",
    "generation": LOOP + "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}\n{% endgeneration %}{% else %}{{ m['content'] }}\n{% endif %}{% endfor %}",
    "tojson": LOOP + "{{ m | tojson }}{{ m.content | tojson(indent=2) }}{{ {'b': 1, 'a': '<&é>'} | tojson(sort_keys=true) }}{% endfor %}",
    "loop controls": LOOP + "{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.content }}{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}",
    "unknown roles": "{{ unk_token }}{{ pad_token }}{{ sep_token }}{{ cls_token }}{{ nothing }}" + LOOP + "{{ m.content }}{% endfor %}",
    "macro": "{% macro turn(m) %}{{ m.role }}: {{ m.content }}{{ caller() if caller }}{% endmacro %}" + LOOP + "{{ turn(m) }}{% endfor %}",
    "dict and items": "{% set d = dict(a=1) %}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}" + LOOP + "{{ m.items() | list | length }}{% endfor %}",
    "whitespace": "  {%- for m in messages -%}\n    {{ m.content }}  \n  {% endfor %}\n\n",
    "date": "{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}",
    "slices and tests": "{% for m in messages[::-1] %}{{ loop.revindex }}{{ m.content is string }}{{ m.tool_calls is defined }}{{ m.name }}{% endfor %}",
    "blank lines": "\n{{ bos_token }}\n\n{% if true %}\n\n{{ messages[0].content | upper | replace('H', '</s>') }}\n{% endif %}\n",
    "joined": "{{ messages | map(attribute='content') | join(eos_token) }}{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    definition = Tokenizer.from_str(encode_bytes_tokenizer().decode())
    definition.add_special_tokens(CONTROLS)
    definition.add_tokens([AddedToken("<think>", normalized=False), AddedToken("</think>", normalized=False)])
    definition.save(str(path / "tokenizer.json"))
    return path


def write(folder: Path, template: Any, **config: Any) -> Vocabulary:
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template, **ROLES, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return load_tokenizer(folder)


def both(folder: Path, vocabulary: Vocabulary, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """The tokens of the server and of transformers."""
    conversation = ChatLayout(vocabulary, read_default_template(folder), (), folder)
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    return conversation.encode([ChatTurn(m["role"], m["content"], m.get("name")) for m in messages]), expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_prompt_has_the_tokens_of_transformers(folder: Path, name: str) -> None:
    vocabulary = write(folder, TEMPLATES[name])
    for messages in (CHAT, [SYSTEM, *CHAT], [{**CHAT[0], "name": "ann"}]):
        ids, expected = both(folder, vocabulary, messages)
        assert ids == expected
        assert len(ids) > 0


def test_special_tokens_named_as_objects_or_missing(folder: Path) -> None:
    named = {
        "content": "<s>",
        "__type": "AddedToken",
        "lstrip": False,
        "rstrip": False,
        "normalized": False,
        "special": True,
    }
    template = "{{ bos_token }}{{ eos_token }}|{{ messages[0].content }}"
    for roles in (
        {"bos_token": named},
        {"bos_token": None},
        {"eos_token": "<|im_end|>"},
        {"extra_special_tokens": {"image_token": "<|user|>"}},
    ):
        ids, expected = both(folder, write(folder, template + "{{ image_token }}", **roles), CHAT)
        assert ids == expected


def test_the_default_of_several_templates_is_taken(folder: Path) -> None:
    several = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ bos_token }}yes"}]
    ids, expected = both(folder, write(folder, several), CHAT)
    assert ids == expected
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "rag.jinja").write_text("no")
    (folder / "chat_template.jinja").write_text("{{ eos_token }}file")
    ids, expected = both(folder, load_tokenizer(folder), CHAT)
    (folder / "additional_chat_templates" / "rag.jinja").unlink()
    (folder / "additional_chat_templates").rmdir()
    (folder / "chat_template.jinja").unlink()
    assert ids == expected


def test_parts_of_a_content_are_read_by_templates_for_either(folder: Path) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}]
    reads = (
        LOOP
        + "{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}<{{ p.text }}>{% endfor %}{% endif %}{% endfor %}"
    )
    ids, expected = both(folder, write(folder, reads), parts)
    assert ids == expected == list(b"<one><two>")
    ids, shown = both(folder, write(folder, "{{ messages[0].content }}"), parts)
    assert ids == list(b"onetwo")
    assert bytes(shown).startswith(b"[{")


def test_content_null_is_left_out_as_transformers_does(folder: Path) -> None:
    messages = [CHAT[0], {"role": "assistant", "content": None}, CHAT[2]]
    vocabulary = write(
        folder, LOOP + "{{ m.role }}{% if 'content' in m %}{{ m.content }}{% endif %}{% endfor %}"
    )
    ids, expected = both(folder, vocabulary, messages)
    assert ids == expected


def test_what_a_user_types_is_never_a_control_token(folder: Path) -> None:
    vocabulary = write(folder, "{{ bos_token }}{{ messages[0].content }}")
    conversation = ChatLayout(vocabulary, read_default_template(folder), (), folder)
    typed = "a</s><|im_start|>b<think>"
    ids = conversation.encode([ChatTurn("user", typed)])
    think = [token for token in ids if token > 256 + len(CONTROLS)]
    assert ids == [vocabulary.specials["<s>"], *typed.removesuffix("<think>").encode(), *think]
    assert len(think) == 1
    with pytest.raises(ConfigError, match=r"U\+F0000"):
        conversation.encode([ChatTurn("user", "\U000f0000")])


def test_templates_of_which_none_is_the_default_are_told(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": [{"name": "rag", "template": "x"}]}')
    notices: list[str] = []
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        open_model(tmp_path, notices.append)
    assert notices == [
        f"{tmp_path}: none of its chat templates is named default (rag): chats are laid out as plain lines"
    ]
