"""Log records on their way from workers to the parent, whose handlers show them."""

from __future__ import annotations

import logging
import pickle
import socket
import sys
import time
import traceback

__all__ = ["LogReceiver", "send_records_to"]


class _SendingHandler(logging.Handler):
    """The only handler in a worker. Never blocks: a full channel sends the text to stderr."""

    def __init__(self, channel: socket.socket) -> None:
        super().__init__()
        self._channel = channel

    def emit(self, record: logging.LogRecord) -> None:
        try:
            record = logging.makeLogRecord(record.__dict__)
            text = record.getMessage()
            if record.exc_info and not record.exc_text:
                record.exc_text = "".join(traceback.format_exception(*record.exc_info)).rstrip()
            fields = {
                key: value
                for key, value in record.__dict__.items()
                if isinstance(value, (str, int, float, bool, type(None)))
            }
            fields.update(msg=text, args=None, exc_info=None)
            try:
                self._channel.send(pickle.dumps(fields), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                # In one piece: other workers write there, too.
                sys.stderr.write(f"{record.levelname}:{record.name}:{text}\n")
                sys.stderr.flush()
        except Exception:
            self.handleError(record)


def send_records_to(channel: socket.socket) -> None:
    """In a worker: sends every log record to the parent, and to nobody else."""
    for logger in list(logging.Logger.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            logger.handlers.clear()
            logger.propagate = True
    root = logging.getLogger()
    root.handlers[:] = [_SendingHandler(channel)]


# A worker that logs without a pause must not keep the consumer from its elements.
_MOST_SECONDS = 0.05


class LogReceiver:
    """In the parent: hands records that workers sent to the loggers of the same name."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def fileno(self) -> int:
        return self._channel.fileno()

    def drain(self) -> None:
        """Hands over what is there, without waiting for more, and not all of a flood at once."""
        end = time.monotonic() + _MOST_SECONDS
        while self._channel.fileno() >= 0 and time.monotonic() < end:
            try:
                data = self._channel.recv(1 << 20, socket.MSG_DONTWAIT)
            except OSError:  # nothing there
                return
            if not data:
                return
            try:
                record = logging.makeLogRecord(pickle.loads(data))
            except Exception:  # a worker that was killed in the middle cannot have sent half
                continue
            logger = logging.getLogger(record.name)
            if logger.isEnabledFor(record.levelno):
                logger.handle(record)

    def close(self) -> None:
        self.drain()
        self._channel.close()

    def forget(self) -> None:
        """In a forked child: what is there is the parent's to read."""
        self._channel.close()
