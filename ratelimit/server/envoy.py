"""What Envoy asks over gRPC, answered by whichever configuration holds."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping

from ratelimit.envoy.grpc import Call, GrpcError, Method, Status
from ratelimit.envoy.service import SERVICE
from ratelimit.server.sidecar import Sidecar


def grpc_methods(sidecar: Sidecar) -> Mapping[bytes, Method]:
    """Return the methods of the rate limit service, by their paths."""

    def should_rate_limit(message: bytes, call: Call) -> bytes | Awaitable[bytes]:
        version = sidecar.current
        service = version.runtime.envoy
        if service is None:
            raise GrpcError(Status.FAILED_PRECONDITION, "there are no rules: envoy_config is off")
        answer = service.should_rate_limit(message, call)
        return answer if isinstance(answer, bytes) else version.finish(answer)

    return {f"/{SERVICE}/ShouldRateLimit".encode(): should_rate_limit}
