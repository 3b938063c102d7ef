//! The log.

use super::super::setting::{Kind, Setting, setting};

pub(super) const LEVEL: Setting = setting(
    "log.level",
    "log-level",
    &["CROSSGATE_LOG_LEVEL", "RUST_LOG"],
    Kind::LogFilter,
    "info",
    "What is logged: off, error, warn, info, debug, trace, or directives such as \
     info,gateway=debug.",
);

pub(super) const FORMAT: Setting = setting(
    "log.format",
    "log-format",
    &["CROSSGATE_LOG_FORMAT"],
    Kind::Choice(&["text", "json"]),
    "text",
    "How a line of the log is written: text or json.",
);
