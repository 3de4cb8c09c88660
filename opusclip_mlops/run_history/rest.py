"""The points of single keys through MLflow's server, in pages."""

from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.utils.search_utils import SearchUtils

from opusclip_mlops.run_history import RunGoneError
from opusclip_mlops.watermarks import Mark, Rows, rows_of

if TYPE_CHECKING:
    from mlflow import MlflowClient

PAGE_ROWS = 25_000
_AT_ONCE = 8


class RestRows:
    """Reads several keys at a time, each page by page.

    A page begins with the last row of the page before. So a row that was added in front while
    reading is noticed, and what it has moved is read again.
    """

    def __init__(self, client: "MlflowClient", *, page_rows: int = PAGE_ROWS) -> None:
        self._store = client._tracking_client.store
        self._page_rows = page_rows
        self._has_pages = True

    def all(self, run_id: str, keys: Collection[str]) -> dict[str, Rows]:
        """All points of some keys."""
        found = self.since(run_id, dict.fromkeys(keys, Mark()), {})
        return {key: rows for key, rows in found.items() if rows is not None}

    def since(
        self, run_id: str, changed: Mapping[str, Mark], looked_at: Mapping[str, Mark]
    ) -> dict[str, Rows | None]:
        """The points behind the marks of keys; None for a key that has more before its mark."""
        quiet = {key: mark for key, mark in looked_at.items() if key not in changed}
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            more = threads.map(lambda key: self._has_more(run_id, key, quiet[key]), quiet)
            grown = {key: quiet[key] for key, is_so in zip(quiet, more, strict=True) if is_so}
            marks = {**changed, **grown}
            rows = threads.map(lambda key: self._behind(run_id, key, marks[key]), marks)
            return dict(zip(marks, rows, strict=True))

    def _has_more(self, run_id: str, key: str, mark: Mark) -> bool:
        rows, _ = self._page(run_id, key, mark.count, 1)
        return len(rows) > 0

    def _behind(self, run_id: str, key: str, mark: Mark) -> Rows | None:
        pages: list[Rows] = []
        is_last, missed = False, 0
        while not is_last:
            end = _end(mark, pages)
            overlap = min(1, end.count)
            # Another size each time: a server need not order NaN and 0 at one step and time.
            size = max(2, self._page_rows - missed)
            page, is_last = self._page(run_id, key, end.count - overlap, size)
            if not overlap or (len(page) and end.is_at(page[0])):
                pages.append(page[overlap:])
                continue
            is_last, missed = False, missed + 1
            if not self._turns_out_to_have_no_pages(run_id, key):
                if not pages:
                    return None
                pages.pop()
        return np.concatenate(pages)

    def _turns_out_to_have_no_pages(self, run_id: str, key: str) -> bool:
        """Whether the server gives everything whatever it is asked for, as old ones do."""
        had_pages = self._has_pages
        self._page(run_id, key, 0, 1)
        return had_pages and not self._has_pages

    def _page(self, run_id: str, key: str, offset: int, count: int) -> tuple[Rows, bool]:
        """The rows behind the first so many, and whether these are all."""
        token = SearchUtils.create_page_token(offset).decode() if offset else None
        try:
            found = self._store.get_metric_history(run_id, key, count, token)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            raise RunGoneError(f"run {run_id} is not in MLflow: it was removed") from None
        rows = rows_of(
            [one.timestamp for one in found],
            [one.step for one in found],
            [one.value for one in found],
        )
        self._has_pages = self._has_pages and len(rows) <= count
        return (rows, not found.token) if self._has_pages else (rows[offset:], True)


def _end(mark: Mark, pages: list[Rows]) -> Mark:
    for page in pages:
        mark = mark.moved(page)
    return mark
