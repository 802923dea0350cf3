"""Every parameter of a recipe, once: name, scope, allowed values, default, sentence.

The merge methods build mergekit's parameter specifications from this table, the error texts come
from it, and a test holds the tables of the guide to it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from numbers import Real
from typing import Literal

import pydantic

from dppa_mergekit.errors import ParameterError

Value = float | int | bool | str | None

RATES = (90, 80, 70, 60, 50, 40, 30, 20, 10, 0)
"""Pruning rates in percent that bound the partitions (paper 3.3.2), most significant first."""

FLOAT32_MAX = 3.4028234663852886e38


class Required(Enum):
    """The default of a parameter that has none."""

    REQUIRED = "required"


REQUIRED = Required.REQUIRED


@dataclass(frozen=True)
class Parameter:
    """One recipe parameter: what a user may write, and what it means.

    Attributes:
        name: As written in a recipe.
        per_model: Whether it is set for each fine-tuned model; otherwise the whole merge shares it.
        sentence: What it does, for people.
        default: Taken where the recipe is silent; REQUIRED where it must not be.
    """

    name: str
    per_model: bool
    sentence: str
    default: Value | Required

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        raise NotImplementedError

    def check(self, value: object) -> Value:
        """The value as the methods use it. Raises ParameterError where it is not allowed."""
        raise NotImplementedError

    def _refuse(self, value: object) -> ParameterError:
        return ParameterError(f"{self.name} is {value!r}; allowed is {self.allowed}.")


@dataclass(frozen=True)
class Number(Parameter):
    """A finite number in a closed range; None only where None is the default."""

    minimum: float | int = -FLOAT32_MAX
    maximum: float | int = FLOAT32_MAX
    whole: bool = False

    @property
    def allowed(self) -> str:
        """The range in words."""
        if self.whole:
            return f"a whole number from {self.minimum} to {self.maximum}"
        if self.maximum < FLOAT32_MAX:
            return f"a number from {self.minimum:g} to {self.maximum:g}"
        least = "" if self.minimum == -FLOAT32_MAX else f" of at least {self.minimum:g}"
        return f"a finite float32 number{least}"

    def check(self, value: object) -> float | int | None:
        """The number, from a number or, as YAML reads 1e-3, from its text."""
        if value is None and self.default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (Real, str)):
            raise self._refuse(value)
        try:
            number = int(value) if self.whole and isinstance(value, int) else float(value)
        except (ValueError, OverflowError):
            raise self._refuse(value) from None
        # NaN and infinity are in no range either.
        if not self.minimum <= number <= self.maximum:
            raise self._refuse(value)
        if self.whole and number != int(number):
            raise self._refuse(value)
        return int(number) if self.whole else number

    def of(self, values: Mapping[str, object]) -> float:
        """The number among a tensor's parameter values.

        Raises:
            ParameterError: It is not allowed, or None.
        """
        return check_number(self, values[self.name])

    def optional(self, values: Mapping[str, object]) -> float | None:
        """The same, for a parameter that may be None."""
        return self.check(values[self.name])


def check_number(parameter: Number, value: object) -> float:
    """A number of a parameter that has no None. Raises ParameterError where it is not allowed."""
    number = parameter.check(value)
    if number is None:
        raise ParameterError(f"{parameter.name} is None; allowed is {parameter.allowed}.")
    return number


@dataclass(frozen=True)
class Choice(Parameter):
    """One of a few words."""

    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """The words."""
        return " or ".join(self.choices)

    def check(self, value: object) -> str:
        """The word itself."""
        if isinstance(value, str) and value in self.choices:
            return value
        raise self._refuse(value)

    def of(self, values: Mapping[str, object]) -> str:
        """The word among a tensor's parameter values. Raises ParameterError if not allowed."""
        return self.check(values[self.name])


@dataclass(frozen=True)
class Switch(Parameter):
    """True or false."""

    @property
    def allowed(self) -> str:
        """Both."""
        return "true or false"

    def check(self, value: object) -> bool:
        """The truth value, from YAML's spellings of it."""
        try:
            return _BOOLEAN.validate_python(value)
        except pydantic.ValidationError:
            raise self._refuse(value) from None

    def of(self, values: Mapping[str, object]) -> bool:
        """The value among a tensor's parameter values. Raises ParameterError if not allowed."""
        return self.check(values[self.name])


