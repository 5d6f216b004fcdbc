"""Self-signed certificates with any period of validity."""

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.support.needs import needs

_CA = """
[ca]
default_ca = it
[it]
database = {0}/index.txt
new_certs_dir = {0}
rand_serial = yes
default_md = sha256
policy = any
x509_extensions = extensions
[any]
commonName = supplied
[extensions]
subjectAltName = DNS:localhost, IP:127.0.0.1
"""


def certificate(directory: Path, *, days: float = 30.0) -> tuple[Path, Path]:
    """Make a certificate for localhost that ends so many days from now (negative: ago), and its key; PEM both."""
    directory.mkdir(parents=True, exist_ok=True)
    key, request, cert = (directory / name for name in ("key.pem", "request.pem", "cert.pem"))
    (directory / "ca.cnf").write_text(_CA.format(directory))
    (directory / "index.txt").touch()
    end = datetime.now(UTC) + timedelta(days=days)
    begin = min(end, datetime.now(UTC)) - timedelta(days=1)
    _openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
        *("-subj", "/CN=localhost", "-keyout", key, "-out", request),
    )
    _openssl(
        *("ca", "-batch", "-selfsign", "-notext", "-config", directory / "ca.cnf", "-keyfile", key),
        *("-startdate", f"{begin:%Y%m%d%H%M%SZ}", "-enddate", f"{end:%Y%m%d%H%M%SZ}", "-in", request, "-out", cert),
    )
    return cert, key


def _openssl(*arguments: str | Path) -> None:
    openssl = needs("openssl", "apt-get install openssl")
    subprocess.run([openssl, *arguments], check=True, capture_output=True)
