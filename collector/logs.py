"""Structured logs on standard error: a sentence for people, fields for machines, no secrets."""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

from collector.redaction import without_credentials

Format = Literal["text", "json"]


def configure(format_: Format, *, verbose: bool) -> None:
    """Send our own and the libraries' log lines to standard error, the libraries' from warnings on."""
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _redact,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer()
        if format_ == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), sort_keys=False)
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                _redact,
                renderer,
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("collector").setLevel(logging.DEBUG if verbose else logging.INFO)


def _redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cut the credentials out of every URL, whatever field or traceback it is in."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = without_credentials(value)
    return event
