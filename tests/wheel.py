"""Small real distributions, written by hand: wheels for pip to install, and what pip would have installed of them."""

from __future__ import annotations

import base64
import hashlib
import shutil
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Wheel:
    """A distribution of one module."""

    name: str
    version: str = "1.0"
    code: str = ""
    requires: str | None = None
    file: str | None = None
    """Where its code goes, if not into its module."""
    plugin: str | None = None
    """Entry point that its module is offered as."""

    @property
    def module(self) -> str:
        """Its module's name."""
        return self.name.replace("-", "_")

    def files(self) -> Mapping[str, str]:
        """Path below site-packages to text, its record included."""
        info = f"{self.module}-{self.version}.dist-info"
        metadata = ["Metadata-Version: 2.1", f"Name: {self.name}", f"Version: {self.version}", "Requires-Python: >=3.8"]
        metadata += [f"Requires-Dist: {self.requires}"] if self.requires else []
        files = {
            self.file or f"{self.module}.py": self.code,
            f"{info}/METADATA": "\n".join(metadata) + "\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        if self.plugin:
            files[f"{info}/entry_points.txt"] = f"[art_core]\n{self.plugin} = {self.module}\n"
        record = "".join(f"{path},sha256={sha256(text)},{len(text.encode())}\n" for path, text in files.items())
        return {**files, f"{info}/RECORD": f"{record}{info}/RECORD,,\n"}

    def write(self, directory: Path) -> None:
        """Write the wheel into a folder."""
        with zipfile.ZipFile(directory / f"{self.module}-{self.version}-py3-none-any.whl", "w") as archive:
            for path, text in self.files().items():
                archive.writestr(path, text)

    def install(self, site: Path) -> None:
        """Write its files into a folder, in place of another version's."""
        for info in site.glob(f"{self.module}-*.dist-info"):
            shutil.rmtree(info)
        for file, text in self.files().items():
            path = site / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def sha256(text: str) -> str:
    """As a record holds it."""
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
