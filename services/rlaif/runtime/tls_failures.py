"""What gRPC says when TLS fails, in words that name the fix."""

from __future__ import annotations

import re

_SENTENCES = {
    r"CERTIFICATE_VERIFY_FAILED: certificate has expired": "its certificate has expired",
    r"CERTIFICATE_VERIFY_FAILED: certificate is not yet valid": "its certificate is not valid yet",
    r"CERTIFICATE_VERIFY_FAILED": "its certificate is signed by none of the authorities in tls_ca_path",
    r"Hostname Verification Check failed": "its certificate is for another host; tls_server_name says which to expect",
    r"WRONG_VERSION_NUMBER": "it speaks no TLS there, and tls_ca_path asks for it",
    # A server that refuses a client tells it nothing of why.
    r"backends failing; last error: .*Socket closed": "it closes every connection at once; it may speak TLS only "
    "(tls_ca_path) or take only clients with a certificate of an authority it knows (tls_certificate_path)",
}
"""By what gRPC's message matches, special before general."""


def explain_tls_failure(message: str) -> str | None:
    """Why a server could not be reached, where `message` says that TLS was the reason."""
    return next((sentence for pattern, sentence in _SENTENCES.items() if re.search(pattern, message)), None)
