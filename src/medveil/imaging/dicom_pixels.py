"""Decode the pixels of a DICOM image as they were stored, or as RGB."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import generate_frames
from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
from pydicom.uid import UID

from medveil.errors import ImageError
from medveil.imaging.codestream import codestream_size
from medveil.imaging.dicom_header import dicom_errors
from medveil.imaging.source import too_large

MAX_PIXEL_BYTES = 4 << 30
"""Default limit of one decoded image (4 GiB)."""

_GREY = frozenset({"MONOCHROME1", "MONOCHROME2"})
_COLOUR = frozenset({"RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"})
_PALETTE = "PALETTE COLOR"
_ALLOCATIONS = (1, 8, 16, 32)
_MAX_SIDE = 65535
_RLE_SLACK = 1024
_BYTE = 8


@dataclass(frozen=True)
class Layout:
    """How the header says that the pixels are stored.

    Args:
        frames: at least 1.
        rows: at least 1.
        columns: at least 1.
        samples: 1 or 3.
        bits_allocated: 1, 8, 16 or 32.
        bits_stored: at most ``bits_allocated``.
        high_bit: index of the highest stored bit.
        signed: two's complement.
        photometric: DICOM photometric interpretation.
    """

    frames: int
    rows: int
    columns: int
    samples: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    photometric: str

    @property
    def is_grey(self) -> bool:
        """One sample that is a brightness."""
        return self.photometric in _GREY

    @property
    def stored_range(self) -> tuple[int, int]:
        """Lowest and highest value that the stored bits can hold."""
        span = 1 << self.bits_stored
        return (-span // 2, span // 2 - 1) if self.signed else (0, span - 1)

    @property
    def frame_bytes(self) -> int:
        """Bytes of one decoded frame."""
        return -(-self.rows * self.columns * self.samples * self.bits_allocated // _BYTE)


def read_layout(dataset: Dataset, *, max_bytes: int = MAX_PIXEL_BYTES) -> Layout:
    """Read and check the image pixel module.

    Raises:
        ImageError: ``"bad-header"`` or ``"too-large"``.
    """
    with dicom_errors("The description of the pixels is wrong", "bad-header"):
        allocated = _whole(dataset, "BitsAllocated", 1, 32)
        stored = _whole(dataset, "BitsStored", 1, allocated)
        layout = Layout(
            frames=_whole(dataset, "NumberOfFrames", 1, 1 << 24, default=1),
            rows=_whole(dataset, "Rows", 1, _MAX_SIDE),
            columns=_whole(dataset, "Columns", 1, _MAX_SIDE),
            samples=_whole(dataset, "SamplesPerPixel", 1, 3),
            bits_allocated=allocated,
            bits_stored=stored,
            high_bit=_whole(dataset, "HighBit", stored - 1, allocated - 1, default=stored - 1),
            signed=bool(_whole(dataset, "PixelRepresentation", 0, 1)),
            photometric=str(dataset.get("PhotometricInterpretation", "")),
        )
    samples = 3 if layout.photometric in _COLOUR else 1
    supported = layout.photometric in _GREY | _COLOUR | {_PALETTE}
    if not supported or layout.samples != samples or allocated not in _ALLOCATIONS:
        raise ImageError(
            "The pixels are stored in a way that is not read",
            reason="bad-header",
            got=f"{layout.samples} samples of {allocated} bits",
            expected="one grey or palette sample, or three colour samples, of 1, 8, 16 or 32 bits",
            remedy="export the image again",
        )
    # Four bytes a sample: rescaled pixels are float32. Three samples: a palette becomes RGB.
    size = layout.frames * layout.rows * layout.columns * 4 * (1 if layout.is_grey else 3)
    if size > max_bytes:
        raise too_large(size, max_bytes)
    return layout


def _whole(dataset: Dataset, keyword: str, low: int, high: int, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None or value == "":
        value = default
    if value is None or not low <= int(value) <= high:
        raise ImageError(
            f"The header's {keyword} is missing or wrong",
            reason="bad-header",
            expected=f"a whole number from {low} to {high}",
            remedy="export the image again",
        )
    return int(value)


def decode_pixels(dataset: Dataset, layout: Layout) -> NDArray[np.generic]:
    """Decode every frame.

    Args:
        dataset: with pixels and file meta information.
        layout: of the same file.

    Returns:
        Shape (frames, rows, columns, channels), native byte order. Grey: one channel, the stored integers,
        overlay bits above the stored bits removed. Colour and palette: three channels, RGB, uint8 (deeper
        samples keep their highest eight bits).

    Raises:
        ImageError: ``"truncated"``, ``"decode"``, ``"bad-header"`` or ``"unsupported-transfer-syntax"``.
    """
    with dicom_errors("The pixels cannot be decoded", "decode"):
        syntax = _transfer_syntax(dataset)
        if syntax.is_encapsulated:
            _check_codestreams(dataset, layout, syntax)
        else:
            _check_length(dataset, layout)
        array = np.asarray(pixel_array(dataset))
        shape = (layout.frames, layout.rows, layout.columns, layout.samples)
        if array.size != np.prod(shape, dtype=np.int64) or array.dtype.kind not in "ui":
            raise ImageError(
                "The decoded pixels do not have the size that the header states",
                reason="decode",
                got=array.shape,
                expected=shape,
                remedy="export the image again",
            )
        array = array.reshape(shape)
        array = array.astype(array.dtype.newbyteorder("="), copy=False)
        if layout.is_grey:
            return array if syntax.is_encapsulated else _stored_bits(array, layout)
        return _as_rgb(array, dataset, layout)


def _transfer_syntax(dataset: Dataset) -> UID:
    value = dataset.file_meta.get("TransferSyntaxUID")
    if not value:
        raise ImageError("The DICOM file does not name its transfer syntax", reason="bad-header")
    syntax = UID(str(value))
    try:
        usable = not syntax.is_encapsulated or get_decoder(syntax).is_available
    except (NotImplementedError, ValueError):
        usable = False
    if not usable:
        raise ImageError(
            "The pixels are compressed in a way that is not read",
            reason="unsupported-transfer-syntax",
            got=syntax.name,
            expected="uncompressed, deflated, RLE, JPEG, JPEG-LS or JPEG 2000",
            remedy="export the image uncompressed",
        )
    return syntax


def _check_length(dataset: Dataset, layout: Layout) -> None:
    bits = layout.frames * layout.rows * layout.columns * layout.samples * layout.bits_allocated
    expected = -(-bits // _BYTE)
    if layout.photometric == "YBR_FULL_422":
        expected = expected * 2 // 3
    found = len(dataset.PixelData)
    if found < expected:
        raise ImageError(
            "The pixels end early",
            reason="truncated",
            got=f"{found} bytes",
            expected=f"{expected} bytes",
            remedy="copy the file again",
        )


def _check_codestreams(dataset: Dataset, layout: Layout, syntax: UID) -> None:
    """A small file may claim a huge frame: compare what the streams declare before a decoder allocates it."""
    offsets = None
    if "ExtendedOffsetTable" in dataset:
        offsets = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    frames = generate_frames(dataset.PixelData, number_of_frames=layout.frames, extended_offsets=offsets)
    for frame in frames:
        size = codestream_size(frame)
        if size is not None and size != (layout.rows, layout.columns):
            raise ImageError(
                "A compressed frame declares another size than the header",
                reason="decode",
                got=size,
                expected=(layout.rows, layout.columns),
                remedy="export the image again",
            )
        # Run lengths expand at most 64 times, and an honest encoder never doubles the data.
        if syntax.name == "RLE Lossless" and len(frame) > 2 * layout.frame_bytes + _RLE_SLACK:
            raise ImageError("A compressed frame is longer than its pixels", reason="decode")


def _stored_bits(array: NDArray[np.generic], layout: Layout) -> NDArray[np.generic]:
    """Keep the stored bits only: old files keep overlays in the others."""
    width = array.dtype.itemsize * _BYTE
    if layout.bits_stored >= min(width, layout.bits_allocated) or array.dtype.kind not in "ui":
        return array
    # Shifting left drops what lies above the highest stored bit; shifting right extends the sign.
    left = width - 1 - layout.high_bit
    kind = np.dtype(f"{'i' if layout.signed else 'u'}{array.dtype.itemsize}")
    return np.asarray(np.right_shift(np.left_shift(array.view(kind), left), width - layout.bits_stored))


def _as_rgb(array: NDArray[np.generic], dataset: Dataset, layout: Layout) -> NDArray[np.generic]:
    depth = layout.bits_stored
    if layout.photometric == _PALETTE:
        array = np.asarray(apply_color_lut(array[..., 0], dataset))[..., :3]
        depth = array.dtype.itemsize * _BYTE
    if depth > _BYTE:
        array = np.right_shift(array, depth - _BYTE)
    return array.astype(np.uint8)
