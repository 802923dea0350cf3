"""Registers the merge methods of dppa-mergekit when mergekit's are first imported.

The wheel's ``.pth`` file imports this module at every start of the interpreter, so it imports
nothing but ``sys`` and does nothing but put one finder on ``sys.meta_path``. The finder waits for
``mergekit.merge_methods`` and lets the plugin register itself right after that module has run.
``DPPA_MERGEKIT_AUTOLOAD=0`` switches it off. mergekit 0.1.5 offers no discovery of its own.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

AWAITED = "mergekit.merge_methods"
OWN = "dppa_mergekit.merging."
_warned = False
_registering = False
_loading: "set[str]" = set()


class MergeMethodsFinder:
    """A meta-path finder that extends the import of a few modules and leaves all others alone."""

    def find_spec(
        self, name: str, path: "Sequence[str] | None" = None, target: "ModuleType | None" = None
    ) -> "ModuleSpec | None":
        """Return the spec of the later finders, extended so that the plugin registers itself."""
        if name != AWAITED and not name.startswith(OWN):
            return None
        # The finders before this one have been asked already. One of them may be of this kind:
        # asking it again would never end.
        finders = iter(sys.meta_path)
        for finder in finders:
            if finder is self:
                break
        for finder in finders:
            spec = finder.find_spec(name, path, target) if hasattr(finder, "find_spec") else None
            if spec is not None:
                _register_after(spec)
                return spec
        return None


def _register_after(spec: "ModuleSpec") -> None:
    loader = spec.loader
    if loader is None or not hasattr(loader, "exec_module"):
        return
    execute = loader.exec_module

    def exec_module(module: "ModuleType") -> None:
        # A loader may serve other modules too, as that of a zip file does.
        loader.exec_module = execute  # type: ignore[method-assign]
        if module.__name__.startswith(OWN):
            _loading.add(module.__name__)
        try:
            execute(module)
        finally:
            _loading.discard(module.__name__)
        # A module of the plugin that imports mergekit must be complete before methods register.
        if AWAITED in sys.modules and not _loading:
            register()

    loader.exec_module = exec_module  # type: ignore[method-assign]


class UnavailableMethod:
    """A merge method of a plugin that cannot load: it only says why, whatever is asked of it."""

    def __init__(self, name: str, reason: str) -> None:
        from types import SimpleNamespace

        self.spec = SimpleNamespace(name=name, pretty_name=name, reference_url=None)
        self.reason = reason

    def validate_inputs(self, *inputs: object, **options: object) -> None:
        """Refuse. mergekit calls this first, and its commands print a click error as one line."""
        import click

        raise click.ClickException(f"Merge method {self.spec.name}: {self.reason}")

    __call__ = validate_inputs

    def __getattr__(self, name: str) -> object:
        """Refuse. Releases before 0.1.5 begin with other methods than `validate_inputs`."""
        if name.startswith("_"):
            raise AttributeError(name)
        self.validate_inputs()
        return None


def register() -> None:
    """Import the plugin and register its methods.

    A failure is a warning, and an error only where a recipe names one of the methods.
    """
    global _warned, _registering
    if _registering:
        return  # the import below ends with modules of the plugin that call this again
    _registering = True
    try:
        methods = sys.modules.get("dppa_mergekit.methods")
        if methods is None:
            __import__("dppa_mergekit.methods")  # registers on its own
        # If `methods` is being imported, and imported mergekit, it registers at its end.
        elif hasattr(methods, "register_methods"):
            methods.register_methods()
    except Exception as error:
        # An error of the plugin's own is a sentence; its class is not looked up, since it may be
        # what cannot be imported.
        own = type(error).__module__.startswith("dppa_mergekit.")
        reason = (
            str(error) if own else f"dppa-mergekit cannot load: {type(error).__name__}: {error}"
        )
        _register_unavailable(reason)
        if _warned:
            return
        import warnings

        _warned = True
        warnings.warn(reason, RuntimeWarning, stacklevel=2)
    finally:
        _registering = False


def _register_unavailable(reason: str) -> None:
    mergekit = sys.modules[AWAITED]
    older = getattr(mergekit, "REGISTERED_MERGE_METHODS", None)  # releases before 0.1.5
    if isinstance(older, dict):
        for name in _names_of_methods():
            older.setdefault(name, UnavailableMethod(name, reason))
    if not hasattr(mergekit, "register") or not hasattr(mergekit, "registered_methods"):
        return  # not the mergekit that this plugin is for
    taken = {method.spec.name for method in mergekit.registered_methods()}
    for name in _names_of_methods():
        if name not in taken:
            mergekit.register(UnavailableMethod(name, reason))


def _names_of_methods() -> "list[str]":
    """The names in the table of methods; none if even the table cannot be imported."""
    try:
        from dppa_mergekit import method_table
    except Exception:
        return []
    return method_table.names()


def install() -> None:
    """Put the finder first on the meta path, once, unless the user switched it off."""
    # os is always loaded by the time .pth files are read; looking it up costs nothing.
    environ = sys.modules["os"].environ if "os" in sys.modules else {}
    if environ.get("DPPA_MERGEKIT_AUTOLOAD", "1") == "0":
        return
    if not any(isinstance(finder, MergeMethodsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, MergeMethodsFinder())


install()
