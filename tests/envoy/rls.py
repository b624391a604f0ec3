"""The messages of Envoy's API as protobuf's own library has them, from their fields: what ours are held against.

`test_real_envoy.py` holds these fields against the descriptors that are inside of Envoy itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, duration_pb2, message_factory, wrappers_pb2

COMMON: Final = "envoy.extensions.common.ratelimit.v3"
SERVICE: Final = "envoy.service.ratelimit.v3"
UINT32: Final = "google.protobuf.UInt32Value"

# Of each message its fields: number, name, type; a `*` is repeated. Enums are numbers on the wire, as here.
MESSAGES: Final[dict[str, list[tuple[int, str, str]]]] = {
    f"{COMMON}.RateLimitDescriptor.Entry": [(1, "key", "string"), (2, "value", "string")],
    f"{COMMON}.RateLimitDescriptor.RateLimitOverride": [
        (1, "requests_per_unit", "uint32"), (2, "unit", "enum"), (3, "unit_multiplier", UINT32),
    ],
    f"{COMMON}.RateLimitDescriptor": [
        (1, "entries", f"*{COMMON}.RateLimitDescriptor.Entry"),
        (2, "limit", f"{COMMON}.RateLimitDescriptor.RateLimitOverride"),
        (3, "hits_addend", "google.protobuf.UInt64Value"), (4, "is_negative_hits", "bool"),
    ],
    f"{SERVICE}.RateLimitRequest": [
        (1, "domain", "string"), (2, "descriptors", f"*{COMMON}.RateLimitDescriptor"), (3, "hits_addend", "uint32"),
    ],
    f"{SERVICE}.RateLimitResponse.RateLimit": [
        (1, "requests_per_unit", "uint32"), (2, "unit", "enum"), (3, "name", "string"), (4, "unit_multiplier", UINT32),
    ],
    f"{SERVICE}.RateLimitResponse.DescriptorStatus": [
        (1, "code", "enum"), (2, "current_limit", f"{SERVICE}.RateLimitResponse.RateLimit"),
        (3, "limit_remaining", "uint32"), (4, "duration_until_reset", "google.protobuf.Duration"),
    ],
    "envoy.config.core.v3.HeaderValue": [(1, "key", "string"), (2, "value", "string")],
    f"{SERVICE}.RateLimitResponse": [
        (1, "overall_code", "enum"), (2, "statuses", f"*{SERVICE}.RateLimitResponse.DescriptorStatus"),
        (3, "response_headers_to_add", "*envoy.config.core.v3.HeaderValue"),
    ],
}  # fmt: skip
TYPES: Final = {"uint32": 13, "string": 9, "bool": 8, "enum": 5}
"""Of `FieldDescriptorProto`; an enum's is that of an `int32`, which is the same on the wire."""
MESSAGE_TYPE: Final = 11


def _classes(types: Mapping[str, int] = TYPES) -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    file = descriptor_pb2.FileDescriptorProto(name="rls.proto", package="rls", syntax="proto3")
    for known in (wrappers_pb2, duration_pb2):
        pool.AddSerializedFile(known.DESCRIPTOR.serialized_pb)
        file.dependency.append(known.DESCRIPTOR.name)
    for name, fields in MESSAGES.items():
        message = file.message_type.add(name=_flat(name))
        for number, field, kind in fields:
            bare = kind.removeprefix("*")
            added = message.field.add(number=number, name=field, label=3 if kind.startswith("*") else 1)
            added.type = types.get(bare, MESSAGE_TYPE)
            if added.type == MESSAGE_TYPE:
                added.type_name = f".{bare}" if bare.startswith("google.") else f".rls.{_flat(bare)}"
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"rls.{_flat(name)}")) for name in MESSAGES
    }


def _flat(name: str) -> str:
    return name.replace(".", "_")


_CLASSES: Final = _classes()
RateLimitRequest: Final[Any] = _CLASSES[f"{SERVICE}.RateLimitRequest"]
RateLimitResponse: Final[Any] = _CLASSES[f"{SERVICE}.RateLimitResponse"]
RawRateLimitRequest: Final[Any] = _classes({**TYPES, "string": 12})[f"{SERVICE}.RateLimitRequest"]
"""With texts as bytes, of which protobuf does not ask that they be UTF-8."""


def request(domain: str, *descriptors: dict[str, str], hits: int = 0) -> bytes:
    """A request on the wire, of descriptors of entries alone."""
    found = [{"entries": [{"key": key, "value": value} for key, value in each.items()]} for each in descriptors]
    wire: bytes = RateLimitRequest(domain=domain, descriptors=found, hits_addend=hits).SerializeToString()
    return wire
