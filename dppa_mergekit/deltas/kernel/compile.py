"""Compiles the passes when the package is built or installed, if there is a C compiler.

Run by hatchling. Without a compiler, or where it fails, the package goes without the library, and
PyTorch does the same work more slowly.
"""

import hashlib
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "dppa_mergekit/deltas/kernel"
# No contraction: a multiplication and an addition in one rounding would write other bytes.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fPIC", "-shared"]


class CompilePasses(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library to a wheel, or, for an editable install, puts it beside its source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless that is impossible."""
        folder = Path(self.root, FOLDER)
        library = folder / "passes.so"
        self._temporary = TemporaryDirectory()
        made = Path(self._temporary.name, "passes.so")
        source = folder / "passes.c"
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, *FLAGS, f'-DSOURCE="{digest}"', "-o", str(made), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            if version == "editable":
                # Moved as a whole: a merge may have the old one open.
                beside = library.with_name(f"passes.{os.getpid()}.so")
                beside.write_bytes(made.read_bytes())
                beside.replace(library)
        except (OSError, subprocess.CalledProcessError) as error:
            if version == "editable":
                library.unlink(missing_ok=True)
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(f"The compiled passes are left out: {reason}")
            return
        if version != "editable":
            build_data["force_include"][str(made)] = f"{FOLDER}/passes.so"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was needed for the build only."""
        self._temporary.cleanup()
