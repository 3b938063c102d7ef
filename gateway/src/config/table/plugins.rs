//! Settings of plugins.

use super::super::setting::{Kind, Setting, setting};

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
pub(super) const SHA256: Setting = setting(
    "plugins.sha256",
    "plugin-sha256",
    &["CROSSGATE_PLUGIN_SHA256"],
    Kind::List { unit: "hashes" },
    "",
    "SHA-256 of the plugin files that may be loaded, in hexadecimal; unset: any in the folders.",
)
.value_name("HASH,...");