@dataclass(frozen=True)
class FilePath(Parameter):
    """The path of a file; None only where None is the default."""

    @property
    def allowed(self) -> str:
        """A path in words."""
        return "the path of a file"

    def check(self, value: object) -> str | None:
        """The path, from its text."""
        if value is None and self.default is None:
            return None
        if isinstance(value, str) and value:
            return value
        raise self._refuse(value)

    def of(self, values: Mapping[str, object]) -> str | None:
        """The path among a tensor's parameter values. Raises ParameterError if not allowed."""
        return self.check(values[self.name])


_BOOLEAN = pydantic.TypeAdapter(bool)

WEIGHT = Number("weight", True, "Share of the model's delta in the merge.", REQUIRED)
WEIGHT_IN_REGRESSION = Number(
    "weight",
    True,
    "Weight of the errors on the model's inputs.",
    1.0,
    minimum=0,
)
DENSITY = Number(
    "density",
    True,
    "Share of the linears' delta that is kept: 1 minus the pruning rate.",
    0.2,
    minimum=0,
    maximum=1,
)
AMPLIFICATIONS = tuple(
    Number(
        f"amplify_{rate}",
        True,
        f"Factor of the {rate} partition: what survives at pruning rate {rate} %"
        + (f" and not at {rate + 10} %." if rate < 90 else "."),
        1.0,
        minimum=0,
    )
    for rate in RATES
)
AMPLIFICATION_NAMES = dict(zip(RATES, (factor.name for factor in AMPLIFICATIONS), strict=True))
"""Pruning rate -> the name of the factor of its partition."""

AMPLIFY_DENSE = Number(
    "amplify_dense",
    True,
    "Factor of the delta of dense tensors, which are never pruned.",
    1.0,
    minimum=0,
)
LAMBDA = Number("lambda", False, "Factor of the whole sum of deltas.", 1.0)
ACTIVATIONS = FilePath(
    "activations",
    True,
    "File of the second moments of the model's inputs; without any, the deltas stand for them.",
    None,
)
AMPLIFY = Choice(
    "amplify",
    False,
    "Whether a pruned linear with factors of 1 gets one that makes its outputs as large as before.",
    "auto",
    choices=("auto", "none"),
)
MOMENT_SHRINKAGE = Number(
    "moment_shrinkage",
    False,
    "Factor of the moments' off-diagonal entries.",
    0.95,
    minimum=0,
    maximum=1,
)
MOMENT_RIDGE = Number(
    "moment_ridge",
    False,
    "Added to the diagonal of the moments, whose mean diagonal is 1.",
    0.001,
    minimum=0,
)
SEED = Number("seed", False, "Seed of the random partitions.", 0, 0, 2**32 - 1, whole=True)
MAX_FLUCTUATION = Number(
    "max_fluctuation",
    False,
    "How far block and linear may each move the density (the paper's lambda).",
    0.08,
    minimum=0,
    maximum=1,
)
SIGNIFICANCE_MULTIPLE = Number(
    "significance_multiple",
    False,
    "N: a delta is significant above N times the mean magnitude.",
    5.0,
    minimum=0,
)
BLOCK_SIGNIFICANCE_MULTIPLE = Number(
    "block_significance_multiple",
    False,
    "N of the blocks; significance_multiple where not set.",
    None,
    minimum=0,
)


def significance(default: Literal["magnitude", "count"]) -> Choice:
    """The parameter `significance`, whose default depends on the method."""
    return Choice(
        "significance",
        False,
        "Sum the magnitudes of significant deltas (paper) or count them (OWL, authors' code).",
        default,
        choices=("magnitude", "count"),
    )


def normalize(default: bool) -> Switch:
    """The parameter `normalize`, whose default depends on the method."""
    return Switch("normalize", False, "Divide the sum by the sum of the weights.", default)
