"""The packages of an export as what a run takes its blocks from: their workload, and the function of each block."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from cidl_sim.core.checked_files import check_files
from cidl_sim.core.errors import PackageError
from cidl_sim.core.files import sha256_of
from cidl_sim.core.workload import Block, Workload, kind_without_widths
from cidl_sim.coreml.manifest import MANIFEST, Manifest, Package, PackageFunction, read_manifest


class Packages:
    """The folder of an export that was opened and, once per state of its files, verified."""

    def __init__(self, root: Path, manifest: Manifest) -> None:
        self.root = root
        self.manifest = manifest

    @classmethod
    def open(cls, root: Path, *, verify: bool = False) -> Packages:
        """Open the export in folder `root`.

        InputError: there is none; PackageError names the file that is missing, truncated or altered. Hashes are checked
        once for each state of the files, or always with `verify`.
        """
        manifest = read_manifest(root)
        listed = {
            f"{package.folder}/{name}": (file.bytes, file.sha256)
            for package in manifest.packages.values()
            for name, file in package.files.items()
        }
        check_files(root, listed, index=MANIFEST, error=PackageError, verify=verify)
        return cls(root, manifest)

    @cached_property
    def sha256(self) -> str:
        """Identity of the packages: that of the manifest."""
        # The family is named beside it; exports from before name none.
        return sha256_of(self.manifest.model_dump(mode="json", exclude={"pipeline"}))

    def path(self, weights: str) -> Path:
        """The package of these weights. PackageError if there is none."""
        return self.root / self.package(weights).folder

    def package(self, weights: str) -> Package:
        """What the manifest says of the package of these weights. PackageError if there is none."""
        if weights not in self.manifest.packages:
            raise PackageError(f"{self.root}: no package of {weights!r}; go on with 'cidl coreml export'")
        return self.manifest.packages[weights]

    def function(self, weights: str, kind: str) -> tuple[str, PackageFunction]:
        """The function of a package that computes this kind of block, and its name. PackageError if there is none."""
        # Exports from before kinds knew widths are of one model each all the same.
        for name, function in self.package(weights).functions.items():
            if function.kind in (kind, kind_without_widths(kind)):
                return name, function
        raise PackageError(
            f"{self.path(weights)}: no function for {kind!r}; export this workload too (cidl coreml export --workload)"
        )

    def as_packages(self, measured: Workload) -> Workload:
        """A workload of this model with its weights as large as the packages; PackageError if one is missing.

        A package is loaded whole: of the token embedding not only a prompt's rows, and compressed weights as they are.
        """
        stages = [
            stage.model_copy(update={"blocks": tuple(self._as_package(block) for block in stage.blocks)})
            for stage in measured.stages
        ]
        compression = self.manifest.compression
        suffix = "" if compression == "none" else f"-{compression}"
        return Workload(
            name=f"{measured.name}-packages{suffix}",
            settings={**measured.settings, "compression": compression},
            stages=tuple(stages),
        )

    def _as_package(self, block: Block) -> Block:
        return block.model_copy(update={"weight_bytes": self.package(block.weights).bytes})
