"""Where boards are found: ``HOST:PORT/KEY`` of a tracker."""

from dataclasses import dataclass

from costmodels.errors import BackendError

_PORTS = 65535


@dataclass(frozen=True)
class Address:
    """A tracker of Apache TVM, and which of its boards.

    Args:
        host: of the tracker.
        port: of the tracker.
        key: under which the boards are registered there; those of one key are alike.

    >>> str(Address.parse("127.0.0.1:9190/pi"))
    '127.0.0.1:9190/pi'
    """

    host: str
    port: int
    key: str

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read ``HOST:PORT/KEY``.

        Raises:
            BackendError: if it is none.
        """
        where, _, key = text.partition("/")
        host, _, port = where.rpartition(":")
        if not (host and key and port.isdecimal() and 0 < int(port) <= _PORTS):
            raise BackendError(f"{text!r} is no board; write HOST:PORT/KEY of TVM's RPC tracker")
        return cls(host, int(port), key)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}/{self.key}"
