"""The native part of the build; everything else is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

from build_tools import native
from build_tools.toolchain import BuildError

ROOT = Path(__file__).resolve().parent


class BuildNative(build_ext):
    """build_ext by build_tools.native: its own compiler commands, and failure allowed."""

    installed: tuple[str, ...] = ()

    def run(self) -> None:
        """Build, and place the files in the source tree (in place, editable) or the wheel's."""
        folder = ROOT / "fastrnn" if self.inplace else Path(self.build_lib, "fastrnn")
        try:
            self.installed = tuple(native.install(ROOT, folder))
        except BuildError as error:
            raise CompileError(f"fastrnn: {error}") from error

    def get_output_mapping(self) -> dict[str, str]:
        """What a wheel would hold -> the file in the source tree, for editable installs."""
        if not self.inplace:
            return {}
        names = [str(Path("fastrnn", name)) for name in self.installed]
        return {str(Path(self.build_lib, name)): name for name in names}

    def get_outputs(self) -> list[str]:
        """The installed files, under the build tree."""
        return [str(Path(self.build_lib, "fastrnn", name)) for name in self.installed]


# Declared so that wheels carry a platform tag and source distributions hold the file.
setup(
    license="BSD-3-Clause",
    ext_modules=[Extension("fastrnn._C", sources=["csrc/module.cpp"])],
    cmdclass={"build_ext": BuildNative},
)
