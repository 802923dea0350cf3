import pytest
import torch

from dppa_mergekit.tensor_names import (
    Block,
    block_of,
    kind_of,
    linears_in,
    names_with_inputs_first,
    natural_order,
)

NAMES = [
    ("model.layers.3.mlp.up_proj.weight", (8, 4), Block("model.layers", 3), 1),
    ("model.layers.3.mlp.up_proj.bias", (8,), Block("model.layers", 3), 0),
    ("model.embed_tokens.weight", (9, 4), None, 0),
    ("lm_head.weight", (9, 4), None, 0),
    ("model.layers.0.self_attn.q_norm.weight", (2, 4), Block("model.layers", 0), 0),
    ("model.layers.0.input_layernorm.weight", (4,), Block("model.layers", 0), 0),
    ("transformer.h.11.attn.c_attn.weight", (4, 12), Block("transformer.h", 11), 1),
    ("transformer.wpe.weight", (9, 4), None, 0),
    ("encoder.block.0.layer.0.SelfAttention.q.weight", (4, 4), Block("encoder.block", 0), 1),
    (
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        (32, 4),
        Block("encoder.block", 0),
        0,
    ),
    (
        "encoder.layer.1.attention.self.distance_embedding.weight",
        (9, 4),
        Block("encoder.layer", 1),
        0,
    ),
    ("model.layers.0.block_sparse_moe.gate.weight", (4, 8), Block("model.layers", 0), 0),
    ("model.layers.0.mlp.gate.weight", (4, 8), Block("model.layers", 0), 0),
    ("model.layers.0.mlp.gate_proj.weight", (4, 8), Block("model.layers", 0), 1),
    ("model.layers.0.mlp.shared_expert_gate.weight", (1, 8), Block("model.layers", 0), 0),
    ("model.layers.0.mlp.router.layer.weight", (4, 8), Block("model.layers", 0), 0),
    ("model.layers.0.altup.modality_router.weight", (4, 8), Block("model.layers", 0), 0),
    ("model.layers.0.altup.correction_coefs.weight", (4, 4), Block("model.layers", 0), 0),
    ("model.layers.0.altup.prediction_coefs.weight", (16, 4), Block("model.layers", 0), 0),
    ("model.layers.0.mlp.router_gate.weight", (8, 8), Block("model.layers", 0), 0),
    ("model.layers.0.mlp.gate.router_mlp.0.weight", (8, 8), Block("model.layers", 0), 0),
    ("model.layers.0.moe_gate.weight", (4, 8), Block("model.layers", 0), 0),
    ("model.layers.0.ffn.Router.classifier.weight", (4, 8), Block("model.layers", 0), 0),
    ("model.layers.0.per_layer_input_gate.weight", (4, 8), Block("model.layers", 0), 1),
    ("model.layers.0.xlstm.output_gate.weight", (8, 8), Block("model.layers", 0), 1),
    ("model.layers.0.self_attn.q_gate_proj.weight", (8, 8), Block("model.layers", 0), 1),
    ("model.layers.0.mlp.gateway.weight", (8, 8), Block("model.layers", 0), 1),
    ("model.layers.0.mlp.experts.gate_up_proj", (4, 16, 8), Block("model.layers", 0), 4),
    ("model.layers.0.mlp.experts.gate_up_proj_bias", (4, 16), Block("model.layers", 0), 0),
    ("model.layers.0.mlp.experts.7.up_proj.weight", (16, 8), Block("model.layers", 0), 1),
    (
        "model.layers.0.block_sparse_moe.input_linear.weight",
        (4, 16, 8),
        Block("model.layers", 0),
        4,
    ),
    ("backbone.layers.0.mixer.conv1d.weight", (8, 1, 4), Block("backbone.layers", 0), 0),
    ("model.layers.0.conv.conv.weight", (8, 1, 4), Block("model.layers", 0), 0),
    ("model.layers.0.conv.in_proj.weight", (8, 4), Block("model.layers", 0), 1),
    # torch.nn.MultiheadAttention keeps the projections of its inputs itself.
    ("layers.0.self_attn.in_proj_weight", (12, 4), Block("layers", 0), 1),
    ("layers.0.self_attn.k_proj_weight", (4, 2), Block("layers", 0), 1),
    ("layers.0.self_attn.in_proj_bias", (12,), Block("layers", 0), 0),
    ("layers.0.mamba.x_proj_weight", (2, 3, 4), Block("layers", 0), 0),
    ("backbone.layers.0.mixer.A_log", (8, 4), Block("backbone.layers", 0), 0),
    ("backbone.layers.0.mixer.D", (8,), Block("backbone.layers", 0), 0),
    ("model.layers.61.shared_head.head.weight", (9, 4), Block("model.layers", 61), 0),
    ("model.layers.0.mlp.up_proj.weight", (0, 4), Block("model.layers", 0), 0),
]


