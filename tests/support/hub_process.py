"""The stand-in for the Hub as a process, and commands that are run against it."""

import io
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner
from huggingface_hub import constants

from dppa_mergekit.cli.main import main


@dataclass
class Hub:
    root: Path
    environment: Mapping[str, str]

    def run(self, *arguments: str, cwd: Path, token: str = "hf_x") -> subprocess.CompletedProcess:
        environment = {**os.environ, **self.environment, "HF_TOKEN": token}
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def publish(
        self, cwd: Path, *arguments: str, token: str = "hf_x"
    ) -> subprocess.CompletedProcess:
        """Publish in this process, which has imported everything already."""
        warnings = io.StringIO()
        handler = logging.StreamHandler(warnings)
        handler.setLevel(logging.WARNING)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(cwd)
            for name, value in {**self.environment, "HF_TOKEN": token}.items():
                patch.setenv(name, value)
            # huggingface_hub reads the environment once, as it is imported.
            endpoint = self.environment["HF_ENDPOINT"]
            patch.setattr(constants, "ENDPOINT", endpoint)
            template = constants.HUGGINGFACE_CO_URL_TEMPLATE
            path = template.removeprefix(template.partition("/{")[0])
            patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{endpoint}{path}")
            patch.setattr(constants, "HF_HUB_OFFLINE", False)
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            logging.getLogger().addHandler(handler)
            done = CliRunner().invoke(main, ["publish", *arguments])
            logging.getLogger().removeHandler(handler)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        stderr = warnings.getvalue() + done.stderr
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, stderr)

    def command(self, *arguments: str, cwd: Path, token: str = "hf_x"):
        program = ("-c", "from dppa_mergekit.cli.main import main; main()")
        return self.run(*program, *arguments, cwd=cwd, token=token)

    def asked(self, verb: str) -> list[str]:
        lines = (self.root / "requests").read_text(encoding="utf-8").splitlines()
        return [line for line in lines if line.startswith(verb)]


@contextmanager
def serving(tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, over tmp_path/hub."""
    root = tmp_path / "hub"
    root.mkdir()
    server = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hub.py")), str(root)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port = server.stdout.readline().strip()
    yield Hub(
        root,
        {
            "HF_ENDPOINT": f"http://127.0.0.1:{port}",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path / "home"),
            "DPPA_MERGEKIT_CACHE": "off",
        },
    )
    server.kill()
    server.wait()
