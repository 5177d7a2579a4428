"""How a checkpoint encodes positions, as GGUF metadata and, for Llama 3, as a tensor.

Source of the formulas: transformers' `modeling_rope_utils.py`; YaRN: Peng et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log, pi

import numpy as np
import numpy.typing as npt

from powerserve.convert.model_config import CheckpointConfig
from powerserve.core.errors import ConfigError
from powerserve.model.config import MAX_CONTEXT, MAX_FACTOR
from powerserve.model.fields import Fields

FACTORS_NAME = "rope_freqs.weight"


def rope_metadata(config: CheckpointConfig, note: Callable[[str], None]) -> dict[str, object]:
    """The keys below `<architecture>.rope.`; says by `note` what GGUF files cannot express.

    Raises ConfigError for wrong values, UnsupportedModelError for an unknown kind of scaling.
    """
    keys: dict[str, object] = {
        "dimension_count": config.head_dim,
        "freq_base": config.rope_theta,
    }
    fields = _fields(config)
    match kind := rope_type(config):
        case "default" | "llama3":  # Llama 3's scaling is a tensor
            return keys
        case "dynamic":
            note(
                "the model scales positions beyond its context dynamically, which is not "
                f"supported: it is right up to {config.context_length} tokens"
            )
            return keys
        case "linear":
            return keys | {"scaling.type": "linear", "scaling.factor": _factor(fields)}
        case "yarn":
            return keys | _yarn_metadata(config, fields)
    raise fields.unsupported(
        f"RoPE scaling {kind!r} is not supported; default, linear, dynamic, llama3 and yarn are"
    )


def rope_type(config: CheckpointConfig) -> str:
    """The kind of scaling, “default” for none."""
    fields = _fields(config)
    return fields.text("rope_type", fields.text("type", "default"))


def rope_factors(config: CheckpointConfig) -> npt.NDArray[np.float32] | None:
    """What Llama 3 divides each frequency by, float32 [head_dim / 2]; None for other scalings.

    High frequencies stay, low ones are divided by `factor`, those between are mixed.
    """
    if rope_type(config) != "llama3":
        return None
    fields = _fields(config)
    factor = _factor(fields)
    low = fields.number("low_freq_factor", maximum=MAX_FACTOR)
    high = fields.number("high_freq_factor", maximum=MAX_FACTOR)
    if low >= high:
        raise fields.error("low_freq_factor is not below high_freq_factor")
    original = fields.integer("original_max_position_embeddings", maximum=MAX_CONTEXT)
    exponents = np.arange(0, config.head_dim, 2) / config.head_dim
    wavelengths = 2 * pi * config.rope_theta**exponents
    kept = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / factor + kept)).astype(np.float32)


def _yarn_metadata(config: CheckpointConfig, fields: Fields) -> dict[str, object]:
    factor = _factor(fields)
    keys: dict[str, object] = {
        "scaling.type": "yarn",
        "scaling.factor": factor,
        "scaling.original_context_length": fields.integer(
            "original_max_position_embeddings", config.context_length, maximum=MAX_CONTEXT
        ),
    }
    if "attention_factor" in fields:
        # GGUF's number multiplies the paper's temperature, the checkpoint's replaces it.
        wanted = fields.number("attention_factor", maximum=MAX_FACTOR)
        keys["scaling.attn_factor"] = wanted / (0.1 * log(factor) + 1)
    for name in ("beta_fast", "beta_slow"):
        if name in fields:
            keys[f"scaling.yarn_{name}"] = fields.number(name, maximum=MAX_FACTOR)
    return keys


def _fields(config: CheckpointConfig) -> Fields:
    return Fields(config.rope_scaling, "rope_scaling in config.json", ConfigError)


def _factor(fields: Fields) -> float:
    factor = fields.number("factor", maximum=MAX_FACTOR)
    if factor < 1:
        raise fields.error(f"factor is {factor:g}, not a number from 1")
    return factor
