"""Who calls on the agents' port, as the certificate proves it."""

from collections.abc import Iterable, Mapping

import grpc

from hub.authority import serial_of
from hub.enrollment import Enrollment
from hub.rpc.bridge import Bridge
from shared.errors import NotAuthenticated
from shared.join import AGENT_URI, INVITATION_URI


class Callers:
    """Reads identities out of client certificates."""

    def __init__(self, enrollment: Enrollment, bridge: Bridge) -> None:
        self._enrollment = enrollment
        self._bridge = bridge

    def agent(self, context: grpc.ServicerContext) -> str:
        """The calling agent's ID; raises NotAuthenticated for an invitation, or an unknown or revoked agent."""
        agent_id = _identity(context, AGENT_URI)
        (certificate,) = _proven(context)["x509_pem_cert"]
        return self._bridge(self._enrollment.known(agent_id, serial_of(certificate))).id

    @staticmethod
    def invitation(context: grpc.ServicerContext) -> str:
        """The ID of the invitation that calls; raises NotAuthenticated for anything else."""
        return _identity(context, INVITATION_URI)


def _identity(context: grpc.ServicerContext, kind: str) -> str:
    for name in _proven(context).get("x509_subject_alternative_name", []):
        uri = name.decode(errors="replace")
        if uri.startswith(kind):
            return uri.removeprefix(kind)
    raise NotAuthenticated("the client certificate is not one for this call")


def _proven(context: grpc.ServicerContext) -> Mapping[str, Iterable[bytes]]:
    """What TLS has proven of the caller."""
    return context.auth_context()  # type: ignore[return-value]  # the stubs say str
