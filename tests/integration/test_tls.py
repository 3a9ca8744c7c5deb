"""TLS between a client and a coordinator, with certificates of an authority of the test's own."""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prometheus_client import REGISTRY

from rookery.local.ports import free_port
from rookery.transport import _with_port
from rookery_shared.rpc.tls import Certificate
from tests.servers.coordinators import start_coordinators

DAY = datetime.timedelta(days=1)


@dataclass(frozen=True)
class Authority:
    """Signs certificates for localhost."""

    folder: Path
    name: str

    @property
    def roots(self) -> Path:
        return self.folder / f"{self.name}.crt"

    def sign(self, chain: Path, key: Path) -> None:
        """A new certificate and its key, into two files, and the authority's own into `roots`."""
        ours, theirs = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        root = self._certificate(self.name, ours.public_key(), ours, names=[], is_authority=True)
        signed = self._certificate("localhost", theirs.public_key(), ours, names=["localhost"], is_authority=False)
        self.roots.write_bytes(root.public_bytes(serialization.Encoding.PEM))
        chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        key.write_bytes(
            theirs.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )

    def _certificate(
        self,
        subject: str,
        key: ec.EllipticCurvePublicKey,
        by: ec.EllipticCurvePrivateKey,
        *,
        names: list[str],
        is_authority: bool,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, subject)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, self.name)]))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - DAY)
            .not_valid_after(now + DAY)
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(n) for n in names]), critical=False
            )
        return builder.sign(by, hashes.SHA256())


@dataclass(frozen=True)
class SecureServer:
    port: int
    chain: Path
    key: Path
    authority: Authority


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SecureServer]:
    authority, port = Authority(tmp_path, "authority"), free_port()
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    authority.sign(chain, key)
    told = {
        "ROOKERY_TLS_ADDRESS": f"127.0.0.1:{port}",
        "ROOKERY_TLS_CERTIFICATE": str(chain),
        "ROOKERY_TLS_KEY": str(key),
    }
    with start_coordinators(1, tmp_path, **told):
        yield SecureServer(port=port, chain=chain, key=key, authority=authority)


def list_models(port: int, roots: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: gRPC reads its roots once."""
    argv = [sys.executable, "-m", "rookery.cli.app", "models", "list", "--server", f"https://localhost:{port}"]
    told = {**os.environ, "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(roots)}
    return subprocess.run(argv, env=told, capture_output=True, text=True, timeout=60, check=False)


def test_who_trusts_the_authority_is_answered(server: SecureServer) -> None:
    done = list_models(server.port, server.authority.roots)
    assert done.returncode == 0, done.stderr
    assert "profiles/teacher" in done.stdout


def test_a_renewed_certificate_is_shown_without_a_restart(server: SecureServer, tmp_path: Path) -> None:
    other = Authority(tmp_path, "other")
    other.sign(server.chain, server.key)
    assert list_models(server.port, other.roots).returncode == 0
    assert list_models(server.port, server.authority.roots).returncode == 1, "the old one is gone"


def test_who_does_not_trust_it_is_told_why(server: SecureServer, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "stranger")
    stranger.sign(tmp_path / "unused.crt", tmp_path / "unused.key")
    done = list_models(server.port, stranger.roots)
    assert done.returncode == 1
    assert "UNAVAILABLE" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_half_written_renewal_leaves_the_old_one(server: SecureServer) -> None:
    server.chain.write_text("-----BEGIN CERTIFICATE-----\n")
    assert list_models(server.port, server.authority.roots).returncode == 0


def test_its_end_is_told(tmp_path: Path) -> None:
    chain, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    Authority(tmp_path, "authority").sign(chain, key)
    Certificate(chain, key).credentials()
    end = REGISTRY.get_sample_value("rookery_certificate_end_timestamp_seconds")
    assert end == pytest.approx(time.time() + DAY.total_seconds(), abs=60)


def test_a_server_without_its_certificate_says_so(tmp_path: Path) -> None:
    told = {
        **os.environ,
        "ROOKERY_DATABASE_URL": f"sqlite:///{tmp_path}/rookery.db",
        "ROOKERY_STORE_URL": f"file://{tmp_path}/objects",
        "ROOKERY_CACHE_FOLDER": str(tmp_path / "cache"),
        "ROOKERY_ADDRESS": f"127.0.0.1:{free_port()}",
        "ROOKERY_JOB_ADDRESS": f"127.0.0.1:{free_port()}",
        "ROOKERY_TLS_ADDRESS": f"127.0.0.1:{free_port()}",
        "ROOKERY_TLS_CERTIFICATE": str(tmp_path / "none.crt"),
    }
    argv = [sys.executable, "-m", "rookery_coordinator", "serve"]
    subprocess.run([*argv[:-1], "migrate"], env=told, check=True, capture_output=True)
    done = subprocess.run(argv, env=told, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "NO_CERTIFICATE" in done.stderr
    assert "none.crt" in done.stderr


@pytest.mark.parametrize(
    ("address", "whole"),
    [("host", "host:443"), ("host:7443", "host:7443"), ("[::1]", "[::1]:443"), ("[::1]:7443", "[::1]:7443")],
)
def test_the_port_of_https_is_the_usual(address: str, whole: str) -> None:
    assert _with_port(address) == whole
