"""The smallest build backend there is (PEP 517): a wheel of `src` with the metadata of pyproject.toml."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WHEEL = "Wheel-Version: 1.0\nGenerator: build_wheel_file\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def build_wheel(wheel_directory: str, config_settings: Any = None, metadata_directory: Any = None) -> str:
    """Write the wheel into `wheel_directory` and return its name."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    stem = f"{project['name'].replace('-', '_')}-{project['version']}"
    metadata = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    points = "".join(
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in entries.items())
        for group, entries in project["entry-points"].items()
    )
    files = {str(p.relative_to("src")): p.read_text(encoding="utf-8") for p in Path("src").rglob("*.py")}
    files |= {
        f"{stem}.dist-info/METADATA": metadata,
        f"{stem}.dist-info/WHEEL": WHEEL,
        f"{stem}.dist-info/entry_points.txt": points,
    }
    files[f"{stem}.dist-info/RECORD"] = (
        "".join(f"{name},,\n" for name in files) + f"{stem}.dist-info/RECORD,,\n"
    )
    name = f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(Path(wheel_directory) / name, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
    return name
