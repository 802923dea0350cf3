"""Cross-talk of deltas against samples of inputs."""

import interference
import numpy as np
import pytest
import torch

from dppa_mergekit.moments.second_moment import SecondMoment


def test_the_effect_of_a_delta_is_that_on_samples() -> None:
    random = np.random.default_rng(0)
    inputs, outputs, samples = 6, 4, 400_000
    vectors = np.linalg.qr(random.normal(size=(inputs, 2)))[0]
    values, rest = np.array([3.0, 0.5]), random.random(inputs)
    drawn = random.normal(size=(samples, 2)) * np.sqrt(values) @ vectors.T
    drawn += random.normal(size=(samples, inputs)) * np.sqrt(rest)
    delta = random.normal(size=(outputs, inputs))
    moment = SecondMoment(*map(torch.tensor, (vectors, values, rest)))
    expected = np.square(drawn @ delta.T).sum(1).mean()
    found = interference.measure_effect(torch.tensor(delta), moment)
    assert found == pytest.approx(expected, rel=0.01)
