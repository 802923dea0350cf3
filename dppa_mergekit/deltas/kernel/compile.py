"""Compiles the passes when the package is built or installed, if there is a C compiler.

Hatchling runs this file. Without a compiler, or if it fails, the package contains no library, and
PyTorch does the same work more slowly.
"""

import os
import runpy
import shlex
import subprocess
import sysconfig
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "dppa_mergekit/deltas/kernel"
# Contraction would round a multiplication and an addition once, and so change the bytes of merges.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fPIC", "-shared"]


class CompilePasses(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the library to a wheel; an editable install gets it beside its sources."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile the library; warn if that is impossible."""
        folder = Path(self.root, FOLDER)
        library = folder / "passes.so"
        self._temporary = TemporaryDirectory()
        made = Path(self._temporary.name, "passes.so")
        # The package cannot be imported yet.
        digest = runpy.run_path(str(folder / "source.py"))["digest_sources"](folder)
        compiler = shlex.split(os.environ.get("CC", "cc"))
        command = [*compiler, *FLAGS, f'-DSOURCE="{digest}"', "-o", str(made)]
        command.append(str(folder / "passes.c"))
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
            if version == "editable":
                # Replaced in one step, since a running merge may have the old library open.
                new = library.with_name(f"passes.{os.getpid()}.so")
                new.write_bytes(made.read_bytes())
                new.replace(library)
        except (OSError, subprocess.CalledProcessError) as error:
            if version == "editable":
                library.unlink(missing_ok=True)
            reason = getattr(error, "stderr", None) or error
            self.app.display_warning(f"The package gets no compiled passes: {reason}")
            return
        if version != "editable":
            build_data["force_include"][str(made)] = f"{FOLDER}/passes.so"
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the temporary folder of the build."""
        self._temporary.cleanup()
