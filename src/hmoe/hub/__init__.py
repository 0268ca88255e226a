"""Importing this registers the Hugging Face classes of hmoe.

AutoConfig, AutoModel and AutoModelForCausalLM know "hmoe" from then on.
"""

from hmoe.errors import make_missing_extra_error

try:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM
except ImportError:
    raise make_missing_extra_error("Hugging Face folders", "hf") from None

from hmoe.adapt.attach import attach_hyper, attach_shared
from hmoe.hub.configuration import HMoEConfig
from hmoe.hub.modeling import HMoEForCausalLM, HMoEModel

__all__ = ["HMoEConfig", "HMoEForCausalLM", "HMoEModel", "attach_hyper", "attach_shared"]

AutoConfig.register("hmoe", HMoEConfig, exist_ok=True)
AutoModel.register(HMoEConfig, HMoEModel, exist_ok=True)
AutoModelForCausalLM.register(HMoEConfig, HMoEForCausalLM, exist_ok=True)
