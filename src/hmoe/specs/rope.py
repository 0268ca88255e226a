"""How rotary positions are stretched beyond the trained length, as frozen values without torch.

The maths is in `hmoe.model.rotary`.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from hmoe.errors import ConfigError
from hmoe.specs.fields import Range, Spec

_OF_ONE_KIND = {  # what is read by one kind only
    "low_freq_factor": "llama3", "high_freq_factor": "llama3", "beta_fast": "yarn", "beta_slow": "yarn",
    "attention_factor": "yarn", "truncate": "yarn",
}  # fmt: skip

_FIELD_OF_KEY = {  # Hugging Face's name -> ours
    "factor": "factor", "original_max_position_embeddings": "original_length", "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor", "beta_fast": "beta_fast", "beta_slow": "beta_slow",
    "attention_factor": "attention_factor", "truncate": "truncate",
}  # fmt: skip
_HARMLESS = {  # values that change nothing of what is not computed here
    "partial_rotary_factor": (1.0,), "mscale": (None,), "mscale_all_dim": (None,), "short_factor": (None,),
    "long_factor": (None,), "mrope_section": (None,),
}  # fmt: skip
_REQUIRED = {  # kind -> Hugging Face's keys without which it says nothing
    "linear": ("factor",), "dynamic": ("factor",), "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
_FREQUENCY_FACTORS = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}  # llama3's, as Llama 3.1 has them


@dataclass(frozen=True)
class RopeScaling(Spec):
    """One of the four ways that Hugging Face's LLaMA family uses, under its names.

    Attributes:
        kind: linear divides positions (Chen et al. 2023); dynamic raises the base with the text's length; yarn
            (Peng et al. 2023) and llama3 (Llama 3.1) divide the low frequencies only.
        factor: how many times longer.
        original_length: positions the model was trained on; all kinds but linear need it.
        low_freq_factor, high_freq_factor: llama3, wavelengths between original_length / these are blended; 1 and 4.
        beta_fast, beta_slow: yarn, rotations within original_length between which is blended; 32 and 1.
        attention_factor: yarn, multiplies cosine and sine; None: 0.1 ln(factor) + 1.
        truncate: yarn, the blend begins and ends at whole dimensions; True.

    Raises:
        ConfigError: for values out of range, or of another kind.
    """

    kind: Literal["linear", "dynamic", "yarn", "llama3"]
    factor: Annotated[float, Range()]
    original_length: Annotated[int | None, Range()] = None
    low_freq_factor: Annotated[float | None, Range()] = None
    high_freq_factor: Annotated[float | None, Range()] = None
    beta_fast: Annotated[float | None, Range()] = None
    beta_slow: Annotated[float | None, Range()] = None
    attention_factor: Annotated[float | None, Range()] = None
    truncate: bool | None = None
    section: ClassVar[str] = "rope_scaling"

    def check_fields(self) -> None:
        """Raise ConfigError for fields that do not fit together."""
        if not _is_number(self.factor) or not 1 <= self.factor <= 1e6:
            raise ConfigError(f"rope_scaling.factor = {self.factor!r}, must be a number from 1 to 1e6")
        if self.kind == "linear" and self.original_length is not None:
            raise ConfigError("rope_scaling.original_length has no effect with linear scaling; remove it")
        if self.kind != "linear" and self.original_length is None:
            raise ConfigError(f"rope_scaling.original_length: missing, {self.kind} scaling needs it")
        if self.kind != "linear" and (
            type(self.original_length) is not int or not 0 < self.original_length <= 2**30
        ):
            raise ConfigError(
                f"rope_scaling.original_length = {self.original_length!r}, must be an integer from 1 to 2**30"
            )
        self._check_kind_options()
        if self.kind == "llama3":
            for name, default in _FREQUENCY_FACTORS.items():  # written out, as other software needs them
                if getattr(self, name) is None:
                    object.__setattr__(self, name, default)
        for low, high, defaults in (
            ("low_freq_factor", "high_freq_factor", (1, 4)),
            ("beta_slow", "beta_fast", (1, 32)),
        ):
            ends = [
                defaults[i] if getattr(self, n) is None else getattr(self, n)
                for i, n in enumerate((low, high))
            ]
            if ends[0] >= ends[1]:
                raise ConfigError(f"rope_scaling.{low} = {ends[0]}, must be below {high} = {ends[1]}")

    def _check_kind_options(self) -> None:
        for name, kind in _OF_ONE_KIND.items():
            value = getattr(self, name)
            if value is not None and kind != self.kind:
                raise ConfigError(f"rope_scaling.{name} has no effect with {self.kind} scaling; remove it")
            if value is not None and name != "truncate" and not (_is_number(value) and 0 < value <= 1e6):
                raise ConfigError(
                    f"rope_scaling.{name} = {value!r}, must be a number above 0 and at most 1e6"
                )


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def read_hf_rope(parameters: dict[str, Any], max_length: int) -> RopeScaling | None:
    """Read their `rope_parameters` (or the older `rope_scaling`); return None for plain positions.

    Raises:
        ConfigError: for a kind or a key that is not computed here, or one that is missing.
    """
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    for key, value in parameters.items():
        if key not in (*_FIELD_OF_KEY, "rope_theta", "rope_type", "type") and value not in _HARMLESS.get(
            key, ()
        ):
            raise ConfigError(
                f"rope_parameters.{key} = {value!r}: is not computed here; known are {', '.join(_FIELD_OF_KEY)}"
            )
    if kind == "default":
        return None
    if not isinstance(kind, str) or kind not in _REQUIRED:
        raise ConfigError(
            f"rope_parameters.rope_type = {kind!r}, must be default, or one of {', '.join(_REQUIRED)}"
        )
    for key in _REQUIRED[kind]:
        if parameters.get(key) is None:
            raise ConfigError(f"rope_parameters.{key}: missing, {kind} positions need it")
    if parameters.get("truncate", True) is None:
        raise ConfigError("rope_parameters.truncate = None, must be true or false")
    ours = {_FIELD_OF_KEY[key]: value for key, value in parameters.items() if key in _FIELD_OF_KEY}
    if kind == "linear":
        ours.pop("original_length", None)
    else:
        ours.setdefault("original_length", max_length)
    return RopeScaling(kind, **ours)  # type: ignore[arg-type]


def write_hf_rope(scaling: RopeScaling | None, theta: float) -> dict[str, Any]:
    """Return `rope_parameters` that `read_hf_rope` reads back.

    transformers' own dynamic scaling counts from the maximum length.
    """
    if scaling is None:
        return {"rope_type": "default", "rope_theta": theta}
    values = {key: getattr(scaling, name) for key, name in _FIELD_OF_KEY.items()}
    kept = {key: value for key, value in values.items() if value is not None}
    return {"rope_type": scaling.kind, "rope_theta": theta, **kept}
