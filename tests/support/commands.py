"""The types of the fixtures that run mergekit's command."""

from collections.abc import Callable

import torch
from click.testing import Result

Merge = Callable[..., dict[str, torch.Tensor]]
RunYaml = Callable[..., Result]
