"""SmolLM2, taken apart into a Hugging Face checkpoint and converted back, is the same model.

Its GGUF file was made by llama.cpp's converter, so that names, metadata, tokens and the order of
rows are compared with an independent source.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, quants

from batches import Tokens, batch_of
from hf_checkpoints import write_weights
from powerserve.convert.hf_to_gguf import ConversionOptions, convert
from powerserve.storage.gguf import GGUFFile
from tiny_reference import ReferenceRunner, load_reference

IDS = [504, 3575, 282, 4649, 314, 7042, 28, 527, 260, 3575, 282, 9999, 314]
NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# What a checkpoint does not say, or says otherwise.
NOT_COMPARED = {"general.", "tokenizer.ggml.add_space_prefix", "quantize."}


@pytest.fixture(scope="module")
def converted(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("smollm2")
    take_apart(smollm2, folder)
    convert(folder, folder / "back.gguf", ConversionOptions("f32"))
    (folder / "model.safetensors").unlink()  # pytest would keep half a gigabyte
    yield folder / "back.gguf"
    (folder / "back.gguf").unlink()


def test_logits_stay(smollm2: Path, converted: Path) -> None:
    batch = batch_of(Tokens(IDS, range(len(IDS))))
    expected = ReferenceRunner(load_reference(smollm2)).run(batch)
    got = ReferenceRunner(load_reference(converted)).run(batch)
    assert expected.std() > 1
    np.testing.assert_allclose(got, expected, atol=1e-3)


def test_metadata_is_what_llama_cpp_writes(smollm2: Path, converted: Path) -> None:
    theirs, ours = GGUFFile.open(smollm2).metadata, GGUFFile.open(converted).metadata
    compared = [key for key in theirs if not any(key.startswith(each) for each in NOT_COMPARED)]
    assert len(compared) > 18
    for key in compared:
        assert listed(ours[key]) == listed(theirs[key]), key


def listed(value: Any) -> Any:
    return (
        value.tolist()
        if isinstance(value, np.ndarray)
        else (value if isinstance(value, str | int | float) else list(value))
    )


def take_apart(path: Path, folder: Path) -> None:
    """Write config.json, tokenizer files and weights (F32) of the llama model in a GGUF file."""
    file = GGUFFile.open(path)
    (folder / "config.json").write_text(json.dumps(config_of(file.metadata)))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer_of(file.metadata)))
    config = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|im_end|>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    template = str(file.metadata["tokenizer.chat_template"])
    (folder / "chat_template.jinja").write_text(template, newline="")
    heads = {"attn_q": 9, "attn_k": 3}
    weights = {}
    for tensor in file.tensors.values():
        stem = tensor.name.removesuffix(".weight").split(".")
        rows = tensor.data.reshape(*tensor.shape[:-1], -1)
        values = quants.dequantize(rows, GGMLQuantizationType[tensor.dtype.name])
        if stem[-1] in heads:  # undo the interleaving of rows
            split = values.reshape(heads[stem[-1]], -1, 2, values.shape[-1])
            values = split.swapaxes(1, 2).reshape(values.shape)
        prefix = f"model.layers.{stem[1]}." if stem[0] == "blk" else ""
        weights[f"{prefix}{NAMES[stem[-1]]}.weight"] = values
    write_weights(folder, weights)


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": metadata["llama.embedding_length"],
        "intermediate_size": metadata["llama.feed_forward_length"],
        "num_hidden_layers": metadata["llama.block_count"],
        "num_attention_heads": metadata["llama.attention.head_count"],
        "num_key_value_heads": metadata["llama.attention.head_count_kv"],
        "max_position_embeddings": metadata["llama.context_length"],
        "rms_norm_eps": metadata["llama.attention.layer_norm_rms_epsilon"],
        "rope_theta": metadata["llama.rope.freq_base"],
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "vocab_size": metadata["llama.vocab_size"],
    }


def tokenizer_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    texts, types = list(metadata["tokenizer.ggml.tokens"]), metadata["tokenizer.ggml.token_type"]
    return {
        "added_tokens": [
            {"id": index, "content": texts[index], "special": True}
            for index in np.flatnonzero(types == 3).tolist()
        ],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel"},
        "model": {
            "type": "BPE",
            "vocab": {text: index for index, text in enumerate(texts)},
            "merges": list(metadata["tokenizer.ggml.merges"]),
        },
    }
