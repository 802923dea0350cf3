"""Compiles the passes when a wheel is built or the package is installed, if there is a compiler.

Run by hatchling. Without a compiler, or where it fails, the package is built without the library,
and PyTorch does the same more slowly.
"""

import hashlib
import os
import shlex
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCE = Path("dppa_mergekit") / "kernel" / "passes.c"
LIBRARY = SOURCE.with_suffix(".so")
# No contraction: a multiplication and an addition in one rounding would write other bytes.
FLAGS = ["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-trapping-math", "-fPIC", "-shared"]


class CompilePasses(BuildHookInterface):  # type: ignore[type-arg]
    """Puts the library beside its source, and tags the wheel for this platform."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, unless that is impossible."""
        source, library = Path(self.root) / SOURCE, Path(self.root) / LIBRARY
        digest = hashlib.sha256(source.read_bytes()).hexdigest()
        # Written whole or not at all: a merge may have the old one open.
        made = library.with_name(f"{library.name}.{os.getpid()}")
        command = [*shlex.split(os.environ.get("CC", "cc")), *FLAGS, f'-DSOURCE="{digest}"']
        try:
            subprocess.run(
                [*command, "-o", str(made), str(source)],
                check=True,
                capture_output=True,
                text=True,
            )
            made.replace(library)
        except (OSError, subprocess.CalledProcessError) as error:
            library.unlink(missing_ok=True)
            self.app.display_warning(
                f"The compiled passes are left out: {getattr(error, 'stderr', None) or error}"
            )
            return
        finally:
            made.unlink(missing_ok=True)
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{platform}"
        build_data["artifacts"].append(LIBRARY.as_posix())
