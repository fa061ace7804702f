"""Retries of our own, within one deadline: a client's own are shared by all accounts that use it."""

from collections.abc import Callable

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from collector.aws.deadline import Deadline

_FIRST_WAIT, _LONGEST_WAIT = 0.2, 5.0
"""Seconds."""


def attempts(
    worth_it: Callable[[BaseException], bool],
    deadline: Deadline,
    pause: Callable[[float], None],
) -> Retrying:
    """Return the attempts at something: again while the error is worth it and the deadline leaves time."""

    def too_late(state: RetryCallState) -> bool:
        return state.upcoming_sleep >= deadline.remaining

    return Retrying(
        retry=retry_if_exception(worth_it),
        wait=wait_random_exponential(multiplier=_FIRST_WAIT, max=_LONGEST_WAIT),
        stop=too_late,
        sleep=pause,
        reraise=True,
    )
