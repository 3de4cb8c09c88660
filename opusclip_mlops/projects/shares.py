"""What a process has of each batch where many train one model together.

All draw the same random numbers, those of the whole batch, and each keeps the rows of its share: so
a sample meets the same noise however many processes there are.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """One of `of` equal parts of a batch, by its number from 0."""

    number: int = 0
    of: int = 1

    def rows(self, count: int) -> slice:
        """Which of a batch's rows are this share's.

        Raises:
            ValueError: they cannot be shared out equally.
        """
        each, left = divmod(count, self.of)
        if left:
            raise ValueError(f"{count} rows are not {self.of} equal shares")
        return slice(self.number * each, (self.number + 1) * each)

    def randn_like(self, mine: Tensor) -> Tensor:
        """This share's rows of normal noise for the whole batch, in the shape of `mine`."""
        return self._rows_of(torch.randn, mine)

    def rand_like(self, mine: Tensor) -> Tensor:
        """As `randn_like`, of numbers spread evenly over 0..1."""
        return self._rows_of(torch.rand, mine)

    def _rows_of(self, draw: Callable[..., Tensor], mine: Tensor) -> Tensor:
        count = self.of * len(mine)
        whole = draw(count, *mine.shape[1:], dtype=mine.dtype, device=mine.device)
        return whole[self.rows(count)]


WHOLE = Share()
"""The share of a process that is alone: everything."""
