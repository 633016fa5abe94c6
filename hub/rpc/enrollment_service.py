"""EnrollmentService."""

import grpc

from hub.enrollment import Enrollment
from hub.rpc.bridge import Bridge
from hub.rpc.callers import Callers
from sendense.v1 import enrollment_pb2, enrollment_pb2_grpc


class EnrollmentService(enrollment_pb2_grpc.EnrollmentServiceServicer):
    """Unpack, call, pack."""

    def __init__(self, enrollment: Enrollment, bridge: Bridge) -> None:
        self._enrollment = enrollment
        self._bridge = bridge

    def Enroll(
        self, request: enrollment_pb2.EnrollRequest, context: grpc.ServicerContext
    ) -> enrollment_pb2.EnrollResponse:
        invitation_id = Callers.invitation(context)
        enrolled = self._bridge(self._enrollment.enroll(invitation_id, request.certificate_signing_request))
        return enrollment_pb2.EnrollResponse(
            agent_id=enrolled.agent_id,
            certificate=enrolled.certificate.decode(),
            ca_certificate=enrolled.ca_certificate.decode(),
        )
