"""Tiny real checkpoints: transformers models, randomly initialised, saved by transformers."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import peft
import safetensors.torch
import torch
import transformers
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCABULARY = 96
HIDDEN = 32

_DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}

ARCHITECTURES: dict[str, tuple[str, str, dict[str, object]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", {**_DECODER, "tie_word_embeddings": True}),
    "llama_untied": (
        "LlamaConfig",
        "LlamaForCausalLM",
        {**_DECODER, "tie_word_embeddings": False},
    ),
    "mistral": ("MistralConfig", "MistralForCausalLM", _DECODER),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", _DECODER),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", _DECODER),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {
            "vocab_size": VOCABULARY,
            "n_embd": HIDDEN,
            "n_layer": 3,
            "n_head": 4,
            "n_positions": 64,
        },
    ),
    "mixtral": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**_DECODER, "num_local_experts": 4, "num_experts_per_tok": 2},
    ),
    "bert": (
        "BertConfig",
        # mergekit 0.1.5 cannot merge a bare BertModel or BertForMaskedLM, with any method.
        "BertForSequenceClassification",
        {
            "vocab_size": VOCABULARY,
            "hidden_size": HIDDEN,
            "intermediate_size": 80,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "max_position_embeddings": 64,
        },
    ),
    "t5": (
        "T5Config",
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": HIDDEN,
            "d_kv": 8,
            "d_ff": 80,
            "num_layers": 3,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "feed_forward_proj": "gated-gelu",
            "decoder_start_token_id": 0,
        },
    ),
}


def new_model(architecture: str, seed: int, **changes: object) -> PreTrainedModel:
    """A randomly initialised model in float32."""
    config_name, model_name, options = ARCHITECTURES[architecture]
    torch.manual_seed(seed)
    config = getattr(transformers, config_name)(**{**options, **changes})
    model: PreTrainedModel = getattr(transformers, model_name)(config)
    return model.eval()


def fine_tune(model: PreTrainedModel, seed: int, scale: float = 3e-3) -> PreTrainedModel:
    """Move every parameter: heavier tails in some tensors than in others, some deltas zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            shape = parameter.shape
            noise = torch.randn(shape, generator=generator)
            power = 1 + 2 * torch.rand((), generator=generator)
            moved = torch.rand(shape, generator=generator) < 0.9
            parameter += scale * noise.sign() * noise.abs() ** power * moved
    return model


def tokenizer(words: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """A word-level tokenizer of VOCABULARY tokens, with `words` in place of the last ones."""
    count = VOCABULARY - 4 - len(words)
    tokens = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(count)), *words]
    inner = Tokenizer(WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
    )


def save_family(
    folder: Path,
    architecture: str = "llama",
    dtype: torch.dtype = torch.float32,
    tuned: Sequence[str] = ("math", "law"),
    shard: str = "5GB",
    **changes: object,
) -> Path:
    """Save folder/base and folder/<tuned>, each with a tokenizer; returns the folder."""
    for position, name in enumerate(("base", *tuned)):
        model = new_model(architecture, 0, **changes)
        if name != "base":
            fine_tune(model, position)
        model.to(dtype).save_pretrained(folder / name, max_shard_size=shard)
        tokenizer().save_pretrained(folder / name)
    return folder


def save_lora(family: Path) -> str:
    """Save family/adapter, a LoRA on the base, and family/whole, with it merged in; its name."""
    torch.manual_seed(5)
    settings = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    base = transformers.LlamaForCausalLM.from_pretrained(family / "base")
    model = peft.get_peft_model(base, settings)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.02)
    model.save_pretrained(family / "adapter")
    model.merge_and_unload().save_pretrained(family / "whole")
    return f"{family / 'base'}+{family / 'adapter'}"


def recipe(
    folder: Path,
    method: str = "dppa",
    models: Mapping[str, Mapping[str, object]] | None = None,
    **changes: object,
) -> dict[str, object]:
    """A recipe over the models of a family; per-model parameters as given."""
    if models is None:
        models = {
            "math": {"weight": 0.6, "density": 0.2, "amplify_90": 2.1, "amplify_80": 1.4},
            "law": {"weight": 0.5, "density": 0.3},
        }
    return {
        "merge_method": method,
        "base_model": str(folder / "base"),
        "models": [
            {"model": str(folder / name), "parameters": dict(parameters)}
            for name, parameters in models.items()
        ],
        **changes,
    }


def write_recipe(path: Path, content: Mapping[str, object]) -> Path:
    """Write a recipe as YAML."""
    path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")
    return path


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors checkpoint, sharded or not; there must be some."""
    result: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        result.update(safetensors.torch.load_file(shard))
    assert result, f"{folder} holds no tensors"
    return result


def stack_experts(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A Mixtral checkpoint of one tensor per expert, in the layout of the model itself."""
    result: dict[str, torch.Tensor] = {}
    experts: dict[str, dict[str, list[torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"(.*)\.block_sparse_moe\.experts\.\d\.(w\d)\.weight", name):
            experts.setdefault(match[1], {}).setdefault(match[2], []).append(tensor)
        else:
            result[name.replace("block_sparse_moe", "mlp")] = tensor
    for layer, of in experts.items():
        gate_up = torch.cat([torch.stack(of["w1"]), torch.stack(of["w3"])], dim=1)
        result[f"{layer}.mlp.experts.gate_up_proj"] = gate_up.contiguous()
        result[f"{layer}.mlp.experts.down_proj"] = torch.stack(of["w2"])
    return result


def unequal(found: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> list[str]:
    """What differs between two checkpoints: names on one side only, dtypes, shapes, values."""
    differences = [f"{name}: on one side only" for name in sorted(set(found) ^ set(wanted))]
    for name in sorted(set(found) & set(wanted)):
        left, right = found[name], wanted[name]
        if left.dtype != right.dtype or left.shape != right.shape:
            kinds = f"{left.dtype} {list(left.shape)}, {right.dtype} {list(right.shape)}"
            differences.append(f"{name}: {kinds}")
        elif not torch.equal(left, right):
            differences.append(f"{name}: {int((left != right).sum())} of {left.numel()} values")
    return differences
