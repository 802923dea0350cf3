"""Tiny models of many architectures, and whether mergekit 0.1.5 can merge them whole."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from checkpoints import HIDDEN, VOCABULARY, fine_tune, tokenizer
from transformers import PreTrainedModel

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
_GROUPED = {**_DECODER, "num_key_value_heads": 2}
_HEADED = {**_GROUPED, "head_dim": 8}
_EXPERTS = {"moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
_SMALL = {"vocab_size": VOCABULARY, "n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 64}
_VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
_ENCODER_DECODER = {
    "vocab_size": VOCABULARY,
    "d_model": HIDDEN,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
}

MERGED, LOST, UNFIT = "merged", "lost", "unfit"
"""What becomes of a merge: it is whole; mergekit would lose tensors; mergekit cannot make it."""


@dataclass(frozen=True)
class Family:
    """An architecture.

    Attributes:
        model: The class of its models in transformers.
        config: The class of their configuration.
        options: The configuration.
        outcome: One of the above.
    """

    model: str
    config: str
    options: Mapping[str, object]
    outcome: str

    def build(self) -> PreTrainedModel:
        """A model whose parameters are all random, biases too."""
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model: PreTrainedModel = getattr(transformers, self.model)(config)
        return fine_tune(model.eval(), 7)


def _llava() -> Mapping[str, object]:
    return {
        "text_config": transformers.LlamaConfig(**_HEADED),
        "vision_config": transformers.CLIPVisionConfig(**_VISION),
        "image_token_index": 5,
    }


_DEEPSEEK = {
    **_DECODER,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
_JAMBA = {
    **_GROUPED,
    "attn_layer_period": 2,
    "attn_layer_offset": 1,
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "mamba_d_state": 8,
    "use_mamba_kernels": False,
}
_QWEN_EXPERTS = {**_HEADED, **_EXPERTS, "shared_expert_intermediate_size": 40}
_BIASES = {**_HEADED, "attention_bias": True}

FAMILIES: dict[str, Family] = {
    "llama with biases": Family(
        "LlamaForCausalLM", "LlamaConfig", {**_BIASES, "mlp_bias": True}, LOST
    ),
    "qwen3 with biases": Family("Qwen3ForCausalLM", "Qwen3Config", _BIASES, LOST),
    "deepseek, first layer dense": Family(
        "DeepseekV3ForCausalLM", "DeepseekV3Config", {**_DEEPSEEK, "first_k_dense_replace": 1}, LOST
    ),
    "deepseek, no layer dense": Family(
        "DeepseekV3ForCausalLM",
        "DeepseekV3Config",
        {**_DEEPSEEK, "first_k_dense_replace": 0},
        MERGED,
    ),
    "jamba": Family(
        "JambaForCausalLM",
        "JambaConfig",
        {**_JAMBA, "expert_layer_period": 2, "expert_layer_offset": 1},
        LOST,
    ),
    "qwen2 experts": Family("Qwen2MoeForCausalLM", "Qwen2MoeConfig", _QWEN_EXPERTS, MERGED),
    "qwen2 experts, first layer dense": Family(
        "Qwen2MoeForCausalLM", "Qwen2MoeConfig", {**_QWEN_EXPERTS, "mlp_only_layers": [0]}, LOST
    ),
    "qwen3 experts": Family(
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_HEADED, **_EXPERTS}, MERGED
    ),
    "mixtral": Family(
        "MixtralForCausalLM", "MixtralConfig", {**_HEADED, "num_local_experts": 4}, MERGED
    ),
    "gpt-oss": Family(
        "GptOssForCausalLM",
        "GptOssConfig",
        {**_HEADED, "num_local_experts": 4, "num_experts_per_tok": 2},
        MERGED,
    ),
    "llava": Family("LlavaForConditionalGeneration", "LlavaConfig", _llava(), LOST),
    "vit": Family("ViTForImageClassification", "ViTConfig", _VISION, LOST),
    "clip": Family("CLIPModel", "CLIPConfig", {}, UNFIT),
    "whisper": Family(
        "WhisperForConditionalGeneration",
        "WhisperConfig",
        {
            **_ENCODER_DECODER,
            "num_mel_bins": 8,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        UNFIT,
    ),
    "bart": Family(
        "BartForConditionalGeneration",
        "BartConfig",
        {**_ENCODER_DECODER, "max_position_embeddings": 64},
        MERGED,
    ),
    "gpt-neox": Family("GPTNeoXForCausalLM", "GPTNeoXConfig", _DECODER, UNFIT),
    "falcon": Family(
        "FalconForCausalLM",
        "FalconConfig",
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2}
        | {"num_attention_heads": 4},
        UNFIT,
    ),
    "cohere": Family("CohereForCausalLM", "CohereConfig", _GROUPED, UNFIT),
    "bert for masked words": Family("BertForMaskedLM", "BertConfig", _DECODER, UNFIT),
    "bert for classes": Family("BertForSequenceClassification", "BertConfig", _DECODER, MERGED),
    "roberta": Family("RobertaForMaskedLM", "RobertaConfig", _DECODER, MERGED),
    "mistral": Family("MistralForCausalLM", "MistralConfig", _HEADED, MERGED),
    "gemma2": Family("Gemma2ForCausalLM", "Gemma2Config", _HEADED, MERGED),
    "gemma3": Family("Gemma3ForCausalLM", "Gemma3TextConfig", _HEADED, MERGED),
    "phi": Family("PhiForCausalLM", "PhiConfig", _GROUPED, MERGED),
    "phi3": Family("Phi3ForCausalLM", "Phi3Config", {**_GROUPED, "pad_token_id": 0}, MERGED),
    "qwen2": Family("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, MERGED),
    "olmo2": Family("Olmo2ForCausalLM", "Olmo2Config", _GROUPED, MERGED),
    "granite": Family("GraniteForCausalLM", "GraniteConfig", _GROUPED, MERGED),
    "stablelm": Family(
        "StableLmForCausalLM", "StableLmConfig", {**_GROUPED, "use_qkv_bias": True}, MERGED
    ),
    "starcoder2": Family("Starcoder2ForCausalLM", "Starcoder2Config", _GROUPED, MERGED),
    "glm4": Family("Glm4ForCausalLM", "Glm4Config", {**_HEADED, "pad_token_id": 0}, MERGED),
    "gpt2": Family("GPT2LMHeadModel", "GPT2Config", _SMALL, MERGED),
    "gpt-j": Family("GPTJForCausalLM", "GPTJConfig", {**_SMALL, "rotary_dim": 4}, MERGED),
    "opt": Family(
        "OPTForCausalLM",
        "OPTConfig",
        {**_DECODER, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN},
        MERGED,
    ),
    "bloom": Family(
        "BloomForCausalLM",
        "BloomConfig",
        {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "n_layer": 2, "n_head": 4},
        MERGED,
    ),
    "mamba": Family(
        "MambaForCausalLM",
        "MambaConfig",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "state_size": 4,
        },
        MERGED,
    ),
}


def save_pair(folder: Path, build: Callable[[], PreTrainedModel]) -> type[PreTrainedModel]:
    """Save folder/base and folder/tuned with a tokenizer; returns the class of the models."""
    for name in ("base", "tuned"):
        model = build()
        if name == "tuned":
            fine_tune(model, 1)
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
    return type(model)
