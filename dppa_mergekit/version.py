"""The version of this package, which the build reads from here, and of mergekit."""

__version__ = "0.2.0"

SUPPORTED_MERGEKIT = ">=0.1.5,<0.1.6"
"""The releases of mergekit that the tests run with; pyproject.toml says the same."""
