"""What mergekit 0.1.5 reads of a recipe: keys, methods, and the parameters of each method.

These facts are copied because importing mergekit takes longer than a whole check; a test compares
them with mergekit itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dppa_mergekit.method_table import METHODS as OWN_METHODS

RECIPE = (
    "modules",
    "slices",
    "models",
    "merge_method",
    "base_model",
    "dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
    "out_dtype",
    "parameters",
)
MODEL = ("model", "parameters")
SOURCE = ("model", "layer_range", "parameters")
SLICE = ("sources", "base_model", "residual_weight", "parameters")
MODULE = ("slices", "models", "parameters")
CONDITION = ("filter", "value")
TOKENIZER = ("source", "tokens", "pad_to_multiple_of")
TOKEN = ("source", "force")
ROW_KINDS = {"zero": ("kind",), "model_token": ("kind", "model", "token", "token_id")}
"""Kind of the source of a token's embedding, beside models -> its keys."""

CHAT_TEMPLATES = ("auto", "alpaca", "chatml", "exaone", "llama3", "mistral")
"""The names of chat templates."""


@dataclass(frozen=True)
class Method:
    """A merge method.

    Attributes:
        shared: Parameters of the whole merge.
        per_model: Parameters of each model; in the recipe's own `parameters` they apply to all.
        based: Whether it needs a base model.
    """

    shared: tuple[str, ...] = ()
    per_model: tuple[str, ...] = ()
    based: bool = False

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of all parameters."""
        return (*self.shared, *self.per_model)


_DELTAS = ("int8_mask", "normalize", "rescale", "lambda")
_SPARSE = Method(_DELTAS, ("weight", "density"), based=True)

METHODS: Mapping[str, Method] = {
    "multislerp": Method(("normalize_weights", "eps"), ("weight",)),
    "nearswap": Method(("t",), based=True),
    "ram": Method(("epsilon",), based=True),
    "ramplus_tl": Method(("r", "alpha", "epsilon"), based=True),
    "sce": Method(("int8_mask", "select_topk"), based=True),
    "linear": Method(("normalize",), ("weight",)),
    "slerp": Method(("t",), based=True),
    "nuslerp": Method(("nuslerp_row_wise", "nuslerp_flatten"), ("weight",)),
    "passthrough": Method((), ("scale",)),
    "model_stock": Method(("filter_wise",), based=True),
    "arcee_fusion": Method(based=True),
    "karcher": Method(("max_iter", "tol")),
    "task_arithmetic": _SPARSE,
    "ties": _SPARSE,
    "dare_ties": _SPARSE,
    "dare_linear": _SPARSE,
    "breadcrumbs": Method(_DELTAS, ("weight", "density", "gamma"), based=True),
    "breadcrumbs_ties": Method(_DELTAS, ("weight", "density", "gamma"), based=True),
    "della": Method(_DELTAS, ("weight", "density", "epsilon"), based=True),
    "della_linear": Method(_DELTAS, ("weight", "density", "epsilon"), based=True),
    **{
        variant.name: Method(
            tuple(parameter.name for parameter in variant.parameters if not parameter.per_model),
            tuple(parameter.name for parameter in variant.parameters if parameter.per_model),
            based=True,
        )
        for variant in OWN_METHODS
    },
}

EPSILON = "epsilon"
"""The range of DELLA's probabilities around its density."""

DEFAULT_EPSILON = 0.15
"""DELLA's epsilon where a recipe gives none."""

RANDOM_METHODS = ("dare_linear", "dare_ties", "della", "della_linear")
"""mergekit's methods that draw other random numbers in every run."""


def allows_epsilon(density: float, epsilon: float) -> bool:
    """Return whether mergekit can merge with an epsilon of DELLA at a density between 0 and 1.

    At density 0 DELLA keeps nothing, and at 1 all, whatever the epsilon (mergekit/sparsify.py,
    0.1.5).
    """
    return epsilon >= 0 and density - epsilon > 0 and density + epsilon < 1


def find_methods(parameter: str) -> list[str]:
    """Return the methods that have a parameter of this name."""
    return [name for name, method in METHODS.items() if parameter in method.parameters]
