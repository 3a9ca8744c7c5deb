"""A server's certificate, which may be renewed while it serves."""

from __future__ import annotations

import ssl
from pathlib import Path

import grpc
from cryptography import x509

from rookery_shared.errors import NoCertificate
from rookery_shared.log import get_logger
from rookery_shared.metrics import CERTIFICATE_END


class Certificate:
    """A chain and its private key, in two files of PEM. They are read again when they have changed."""

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain, self._key = chain, key
        self._read: tuple[int, int] | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For a server. Raises NoCertificate."""
        return grpc.dynamic_ssl_server_credentials(self._load(), self._renewed)  # type: ignore[arg-type]  # None: as before

    def _load(self) -> grpc.ServerCertificateConfiguration:
        try:
            changed = self._changed()
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._chain, self._key)  # gRPC says nothing
            pair = (self._key.read_bytes(), self._chain.read_bytes())
            own = x509.load_pem_x509_certificate(pair[1])  # the chain's first
        except (OSError, ValueError, ssl.SSLError) as error:
            raise NoCertificate(f"{self._chain} and {self._key} are no certificate and its key: {error}") from error
        self._read = changed
        CERTIFICATE_END.set(own.not_valid_after_utc.timestamp())
        return grpc.ssl_server_certificate_configuration([pair])

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Asked for each connection. What cannot be read leaves the one that there is."""
        try:
            if self._changed() == self._read:
                return None
            return self._load()
        except (OSError, NoCertificate) as error:
            get_logger().warning("the certificate cannot be renewed", error=str(error))
            return None

    def _changed(self) -> tuple[int, int]:
        return self._chain.stat().st_mtime_ns, self._key.stat().st_mtime_ns
