"""lm-evaluation-harness knows the model "hmoe" after this import, by the name of a folder.

import lm_eval, hmoe.hub.harness
lm_eval.simple_evaluate(model="hmoe", model_args="pretrained=runs/quickstart", tasks=["piqa"])
"""

import logging
from pathlib import Path

from hmoe.errors import ConfigError, make_missing_extra_error
from hmoe.runs.open_model import open_model

try:
    from lm_eval.api.registry import register_model
except ImportError:
    raise make_missing_extra_error("benchmark tasks", "eval") from None

from hmoe.evaluate.language_model import BATCH_TOKENS, LanguageModel


@register_model("hmoe")
class HMoELanguageModel(LanguageModel):
    """The model of lm-evaluation-harness over a run folder or a Hugging Face folder.

    Args:
        pretrained: the folder.
        batch_tokens: tokens of one forward pass.
        batch_size: the same, counted in sequences of `max_length` tokens, as the harness's other models do.
        max_length: tokens read at once; None: as many as in training.
        precision: float32 or bfloat16; None: that of the weights.
        device: such as cpu or cuda:0; None: the GPU where there is one.

    Raises:
        ConfigError: for an option that does not work; also see `hmoe.runs.open_model.open_model`.
    """

    def __init__(
        self,
        pretrained: str,
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_length: int | None = None,
        precision: str | None = None,
        device: str | None = None,
    ) -> None:
        if batch_tokens is not None and batch_size is not None:
            raise ConfigError(f"batch_tokens = {batch_tokens}, batch_size = {batch_size}; give one of them")
        opened = open_model(Path(pretrained), logging.getLogger(__name__).warning)
        length = opened.context_length if max_length is None else max_length
        if batch_size is not None:
            if not str(batch_size).isdecimal() or int(batch_size) < 1:
                raise ConfigError(
                    f"batch_size = {batch_size}, must be an integer of at least 1; or give batch_tokens"
                )
            batch_tokens = int(batch_size) * length
        model = opened.model if device is None else opened.model.to(device)
        super().__init__(
            model, opened.tokenizer, length, batch_tokens or BATCH_TOKENS, precision, opened.begin
        )
