"""Proto <-> domain. `encode_x(record)` makes the message, `decode_x(message, field)` the record. What only people read has no way back.

Strict on the way in: a missing part, a malformed name, an unknown word or a number out of range raises `InvalidInput` with the
path of the field ("variant.model"), the value and the limit. What is decoded satisfies the domain's rules.
"""

from tessera.wire._common import (
    Endpoint,
    decode_endpoint,
    decode_generation,
    decode_objectives,
    decode_stage_times,
    decode_start_path,
    decode_term,
    decode_variant_key,
    encode_endpoint,
    encode_objectives,
    encode_signature,
    encode_stage_times,
    encode_term,
    encode_variant_key,
)
from tessera.wire._profile import (
    decode_latency_row,
    decode_load_cost,
    encode_latency_row,
    encode_load_cost,
    encode_profile,
)
from tessera.wire._transformation import decode_observation, encode_meta_costs, encode_observation
from tessera.wire._variant import decode_agreement, decode_blob, encode_agreement, encode_blob, encode_variant_info

__all__ = [
    "Endpoint",
    "decode_agreement",
    "decode_blob",
    "decode_endpoint",
    "decode_generation",
    "decode_latency_row",
    "decode_load_cost",
    "decode_objectives",
    "decode_observation",
    "decode_stage_times",
    "decode_start_path",
    "decode_term",
    "decode_variant_key",
    "encode_agreement",
    "encode_blob",
    "encode_endpoint",
    "encode_latency_row",
    "encode_load_cost",
    "encode_meta_costs",
    "encode_objectives",
    "encode_observation",
    "encode_profile",
    "encode_signature",
    "encode_stage_times",
    "encode_term",
    "encode_variant_info",
    "encode_variant_key",
]
