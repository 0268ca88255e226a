"""Fields by which clients of other servers say "off".

Their values that change nothing here are taken; any other is refused by the field's name.

From the requests of OpenAI, vLLM, SGLang, llama.cpp, Text Generation Inference and Aphrodite.
"""

import difflib
from typing import Any

_BOTH: tuple[Any, ...] = (True, False)

SAMPLING: dict[str, tuple[Any, ...]] = {
    # choice of tokens
    "top_k": (-1,), "min_p": (0,), "typical_p": (1,), "typical": (1,), "tfs": (1,), "tfs_z": (1,), "top_a": (0,),
    "top_n_sigma": (-1, 0), "nsigma": (0,),
    "epsilon_cutoff": (0,), "eta_cutoff": (0,), "xtc_probability": (0,), "xtc_threshold": (0.1,),
    "mirostat": (0,), "mirostat_mode": (0,), "mirostat_tau": (5,), "mirostat_eta": (0.1,),
    "dynatemp_range": (0,), "dynatemp_exponent": (1,), "dynatemp_min": (0,), "dynatemp_max": (0,),
    "smoothing_factor": (0,), "smoothing_curve": (1,), "min_keep": (0,), "guidance_scale": (1,),
    "penalty_alpha": (0,), "samplers": ([],),
    # repetition
    "repetition_penalty": (1,), "repeat_penalty": (1,), "repeat_last_n": (64, 0, -1), "penalize_nl": _BOTH,
    "no_repeat_ngram_size": (0,), "encoder_repetition_penalty": (1,), "dry_multiplier": (0,),
    "dry_base": (1.75,), "dry_allowed_length": (2,), "dry_penalty_last_n": (-1, 0),
    # search
    "use_beam_search": (False,), "num_beams": (1,), "length_penalty": (1,), "early_stopping": (False,),
    "diversity_penalty": (0,),
    # ends
    "ignore_eos": (False,), "min_tokens": (0,), "min_new_tokens": (0,), "min_length": (0,),
    "stop_token_ids": ([],), "bad_words": ([],), "stop_regex": ([], ""),
    "include_stop_str_in_output": (False,), "no_stop_trim": (False,), "t_max_predict_ms": (0,),
    "n_keep": (0,),
    # shapes of an answer
    "grammar": ("",), "json_schema": ({}, ""), "structured_outputs": ({},), "logits_processors": ([],),
    "allowed_token_ids": ([],), "prompt_logprobs": (False,), "n_probs": (0,), "post_sampling_probs": (False,),
    "return_tokens": (False,), "return_token_ids": (False,), "return_tokens_as_token_ids": (False,),
    "return_hidden_states": (False,), "timings_per_token": (False,), "return_full_text": (False,),
    "details": (False,), "decoder_input_details": (False,), "watermark": (False,), "response_fields": ([],),
    "guided_json": ({}, ""), "guided_regex": ("",), "guided_choice": ([],), "guided_grammar": ("",),
    "response_format": ({"type": "text"},),
    # how text is read and written: an answer holds no special tokens, whatever is asked
    "skip_special_tokens": (True,), "spaces_between_special_tokens": _BOTH, "truncate_prompt_tokens": (-1,),
    "n_indent": (0,),
    # where and when
    "cache_prompt": _BOTH, "id_slot": (-1,), "slot_id": (-1,), "lora": ([],), "image_data": ([],),
    "priority": (0,), "store": (False,), "service_tier": ("auto", "default"), "logit_bias": ([],),
}  # fmt: skip
COMPLETION: dict[str, tuple[Any, ...]] = {
    "suffix": ("",),
    "logprobs": (False,),
    "add_special_tokens": (True,),
    "top_logprobs": (0,),
}
CHAT: dict[str, tuple[Any, ...]] = {
    "echo": (False,), "best_of": (1,), "suffix": ("",), "add_special_tokens": (False,),
    "add_generation_prompt": (True,), "continue_final_message": (False,),
    "top_logprobs": (0,), "documents": ([],), "chat_template_kwargs": ({},), "mm_processor_kwargs": ({},),
    "tools": ([],), "tool_choice": ("none", "auto"), "parallel_tool_calls": _BOTH, "functions": ([],),
    "function_call": ("none", "auto"), "modalities": (["text"],), "verbosity": ("medium",),
    "reasoning_effort": ("none",), "include_reasoning": (True,), "separate_reasoning": (True,),
    "stream_reasoning": (True,), "thinking": ({"type": "disabled"},),
}  # fmt: skip
MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],),
    "tool_calls": ([],),
    "refusal": ("",),
    "reasoning_content": ("",),
    "reasoning": ("",),
}
PART: dict[str, tuple[Any, ...]] = {"annotations": ([],), "cache_control": ({"type": "ephemeral"},)}

_SAME_AS = {
    "n_predict": "max_tokens", "max_new_tokens": "max_tokens", "max_length": "max_tokens",
    "max_output_tokens": "max_tokens", "max_completion_tokens": "max_tokens",
    "stop_sequences": "stop", "stop_strings": "stop", "random_seed": "seed", "do_sample": "temperature",
    "num_return_sequences": "n", "input": "prompt", "inputs": "prompt",
}  # fmt: skip


def drop_neutral(content: dict[str, Any], neutral: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Return the fields that may change something: null never does, nor what is neutral for its field."""
    return {
        name: value
        for name, value in content.items()
        if value is not None and not any(_equal(value, other) for other in neutral.get(name, ()))
    }


def explain_unknown(name: str, neutral: dict[str, tuple[Any, ...]], fields: list[str]) -> str:
    """Return why a field is refused, with what may be written instead."""
    if name in neutral:
        values = " or ".join(
            str(value).lower() if isinstance(value, bool) else repr(value) for value in neutral[name]
        )
        return f"is not supported by this server, which takes {values} only; leave it out"
    nearest = _SAME_AS.get(name) or next(iter(difflib.get_close_matches(name, fields, 1, 0.8)), None)
    hint = f"; nearest field: {nearest}" if nearest in fields else ""
    return f"is not supported by this server; leave it out{hint}"


def _equal(value: Any, other: Any) -> bool:
    """Compare as JSON does: 1 and 1.0 are the same number, true is none."""
    return bool(isinstance(value, bool) is isinstance(other, bool) and value == other)
