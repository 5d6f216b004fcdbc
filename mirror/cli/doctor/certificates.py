"""Explains why a certificate is not trusted: who issued it, when it is valid, and for which names."""

import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any

from mirror.cli import raw_request as wire
from mirror.cli.findings import Finding
from mirror.common.units import format_duration

HOUR = 3600.0

_NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` does not define."""

_NOT_YET, _EXPIRED = 9, 10
"""OpenSSL's X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED."""

_WRONG_NAME = {62, 64}
"""OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH."""


def explained(
    refused: ssl.SSLCertVerificationError, shown: bytes, again: socket.socket, host: str, ahead: float | None
) -> Finding:
    """Say why a certificate was refused.

    `shown` is the certificate in DER, `again` another connection to the server, and `ahead` how many seconds our clock
    is ahead of the server's.
    """
    said = _read(shown, again, host)
    if refused.verify_code in {_NOT_YET, _EXPIRED}:
        return _of_time(refused.verify_code, said, host, ahead)
    if refused.verify_code in _WRONG_NAME:
        names = ", ".join(str(value) for _, value in said.get("subjectAltName", ()))[:300]
        advice = "use one of these names in upstream.url; or a proxy answers in upstream's place"
        return Finding("tls", False, f"the certificate is not {host}'s: it is for {names or 'no name'}", advice=advice)
    issuer = _name(said.get("issuer", ())) or "nobody who says a name"
    advice = (
        "name that authority's certificate (PEM) in upstream.ca_file; if upstream is DataRobot's cloud, a proxy on the "
        "way opens TLS: ask for its certificate"
    )
    return Finding(
        "tls", False, f"{host}'s certificate is from an authority that is not trusted: {issuer}", advice=advice
    )


def _of_time(code: int, said: Mapping[str, Any], host: str, ahead: float | None) -> Finding:
    when = f"is valid from {said.get('notBefore', '?')}" if code == _NOT_YET else f"ended {said.get('notAfter', '?')}"
    message = f"{host}'s certificate {when}"
    if ahead is not None and abs(ahead) > HOUR:
        clock = f"{format_duration(round(abs(ahead)))} {'ahead' if ahead > 0 else 'behind'}"
        return Finding("tls", False, f"{message}; but our clock is {clock}", advice="set the clock, and look again")
    advice = "whoever runs upstream (or a proxy that opens TLS) has to renew it; our clock is not to blame"
    if ahead is None:
        advice = "is our clock right (date -u)? if so, whoever runs upstream has to renew it"
    return Finding("tls", False, message, advice=advice)


def _read(shown: bytes, again: socket.socket, host: str) -> Mapping[str, Any]:
    """Parse a certificate, by one more handshake that trusts only it; empty when that fails."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    try:
        context.verify_flags = ssl.VerifyFlags(int(ssl.VERIFY_X509_PARTIAL_CHAIN) | _NO_CHECK_TIME)
        context.load_verify_locations(cadata=ssl.DER_cert_to_PEM_cert(shown))
        with wire.wrapped(again, context, host) as connection:
            return connection.getpeercert() or {}
    except (OSError, ValueError):
        again.close()
        return {}


def _name(parts: Iterable[Iterable[tuple[str, str]]]) -> str:
    """Return the parts of a distinguished name that people read."""
    flat = {kind: value for part in parts for kind, value in part}
    kinds = ("commonName", "organizationName", "countryName")
    return ", ".join(flat[kind] for kind in kinds if kind in flat)[:300]
