"""Structured logs on standard error: a sentence for people, fields for machines, no secrets.

An event is one line, whatever is in it: nobody who names a disk or a tag can forge another line.
"""

import logging
import re
import sys
from collections.abc import MutableMapping
from contextlib import suppress
from typing import Any, Literal

import structlog

from collector.redaction import keep_secrets_of_environment, redacted_field

Format = Literal["text", "json"]

_OURS = frozenset({"level", "timestamp"})
"""Fields that hold nothing of anybody else's."""

_CONTROL = re.compile(r"[\x00-\x1a\x1c-\x1f\x7f-\x9f\u2028\u2029]|\x1b(?!\[[0-9;]*m)")
"""What ends a line or steers a terminal; all but the renderer's own colours."""


def configure(format_: Format, *, verbose: bool) -> None:
    """Send our own and the libraries' log lines to standard error, the libraries' from warnings on.

    The secrets that the environment holds are kept from now on; others are told to ``redaction``.
    """
    keep_secrets_of_environment()
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = _Handler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact,  # last, so that nothing is added or turned into text after it
                *_renderers(format_),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    # Credentials that cannot be refreshed fail the look, which says so; the library adds a traceback.
    logging.getLogger("botocore.credentials").setLevel(logging.ERROR)
    # A tick that is left out because the last one lasts is counted (metrics), not told each time.
    logging.getLogger("apscheduler").setLevel(logging.ERROR)
    logging.getLogger("collector").setLevel(logging.DEBUG if verbose else logging.INFO)


class _Handler(logging.StreamHandler[Any]):
    """Writes to standard error, and never shows the parts of a line that could not be written."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say which line is lost; the library would print its arguments as they are."""
        message = "a log line was lost (%s:%d): %s"
        details = (record.pathname, record.lineno, getattr(sys.exc_info()[0], "__name__", "unknown reason"))
        lost = logging.LogRecord(record.name, logging.ERROR, "", 0, message, details, None)
        with suppress(OSError, ValueError):
            self.stream.write(self.format(lost) + self.terminator)


def _redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide every secret, by its value or its name, whatever field or traceback it is in."""
    return {name: value if name in _OURS else redacted_field(name, value) for name, value in event.items()}


def _renderers(format_: Format) -> list[structlog.typing.Processor]:
    if format_ == "json":
        return [structlog.processors.JSONRenderer()]
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False), _on_one_line]


def _on_one_line(_logger: object, _method: str, line: Any) -> str:
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), str(line))
