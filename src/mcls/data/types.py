"""Split and Dataset, the types that every data set returns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from mcls.data.image_io import PLAIN, Reading
from mcls.data.validate import wrong_split
from mcls.errors import DataError

if TYPE_CHECKING:
    from mcls.data.image_files import ImageFiles


@dataclass(frozen=True)
class Split:
    """Samples and their classes.

    Args:
        inputs: (N, ...), uint8 for images (N, C, H, W) and float32 for anything else; `Files` are images too big for
            memory, read at each indexing.
        targets: int64 (N,), class numbers.
        names: where each sample comes from, a file or a row; empty where there is no more to say than its number.
        digests: of images in files, sha256 of each file.
    """

    inputs: "Tensor | ImageFiles"
    targets: Tensor
    names: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    def rows(self, indices: Tensor) -> "Split":
        """The samples with these numbers."""
        places = indices.tolist() if self.names or self.digests else []
        names = tuple(self.names[index] for index in places) if self.names else ()
        digests = tuple(self.digests[index] for index in places) if self.digests else ()
        return Split(select_inputs(self.inputs, indices), self.targets[indices], names, digests)


def select_inputs(inputs: "Tensor | ImageFiles", indices: Tensor) -> "Tensor | ImageFiles":
    """The inputs with these numbers; files stay unread."""
    return inputs[indices] if isinstance(inputs, Tensor) else inputs.select(indices)


@dataclass(frozen=True)
class Dataset:
    """A data set, cut into splits.

    Args:
        classes: names, in the order of the class numbers.
        train: what is trained on.
        val: what choices are made on, cut from train; None when all of train is trained on.
        open_test: reads the test split. Called once, at the end, when every choice has been made.
        mean, std: of each channel, in 0..1, for uint8 images; None leaves float inputs as they are.
        encoder: what turns rows of a table into inputs (`encode_table`): text, floats and lists; None for others.
        reading: how files of images become arrays.
    """

    classes: tuple[str, ...]
    train: Split
    val: Split | None
    open_test: Callable[[], Split]
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    encoder: dict[str, Any] | None = None
    reading: Reading = PLAIN

    def __post_init__(self) -> None:
        """Raise DataError unless the splits are as described above; the test split is checked when it is opened."""
        if len(self.classes) < 2 or not callable(self.open_test):
            raise DataError("dataset: requires two or more classes, and a function as open_test.")
        read = self.open_test
        object.__setattr__(self, "open_test", lambda: self.check("test", read()))
        self.check("train", self.train)
        if self.val is not None:
            self.check("val", self.val)

    def check(self, name: str, split: Any) -> Any:
        """`split`, when it is one and goes with the classes, the statistics and train."""
        wrong = None if isinstance(split, Split) else f"must be a Split, got {type(split).__name__}"
        if wrong := wrong or wrong_split(split, self.train, len(self.classes), self.mean, self.std):
            raise DataError(f"dataset: {name} {wrong}.")
        return split

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.train.inputs.shape[1:])
