//! What becomes of workers and generations that fail.

use super::super::setting::{Kind, Setting, Unit, setting};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3_600);

pub(super) const TIMEOUT: Setting = setting(
    "worker.timeout",
    "worker-timeout",
    &["CROSSGATE_WORKER_TIMEOUT", "WORKER_TIMEOUT"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::from_millis(1),
        max: HOUR,
    },
    "30s",
    "How long a worker may take for a batch. After that it counts as stuck: another one is started in its place, and its rows are tried again.",
);
pub(super) const RETRIES_MAX: Setting = setting(
    "worker.retries_max",
    "worker-retries-max",
    &["CROSSGATE_WORKER_RETRIES_MAX", "MAX_RETRIES"],
    Kind::Count {
        unit: "retries",
        min: 0,
        max: 16,
    },
    "2",
    "How often rows that a backend failed are tried again, by another worker, while there is time.",
)
.also(&["max-retries"]);
pub(super) const FAULTS_MAX: Setting = setting(
    "worker.faults_max",
    "worker-faults-max",
    &["CROSSGATE_WORKER_FAULTS_MAX"],
    Kind::Count {
        unit: "batches",
        min: 1,
        max: 1_000_000,
    },
    "10",
    "Batches that may fail within worker.faults_window. Beyond that, where it is half of all, what served before the last \
     swap serves again; without such the server is not ready until its scores come back.",
);
pub(super) const FAULTS_WINDOW: Setting = setting(
    "worker.faults_window",
    "worker-faults-window",
    &["CROSSGATE_WORKER_FAULTS_WINDOW"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::from_millis(100),
        max: HOUR,
    },
    "30s",
    "See worker.faults_max.",
);
