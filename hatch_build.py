"""The compiled build: the modules of the hot path, as they are, made into C by mypyc. Off unless asked for:

    HATCH_BUILD_HOOKS_ENABLE=1 pip install .        # takes a C compiler, and some minutes

The same code either way; `ratelimit --version` says which of the two is installed.
"""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface[Any]):
    """Compiles what `modules` lists in `pyproject.toml`, beside the sources and never among them."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the extensions into a wheel, and the platform into its name. An editable install stays as it is: there,
        an edited source has to count."""
        if version == "editable":
            return
        self._place = TemporaryDirectory(prefix="ratelimit-compiled-")
        for extension in _compiled(Path(self.root), self.config["modules"], Path(self._place.name)):
            build_data["force_include"][str(extension)] = str(extension.relative_to(Path(self._place.name, "lib")))
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """They are in the wheel now."""
        if version != "editable":
            self._place.cleanup()


def _compiled(root: Path, modules: list[str], place: Path) -> list[Path]:
    # Needed by nobody else, and installed only where this hook is on.
    from mypyc.build import mypycify
    from setuptools import Distribution

    before = Path.cwd()
    os.chdir(root)
    try:
        # Whether the types are right is for `make types` to say.
        options = ["--config-file=", "--follow-imports=silent", "--ignore-missing-imports"]
        extensions = mypycify(
            [*options, f"--cache-dir={place / 'cache'}", *modules],
            target_dir=str(place / "c"),
            group_name="ratelimit.compiled",
            # A file a module, and no symbols for debuggers: one file of all takes gcc several times as long.
            multi_file=True,
            debug_level="0",
        )
        headers = {str(header.parent) for header in (place / "c").rglob("*.h")}
        for extension in extensions:
            extension.include_dirs += sorted(headers)
        command = Distribution({"name": "ratelimit", "ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(place / "lib"), str(place / "tmp")
        command.ensure_finalized()
        command.run()
    finally:
        os.chdir(before)
    return [path for path in (place / "lib").rglob("*") if path.suffix in (".so", ".pyd")]