def test_the_matrices_of_a_transformer_of_torch_are_linears() -> None:
    layer = torch.nn.TransformerDecoderLayer(8, 2, 16)
    layer.self_attn = torch.nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    shapes = {
        name: tensor.shape
        for name, tensor in torch.nn.TransformerDecoder(layer, 2).state_dict().items()
    }
    matrices = {name for name, shape in shapes.items() if len(shape) == 2}
    assert len(matrices) == 2 * 8
    assert {name for name, shape in shapes.items() if linears_in(name, shape)} == matrices


@pytest.mark.parametrize(("name", "shape", "block", "linears"), NAMES)
def test_classes(name: str, shape: tuple[int, ...], block: Block | None, linears: int) -> None:
    assert block_of(name) == block
    assert linears_in(name, shape) == linears


def test_vocabularies_are_dense() -> None:
    assert linears_in("model.layers.0.mlp.up_proj.weight", (8, 4), vocabulary=True) == 0


def test_natural_order() -> None:
    names = ["layers.10.q", "layers.2.q", "embed", "layers.2.k"]
    assert sorted(names, key=natural_order) == ["embed", "layers.2.k", "layers.2.q", "layers.10.q"]


BLOCK = "model.layers.0"


@pytest.mark.parametrize(
    ("name", "shapes", "inputs_first"),
    [
        # GPT-2: a bias, and a square linear that is stored as the others are.
        ("h.0.c_fc.weight", {"h.0.c_fc.weight": (4, 16), "h.0.c_fc.bias": (16,)}, True),
        (
            "h.0.c_proj.weight",
            {
                "h.0.c_proj.weight": (4, 4),
                "h.0.c_proj.bias": (4,),
                "h.0.c_fc.weight": (4, 16),
                "h.0.c_fc.bias": (16,),
            },
            True,
        ),
        # Qwen2, with biases of its own; Llama, without.
        (f"{BLOCK}.k.weight", {f"{BLOCK}.k.weight": (2, 8), f"{BLOCK}.k.bias": (2,)}, False),
        (f"{BLOCK}.k.weight", {f"{BLOCK}.k.weight": (2, 8)}, False),
        # gpt-oss, by the biases of its experts.
        (
            f"{BLOCK}.mlp.experts.down_proj",
            {
                f"{BLOCK}.mlp.experts.down_proj": (2, 3, 8),
                f"{BLOCK}.mlp.experts.down_proj_bias": (2, 8),
            },
            True,
        ),
        # Llama 4 and Mixtral, by what leaves one tensor and enters the other.
        *(
            (
                f"{BLOCK}.mlp.experts.{part}",
                {
                    f"{BLOCK}.mlp.experts.gate_up_proj": joint,
                    f"{BLOCK}.mlp.experts.down_proj": down,
                },
                first,
            )
            for joint, down, first in (
                ((2, 8, 6), (2, 3, 8), True),
                ((2, 6, 8), (2, 8, 3), False),
            )
            for part in ("gate_up_proj", "down_proj")
        ),
    ],
)
def test_how_linears_are_stored(
    name: str, shapes: dict[str, tuple[int, ...]], inputs_first: bool
) -> None:
    assert (name in names_with_inputs_first(shapes)) == inputs_first


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("model.layers.3.mlp.up_proj.weight", "mlp.up_proj"),
        ("encoder.block.0.layer.1.DenseReluDense.wi.weight", "layer.1.DenseReluDense.wi"),
        ("model.layers.0.mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj"),
        ("0.up.weight", "up"),
        ("h.07.up.weight", "up"),
        ("lm_head.weight", "lm_head"),
    ],
)
def test_the_kind_of_a_tensor_is_its_name_within_the_block(name: str, kind: str) -> None:
    assert kind_of(name) == kind
