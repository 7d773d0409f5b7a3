"""Patients who can be recognised anywhere, and a search for them in everything that a federation writes."""

import csv
import gzip
import hashlib
import io
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from medveil.data.sources.phantom import PhantomSource
from medveil.imaging.preprocess import Preprocess

ID, FILE, BORN = "zzpatient-", "zzpicture-", "zzborn-"
SOURCE = """
[data.source]
kind = "image-csv"
name = "planted"
images = "patients/pictures"
table = "patients/table.csv"
patient = "patient"
attributes = ["scanner", "born"]
"""
_STRETCH = slice(480, 544)
"""Part of a picture of 32 x 32 that is searched for: in the middle, where it is not black."""


def write_patients(folder, count, scanners):
    """Pictures of phantoms and a table that names their patients, as SOURCE reads them."""
    drawn = PhantomSource(subjects=count, scanners=scanners, seed=1, difficulty=0.2, repeated=0.0)
    subjects = drawn.load(Preprocess(), Path()).subjects
    pictures = folder / "patients" / "pictures"
    pictures.mkdir(parents=True)
    with (folder / "patients" / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", "patient", "scanner", "born"])
        for subject in subjects:
            token = hashlib.sha256(subject.subject_id.encode()).hexdigest()[:16]
            (example,) = subject.examples
            Image.fromarray(example.image[0]).save(pictures / f"{FILE}{token}.png")
            label = ("clear", "opacity")[example.target]
            table.writerow([f"{FILE}{token}.png", label, ID + token, subject.attributes["scanner"], BORN + token])


@dataclass(frozen=True)
class Traces:
    """What would tell of a patient.

    Args:
        marks: part of every patient's id, file name and date of birth, lower case.
        exact: by kind, one byte string a patient.
        scores: one probability a patient of the test set, of the finished model.
    """

    marks: tuple[bytes, ...]
    exact: dict[str, list[bytes]]
    scores: tuple[float, ...]

    def found(self, data):
        """Kinds of traces in some bytes."""
        small = data.lower()
        kinds = {mark.decode() for mark in self.marks if mark in small}
        kinds |= {kind for kind, traces in self.exact.items() if any(trace in data for trace in traces)}
        # Five digits of one score may stand anywhere by chance, those of most patients may not.
        shown = sum(f"{score:.7f}"[:7].encode() in data for score in self.scores)
        return kinds | ({"scores"} if shown > len(self.scores) / 2 else set())


def traces_of(subjects, probabilities):
    """Of all subjects, and of the scores of the images of a test set, shape (N, 2)."""
    pictures = [subject.examples[0].image.reshape(-1)[_STRETCH] for subject in subjects]
    digests = [subject.examples[0].digest for subject in subjects]
    shares = [(picture / np.float32(255)).astype(np.float32) for picture in pictures]
    return Traces(
        (ID.encode(), FILE.encode(), BORN.encode()),
        {
            "pseudonym": [subject.subject_id.encode() for subject in subjects],
            "digest": [word for digest in digests for word in (digest.encode(), bytes.fromhex(digest))],
            "pixels": [picture.tobytes() for picture in pictures],
            "pixels as floats": [share.tobytes() for share in shares],
            "scores as floats": [row.astype(kind).tobytes() for row in probabilities for kind in ("f4", "f8")],
        },
        tuple(score for score in probabilities[:, 1].tolist() if 0.01 < score < 0.99),  # not 0.00000, which is anywhere
    )


def contents(data):
    """Some bytes, without their zeros too (text as two or four bytes a letter), and what is packed into them."""
    yield data
    if b"\0" in data:
        yield data.replace(b"\0", b"")
    if zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for name in packed.namelist():
                yield name.encode()
                yield from contents(packed.read(name))
    elif data[:2] == b"\x1f\x8b":
        try:
            yield from contents(gzip.decompress(data))
        except (OSError, EOFError, zlib.error):  # no gzip after all
            return


def search(traces, folders):
    """``({path: kinds of traces}, number of files)`` of all files of some folders."""
    found, count = {}, 0
    for path in (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()):
        count += 1
        kinds = {kind for data in contents(path.read_bytes()) for kind in traces.found(data)}
        kinds |= traces.found(str(path.name).encode())
        if kinds:
            found[path] = kinds
    return found, count
