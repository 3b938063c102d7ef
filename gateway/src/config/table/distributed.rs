//! What several servers do together; the table names each of these rows.

use super::{GIB, KIB};
use crate::config::setting::{Kind, Setting, Unit, setting};
use std::time::Duration;

/// Requests, and requests per second, of all servers together.
const COUNT_MAX: u64 = 1_000_000;

pub(super) const ENABLED: Setting = setting(
    "distributed.enabled",
    "distributed",
    &["CROSSGATE_DISTRIBUTED", "ENABLE_DISTRIBUTED"],
    Kind::Switch,
    "false",
    "Whether servers share what they know through Redis or Valkey; without an answer from it each serves alone.",
);

pub(super) const REDIS_URL: Setting = setting(
    "distributed.redis_url",
    "redis-url",
    &["CROSSGATE_REDIS_URL", "REDIS_URL"],
    Kind::RedisUrl,
    "redis://127.0.0.1:6379",
    "The Redis or Valkey of all servers: `redis://:PASSWORD@HOST:PORT/DATABASE` or `unix:///PATH`.",
);

pub(super) const PREFIX: Setting = setting(
    "distributed.prefix",
    "distributed-prefix",
    &["CROSSGATE_DISTRIBUTED_PREFIX"],
    Kind::Word,
    "crossgate",
    "How every key in Redis begins; servers with the same one share.",
);

pub(super) const CONNECT_TIMEOUT: Setting = setting(
    "distributed.connect_timeout",
    "redis-connect-timeout",
    &["CROSSGATE_REDIS_CONNECT_TIMEOUT"],
    Kind::Time {
        unit: Unit::Milliseconds,
        min: Duration::from_millis(1),
        max: Duration::from_secs(60),
    },
    "500ms",
    "How long a connection to Redis, or anything else that no request waits for, may take.",
);

pub(super) const OPERATION_TIMEOUT: Setting = setting(
    "distributed.operation_timeout",
    "redis-operation-timeout",
    &["CROSSGATE_REDIS_OPERATION_TIMEOUT"],
    Kind::Time {
        unit: Unit::Milliseconds,
        min: Duration::from_millis(1),
        max: Duration::from_secs(1),
    },
    "20ms",
    "How long a request waits for an answer of Redis before it goes on without.",
);

pub(super) const TTL: Setting = setting(
    "distributed.ttl",
    "distributed-ttl",
    &["CROSSGATE_DISTRIBUTED_TTL"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::from_secs(1),
        max: Duration::from_secs(30 * 24 * 3_600),
    },
    "1h",
    "How long Redis keeps a value at most; each is kept for four fifths of it or more.",
);

pub(super) const WRITE_BYTES_MAX: Setting = setting(
    "distributed.write_bytes_max",
    "distributed-write-bytes-max",
    &["CROSSGATE_DISTRIBUTED_WRITE_BYTES_MAX"],
    Kind::Bytes { min: KIB, max: GIB },
    "16MiB",
    "The most bytes that wait to be written to Redis; what does not fit is not written.",
);

pub(super) const REQUESTS_MAX: Setting = setting(
    "distributed.requests_max",
    "distributed-requests-max",
    &["CROSSGATE_DISTRIBUTED_REQUESTS_MAX"],
    Kind::Count {
        unit: "requests",
        min: 1,
        max: COUNT_MAX,
    },
    "",
    "The most requests that all servers together compute at once; unset: only each server's own bound.",
);

pub(super) const RATE_MAX: Setting = setting(
    "distributed.rate_max",
    "distributed-rate-max",
    &["CROSSGATE_DISTRIBUTED_RATE_MAX"],
    Kind::Count {
        unit: "requests per second",
        min: 1,
        max: COUNT_MAX,
    },
    "",
    "The most requests per second of one client to all servers together; unset: any number.",
);

pub(super) const CLIENT_HEADER: Setting = setting(
    "distributed.client_header",
    "distributed-client-header",
    &["CROSSGATE_DISTRIBUTED_CLIENT_HEADER"],
    Kind::Word,
    "",
    "The header that names the client for rate_max, such as `x-real-ip` behind a proxy that sets it, or \
     `authorization`; unset: the connection's address, which behind a proxy is the proxy's. Who shows an API \
     key is named by that.",
)
.value_name("HEADER");

pub(super) const RATE_BURST: Setting = setting(
    "distributed.rate_burst",
    "distributed-rate-burst",
    &["CROSSGATE_DISTRIBUTED_RATE_BURST"],
    Kind::Count {
        unit: "requests",
        min: 1,
        max: COUNT_MAX,
    },
    "",
    "Requests that a client who has rested may send at once; unset: those of one second.",
);
