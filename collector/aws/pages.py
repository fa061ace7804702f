"""Pages of a listing, read to the last one, which there must be."""

from collections.abc import Callable, Iterator
from typing import TypeVar

from collector.aws.failures import EndlessListingError

MOST_PAGES = 1000

T = TypeVar("T")


def every_page(page: Callable[[dict[str, str]], tuple[T, str | None]]) -> Iterator[T]:
    """Yield every page; ``page`` is given what asks for the next one, first nothing.

    Raises:
        EndlessListingError: a page token comes twice, or there are too many pages.
    """
    tokens: set[str] = set()
    following: dict[str, str] = {}
    while True:
        items, token = page(following)
        yield items
        if not token:
            return
        if token in tokens:
            raise EndlessListingError("a page token came twice in one listing")
        tokens.add(token)
        if len(tokens) >= MOST_PAGES:
            raise EndlessListingError(f"the listing has more than {MOST_PAGES} pages")
        following = {"NextToken": token}
