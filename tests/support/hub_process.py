"""The stand-in for the Hub as a process, and commands that are run against it."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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

    def publish(self, cwd: Path, *arguments: str, token: str = "hf_x"):
        return self.command("publish", *arguments, cwd=cwd, token=token)

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
