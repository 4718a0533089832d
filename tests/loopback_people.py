"""People who use the loopback Hub by the command line, each at a desk of their own; and what they pushed."""

import os
import subprocess
import sys
from pathlib import Path

import yaml
from loopback_hub import LoopbackHub

ANNA, BEN, READER = "hf_annaSecretToken", "hf_benSecretToken", "hf_readOnlyToken"
COMMAND = str(Path(sys.executable).with_name("sard-lora"))


class Person:
    """Somebody at a desk of their own: an account on the Hub or none, and a cache nobody else reads."""

    def __init__(self, hub: LoopbackHub, home: Path, token: str | None):
        self.home = home
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))
        }
        self.environment |= {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home)}
        self.environment |= {} if hub.xet else {"HF_HUB_DISABLE_XET": "1"}
        self.environment |= {"NO_PROXY": "127.0.0.1,localhost", "OMP_NUM_THREADS": "1", "TMPDIR": str(home)}
        if token:
            self.environment["HF_TOKEN"] = token
        home.mkdir()

    def run(self, *call: str | Path, fails: bool = False) -> str:
        """`sard-lora CALL`; what it prints."""
        result = self._call([COMMAND, *map(str, call)])
        assert (result.returncode == 1) == fails, result.stdout + result.stderr
        assert result.returncode in (0, 1) and "Traceback" not in result.stderr, result.stderr
        return result.stdout + result.stderr

    def python(self, code: str) -> str:
        result = self._call([sys.executable, "-c", code])
        assert result.returncode == 0, result.stderr
        return result.stdout

    def _call(self, command: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def pushed(hub: LoopbackHub, kind: str = "model") -> dict[str, bytes]:
    """What is in anna/nut on the Hub now."""
    there = hub.repository(kind, "anna/nut").files()
    return {path: file.content for path, file in there.items() if path != ".gitattributes"}


def metadata(card: bytes) -> dict:
    return yaml.safe_load(card.decode().split("---")[1])
