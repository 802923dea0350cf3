"""What the checks know of mergekit, against mergekit itself."""

from itertools import product

import pytest
import torch

from dppa_mergekit import method_table
from dppa_mergekit.checks import mergekit_schema


def test_what_is_known_of_mergekit_is_so() -> None:
    from mergekit import config, merge_methods

    registered = [method.spec for method in merge_methods.registered_methods()]
    assert set(mergekit_schema.METHODS) == {spec.name for spec in registered}
    assert set(method_table.names()) <= set(mergekit_schema.METHODS)
    for spec in registered:
        shared = [each.name for each in spec.parameters if each.scope.value == "shared"]
        others = [each.name for each in spec.parameters if each.scope.value != "shared"]
        based = spec.contract.base.value == "required"
        assert mergekit_schema.METHODS[spec.name] == mergekit_schema.Method(
            tuple(shared), tuple(others), based
        )
    for model, keys in (
        (config.MergeConfiguration, mergekit_schema.RECIPE),
        (config.InputModelDefinition, mergekit_schema.MODEL),
        (config.InputSliceDefinition, mergekit_schema.SOURCE),
        (config.OutputSliceDefinition, mergekit_schema.SLICE),
        (config.OutputModuleDefinition, mergekit_schema.MODULE),
        (config.ConditionalParameter, mergekit_schema.CONDITION),
    ):
        assert set(model.model_fields) == set(keys)


def test_what_is_known_of_tokenizers_is_so() -> None:
    from importlib.resources import files

    from mergekit._data import chat_templates
    from mergekit.tokenizer import config

    assert set(config.TokenizerConfig.model_fields) == set(mergekit_schema.TOKENIZER)
    assert set(config.TokenEmbeddingConfig.model_fields) == set(mergekit_schema.TOKEN)
    assert mergekit_schema.ROW_KINDS.keys() == {"zero", "model_token"}
    for kind, model in (
        ("zero", config.ZeroEmbedding),
        ("model_token", config.ModelTokenEmbedding),
    ):
        assert set(model.model_fields) == set(mergekit_schema.ROW_KINDS[kind])
    stored = {path.name for path in files(chat_templates).iterdir()}
    names = {name.removesuffix(".jinja") for name in stored if name.endswith(".jinja")}
    assert {"auto", *names} == set(mergekit_schema.CHAT_TEMPLATES)


def test_what_is_known_of_della_is_so() -> None:
    from mergekit import merge_methods
    from mergekit.sparsify import SparsificationMethod, sparsify

    for method in ("della", "della_linear"):
        (default,) = [
            parameter.default
            for parameter in merge_methods.get(method).spec.parameters
            if parameter.name == mergekit_schema.EPSILON
        ]
        assert default == mergekit_schema.DEFAULT_EPSILON
    delta = torch.linspace(-1, 1, 12).reshape(3, 4)
    for density, epsilon in product((0.1, 0.3, 0.5, 0.7, 0.9), (0, 0.1, 0.15, 0.3, 0.5)):
        try:
            sparsify(delta, density, SparsificationMethod.della_magprune, epsilon=epsilon)
            taken = True
        except ValueError:
            taken = False
        assert taken == mergekit_schema.allows_epsilon(density, epsilon), (density, epsilon)
    with pytest.raises(RuntimeError):
        sparsify(delta, 0.2, SparsificationMethod.della_magprune, epsilon=-0.5)
    assert not mergekit_schema.allows_epsilon(0.2, -0.5)
