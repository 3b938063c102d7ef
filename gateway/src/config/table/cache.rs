//! What is kept of scores.

use super::super::setting::{Kind, Setting, Unit, setting};
use std::time::Duration;

const GIB: u64 = 1 << 30;
const YEAR: Duration = Duration::from_secs(366 * 86_400);

pub(super) const ENABLED: Setting = setting(
    "cache.enabled",
    "cache",
    &["CROSSGATE_CACHE", "ENABLE_PREDICTION_CACHE"],
    Kind::Switch,
    "true",
    "Whether scores are kept for pairs that come again.",
);

pub(super) const COALESCE: Setting = setting(
    "cache.coalesce",
    "coalesce",
    &["CROSSGATE_COALESCE"],
    Kind::Switch,
    "true",
    "Whether equal pairs that are asked for at the same time are computed once.",
);

pub(super) const BYTES_MAX: Setting = setting(
    "cache.bytes_max",
    "cache-bytes-max",
    &["CROSSGATE_CACHE_BYTES_MAX"],
    Kind::Bytes {
        min: 1 << 20,
        max: 1_024 * GIB,
    },
    "256MiB",
    "The memory that kept scores may take, about; a pair takes a third of a KiB.",
);

pub(super) const TTL: Setting = setting(
    "cache.ttl",
    "cache-ttl",
    &["CROSSGATE_CACHE_TTL", "CACHE_TTL_SECONDS"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::from_secs(1),
        max: YEAR,
    },
    "24h",
    "How long scores are kept; they do not age, so this only bounds how long they are known.",
);

pub(super) const CLEAR_INTERVAL: Setting = setting(
    "cache.clear_interval",
    "clear-cache-interval",
    &["CROSSGATE_CLEAR_CACHE_INTERVAL", "CLEAR_CACHE_INTERVAL"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::ZERO,
        max: YEAR,
    },
    "0s",
    "After how long everything that was kept is forgotten, again and again; 0: never.",
);
