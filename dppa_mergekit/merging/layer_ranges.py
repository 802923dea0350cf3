"""The layers that a slice takes of a model."""

from dppa_mergekit.report.phrases import count


def find_layers_past_the_end(first: int, after: int, layers: int, model: str) -> str | None:
    """Return the sentence about a range that a model does not have; None where it has all of it.

    mergekit merges a slice of no layers: it adds nothing, but may give embeddings or the head.

    Args:
        first: The first layer.
        after: The layer after the last.
        layers: The number of the model's layers.
        model: What the sentence calls the model.
    """
    if 0 <= first <= after <= layers:
        return None
    return (
        f"layer_range is [{first}, {after}], and {model} has {count(layers, 'layer')}: allowed is "
        f"[a, b] with 0 <= a <= b <= {layers}."
    )
