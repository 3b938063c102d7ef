//! How much the bearer of a key may ask; the table names each of these rows.

use crate::config::keys::{DOCUMENTS_MAX, RATE_MAX as COUNT_MAX};
use crate::config::setting::{Kind, Setting, setting};

pub(super) const RATE_MAX: Setting = setting(
    "keys.rate_max",
    "key-rate-max",
    &["CROSSGATE_KEY_RATE_MAX"],
    Kind::Count {
        unit: "requests per second",
        min: 1,
        max: COUNT_MAX,
    },
    "",
    "The most requests per second of one API key that names no rate of its own: to this server, and with \
     distributed.enabled to all of them together; unset: any number.",
);

pub(super) const RATE_BURST: Setting = setting(
    "keys.rate_burst",
    "key-rate-burst",
    &["CROSSGATE_KEY_RATE_BURST"],
    Kind::Count {
        unit: "requests",
        min: 1,
        max: COUNT_MAX,
    },
    "",
    "Requests that an API key that has rested may send at once; unset: those of one second.",
);

pub(super) const DOCUMENTS_PER_MINUTE: Setting = setting(
    "keys.documents_per_minute",
    "key-documents-per-minute",
    &["CROSSGATE_KEY_DOCUMENTS_PER_MINUTE"],
    Kind::Count {
        unit: "documents",
        min: 1,
        max: DOCUMENTS_MAX,
    },
    "",
    "The documents per minute of one API key to this server; they come back evenly, and a request that begins \
     within them is answered whole; unset: any number.",
);

pub(super) const DOCUMENTS_PER_DAY: Setting = setting(
    "keys.documents_per_day",
    "key-documents-per-day",
    &["CROSSGATE_KEY_DOCUMENTS_PER_DAY"],
    Kind::Count {
        unit: "documents",
        min: 1,
        max: DOCUMENTS_MAX,
    },
    "",
    "The same per day; counted from the server's start.",
);
