"""Source "catalogue": a public data set by name."""

from pathlib import Path
from typing import Literal

from medveil.data.catalogue import CatalogueName, entry, locate
from medveil.data.sources.assemble import Description, assemble
from medveil.data.sources.contract import SourceConfig
from medveil.data.sources.files import open_tree
from medveil.data.sources.medmnist_npz import medmnist_records
from medveil.data.sources.public_sets import SET_READERS, archive_or_folder
from medveil.data.subject import Dataset
from medveil.imaging.medmnist import read_medmnist
from medveil.imaging.preprocess import Preprocess


class CatalogueSource(SourceConfig):
    """A public data set, found where :func:`medveil.data.catalogue.locate` says.

    Attributes:
        name: in the catalogue.
        annotator: whose drawing is the target, where the set has two (retina).
    """

    kind: Literal["catalogue"] = "catalogue"
    name: CatalogueName
    annotator: Literal[1, 2] = 1

    @property
    def subject_rule(self) -> str:
        """What counts as a subject."""
        return entry(self.name).subject_rule

    @property
    def names_patients(self) -> bool:
        """Whether the source says whose an image is."""
        return entry(self.name).names_patients

    def load(self, preprocess: Preprocess, root: Path) -> Dataset:  # noqa: ARG002 - the catalogue knows the place
        """Read the set; as :meth:`medveil.data.sources.contract.Source.load`.

        Raises:
            MissingDataError: the set is not on this machine.
        """
        known, folder = entry(self.name), locate(self.name)
        description = Description(
            self.name, known.task, known.class_names, citation=known.citation, licence=known.licence
        )
        if self.name == "pneumonia-28":
            published = read_medmnist(folder / "pneumoniamnist.npz")
            records = medmnist_records(published, len(known.class_names))
            return assemble(records, description, preprocess, resize=self.resize)
        reader = SET_READERS[self.name]
        with open_tree(archive_or_folder(folder)) as tree:
            records, refused = reader.records(tree, self.annotator)
            return assemble(
                records, description, preprocess, resize=self.resize, refused=refused, threads=reader.threads
            )
