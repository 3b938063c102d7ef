//! Where the server listens, to whom, and how long things may take; the table names each of these rows.

use super::HOUR;
use crate::config::setting::{Kind, Setting, Unit, setting};
use std::time::Duration;

pub(super) const HOST: Setting = setting(
    "server.host",
    "host",
    &["CROSSGATE_HOST", "HOST"],
    Kind::Host,
    "0.0.0.0",
    "The address on which HTTP and gRPC listen.",
);

pub(super) const PORT: Setting = setting(
    "server.port",
    "port",
    &["CROSSGATE_PORT", "PORT"],
    Kind::Port,
    "8000",
    "The port of HTTP; 0 takes a free one and prints it.",
)
.short('p');

pub(super) const GRPC_PORT: Setting = setting(
    "server.grpc_port",
    "grpc-port",
    &["CROSSGATE_GRPC_PORT"],
    Kind::Port,
    "50051",
    "The port of gRPC; 0 takes a free one and prints it.",
);

pub(super) const ADMIN_HOST: Setting = setting(
    "server.admin_host",
    "admin-host",
    &["CROSSGATE_ADMIN_HOST"],
    Kind::Host,
    "127.0.0.1",
    "The address on which admin listens; whoever reaches it has the server load code, so that any other than \
     loopback needs an admin key.",
);

pub(super) const ADMIN_PORT: Setting = setting(
    "server.admin_port",
    "admin-port",
    &["CROSSGATE_ADMIN_PORT"],
    Kind::Port,
    "9001",
    "The port of admin; 0 takes a free one and prints it.",
);

pub(super) const ADMIN_SOCKET: Setting = setting(
    "server.admin_socket",
    "admin-socket",
    &["CROSSGATE_ADMIN_SOCKET"],
    Kind::Path,
    "",
    "The Unix socket on which admin listens instead of admin_host and admin_port; only the server's own user \
     can connect.",
);

pub(super) const ADMIN_KEY: Setting = setting(
    "server.admin_key",
    "admin-key",
    &["CROSSGATE_ADMIN_KEY"],
    Kind::Secret,
    "",
    "What every call of admin must show, as `Authorization: Bearer KEY`; never shown here; unset: nothing.",
)
.value_name("KEY");

pub(super) const ADMIN_KEY_FILE: Setting = setting(
    "server.admin_key_file",
    "admin-key-file",
    &["CROSSGATE_ADMIN_KEY_FILE"],
    Kind::Path,
    "",
    "A file with the admin key, such as a secret of Docker or Kubernetes; read once, at the start.",
)
.value_name("FILE");

pub(super) const API_KEYS: Setting = setting(
    "server.api_keys",
    "api-key",
    &["CROSSGATE_API_KEY"],
    Kind::Keys,
    "",
    "What every call but probes and documentation must show over HTTP and gRPC, as `Authorization: Bearer KEY`: any \
     of these; the NAME stands in log and metrics, and limits may follow the KEY as in api_key_file; never shown \
     here; unset: nothing.",
)
.also(&["api-keys"]);

pub(super) const API_KEY_FILE: Setting = setting(
    "server.api_key_file",
    "api-key-file",
    &["CROSSGATE_API_KEY_FILE"],
    Kind::Path,
    "",
    "A file with more of them, one in a line: `NAME=KEY rate=50 burst=100 documents_per_minute=6000 \
     documents_per_day=1000000`, the limits where they differ from `keys`; `#` begins a comment; read again when \
     it changes.",
)
.value_name("FILE");

pub(super) const SOCKET: Setting = setting(
    "server.socket",
    "socket",
    &["CROSSGATE_SOCKET"],
    Kind::Path,
    "",
    "A Unix socket on which HTTP and gRPC listen beside their ports, without TLS; the server's user and group \
     can connect.",
);

pub(super) const TLS_CERT: Setting = setting(
    "server.tls_cert",
    "tls-cert",
    &["CROSSGATE_TLS_CERT"],
    Kind::Path,
    "",
    "A file with a certificate in PEM, and those that vouch for it: HTTP and gRPC then listen by TLS alone; \
     read again when it changes; unset: no TLS.",
)
.value_name("FILE");

pub(super) const TLS_KEY: Setting = setting(
    "server.tls_key",
    "tls-key",
    &["CROSSGATE_TLS_KEY"],
    Kind::Path,
    "",
    "A file with the private key of tls_cert in PEM; read again when it changes.",
)
.value_name("FILE");

pub(super) const CORS_ORIGINS: Setting = setting(
    "server.cors_origins",
    "cors-origins",
    &["CROSSGATE_CORS_ORIGINS"],
    Kind::List { unit: "origins" },
    "*",
    "The pages that may ask from a browser, by their origins such as https://app.example; *: any, none: no page; never those of admin.",
)
.value_name("ORIGIN,...");

pub(super) const REQUEST_TIMEOUT: Setting = setting(
    "server.request_timeout",
    "request-timeout",
    &["CROSSGATE_REQUEST_TIMEOUT"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::from_millis(1),
        max: HOUR,
    },
    "10s",
    "How long a request may take if it names no deadline of its own.",
);

pub(super) const DRAIN_TIMEOUT: Setting = setting(
    "server.drain_timeout",
    "drain-timeout",
    &["CROSSGATE_DRAIN_TIMEOUT"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::ZERO,
        max: HOUR,
    },
    "30s",
    "How long requests in flight may take after the server was told to stop.",
);

pub(super) const VOYAGE: Setting = setting(
    "server.voyage",
    "voyage",
    &["CROSSGATE_VOYAGE"],
    Kind::Switch,
    "false",
    "Whether /v1/rerank answers bodies with `documents` as Voyage does; its clients' bodies look like Cohere's.",
);
