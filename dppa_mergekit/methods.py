"""Registration of the merge methods with mergekit; importing this module registers them."""

import logging
import threading

from mergekit import merge_methods as mergekit_methods

from dppa_mergekit.merging.mergekit_support import check_mergekit
from dppa_mergekit.method_table import METHODS
from dppa_mergekit.report.progress import write_logs_around_bars

LOG = logging.getLogger(__name__)

_REGISTRATION = threading.Lock()


def register_methods() -> None:
    """Make the methods available by name in mergekit; safe to call again.

    A name that mergekit or another plugin has already stays theirs, with a warning.

    Raises:
        UnsupportedMergekitError: mergekit is of another release than those that are supported.
    """
    check_mergekit()
    # After the check: with another mergekit, this import would end in a traceback.
    from dppa_mergekit.merging.delta_pruning_merge import DeltaPruningMerge

    write_logs_around_bars()
    with _REGISTRATION:
        taken = {method.spec.name: method for method in mergekit_methods.registered_methods()}
        for method in METHODS:
            holder = taken.get(method.name)
            if holder is None:
                mergekit_methods.register(DeltaPruningMerge(method))
            elif type(holder).__module__ != DeltaPruningMerge.__module__:
                LOG.warning(
                    "A merge method %s is registered already; dppa-mergekit leaves it as it is.",
                    method.name,
                )


register_methods()
