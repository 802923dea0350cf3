"""A method's parameters as mergekit's specifications, with this package's checks and sentences.

Imports mergekit (merge_methods/base.py, release 0.1.5).
"""

from dataclasses import dataclass

from mergekit.merge_methods.base import ParameterScope, ParameterSpec

from dppa_mergekit.parameters import REQUIRED, Choice, FilePath, Parameter, Switch


@dataclass(frozen=True)
class CheckedParameter(ParameterSpec):  # type: ignore[misc]
    """mergekit's parameter specification with the checks of one of this package's parameters."""

    parameter: Parameter | None = None

    @property
    def required(self) -> bool:
        """False to mergekit: this package names the model and tensor that lack a value."""
        return False

    def validate(self, value: object) -> object:
        """The value as the method uses it. Raises ParameterError where it is not allowed."""
        if self.parameter is None or value is REQUIRED:
            return value
        return self.parameter.check(value)


def specification(parameter: Parameter) -> CheckedParameter:
    """mergekit's specification of a parameter."""
    kinds = {Switch: bool, Choice: str, FilePath: str}
    return CheckedParameter(
        parameter.name,
        kinds.get(type(parameter), float),
        ParameterScope.NON_BASE if parameter.per_model else ParameterScope.SHARED,
        parameter.default,
        parameter.sentence,
        parameter=parameter,
    )
