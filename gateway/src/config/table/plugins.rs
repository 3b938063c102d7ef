//! Settings of plugins.

use super::super::setting::{Kind, Setting, Unit, setting};
use std::time::Duration;

pub(super) const DIR: Setting = setting(
    "plugins.dir",
    "plugin-dir",
    &["CROSSGATE_PLUGIN_DIR"],
    Kind::List { unit: "folders" },
    "",
    "Folders with plugins; unset: the folder of the program.",
)
.value_name("FOLDER,...");
pub(super) const IMAGES_MAX: Setting = setting(
    "plugins.images_max",
    "plugin-images-max",
    &["CROSSGATE_PLUGIN_IMAGES_MAX"],
    Kind::Count {
        unit: "images",
        min: 1,
        max: 4_096,
    },
    "64",
    "Plugin images in one process. An image stays mapped until the process ends, also after a swap.",
);
pub(super) const PROBE_TIMEOUT: Setting = setting(
    "plugins.probe_timeout",
    "plugin-probe-timeout",
    &["CROSSGATE_PLUGIN_PROBE_TIMEOUT"],
    Kind::Time {
        unit: Unit::Seconds,
        min: Duration::from_millis(100),
        max: Duration::from_secs(3_600),
    },
    "120s",
    "How long a plugin may take, in a process of its own, to open a model and score rows before it is swapped to.",
);
pub(super) const PROBE_MEMORY_MAX: Setting = setting(
    "plugins.probe_memory_max",
    "plugin-probe-memory-max",
    &["CROSSGATE_PLUGIN_PROBE_MEMORY_MAX"],
    Kind::Bytes {
        min: 64 << 20,
        max: 1 << 50,
    },
    "",
    "Memory that a plugin may take while it is tried out; unset: what the machine has available then.",
);
pub(super) const PROBER: Setting = setting(
    "plugins.prober",
    "plugin-prober",
    &["CROSSGATE_PLUGIN_PROBER"],
    Kind::Path,
    "",
    "The program whose command `probe` tries plugins out; unset: this one.",
)
.value_name("FILE");
pub(super) const SHA256: Setting = setting(
    "plugins.sha256",
    "plugin-sha256",
    &["CROSSGATE_PLUGIN_SHA256"],
    Kind::List { unit: "hashes" },
    "",
    "SHA-256 of the plugin files that may be loaded, in hexadecimal; unset: any in the folders.",
)
.value_name("HASH,...");
pub(super) const WATCH: Setting = setting(
    "plugins.watch",
    "watch-plugins",
    &["CROSSGATE_WATCH_PLUGINS"],
    Kind::Switch,
    "false",
    "Swap to plugin files that arrive in the folders: each model to a new file of the plugin that serves it, once the file has \
     been left alone for 2 s.",
);
