//! Which plugins there are, and whether the configuration asks for one of them.

use super::StartError;
use crate::config::{Config, ConfigError};
use crate::edge::PluginRow;
use crate::host::{Host, ImageBounds, Listing, PluginFile, Prober};
use crate::model::hub;
use std::collections::BTreeSet;
use std::path::PathBuf;

/// The plugins that a configuration leads to, for `crossgate plugins`.
///
/// # Errors
/// When what was named as a folder of plugins is none, or there is no place for copies of them.
pub fn plugins(
    config: &Config,
    hub: &hub::Settings,
) -> Result<(Vec<PathBuf>, Vec<PluginFile>), StartError> {
    check_plugin_dirs(config).map_err(StartError::Config)?;
    let host = scan(config, hub)?;
    Ok((host.dirs().to_vec(), host.files()))
}

/// A folder that is not there holds no plugin, and would be missed where one is searched for.
pub(super) fn check_plugin_dirs(config: &Config) -> Result<(), ConfigError> {
    let is_wrong = |dir: &&PathBuf| !dir.is_dir();
    match config.plugins().dirs.iter().find(is_wrong) {
        Some(dir) if dir.exists() => {
            let why = format!("{} is a file; expected a folder", dir.display());
            Err(config.refuse("plugins.dir", why))
        }
        Some(dir) => {
            let why = format!("there is no folder {}", dir.display());
            Err(config.refuse("plugins.dir", why))
        }
        None => Ok(()),
    }
}

/// The plugins in the folders of the configuration.
///
/// # Errors
/// That there is no place for copies of them.
pub(super) fn scan(config: &Config, hub: &hub::Settings) -> Result<Host, StartError> {
    let settings = config.plugins();
    let bounds = ImageBounds {
        images_max: settings.images_max,
        allowed: settings.sha256.clone(),
    };
    let prober = Prober {
        program: settings.prober.clone().unwrap_or_else(this_program),
        timeout: settings.probe_timeout,
        memory_max: settings.probe_memory_max,
    };
    let images_dir = hub.own_dir().join("plugins");
    let scan = |dirs: &[PathBuf], listing| {
        Host::scan(dirs, listing, &images_dir, bounds, prober).map_err(StartError::Other)
    };
    if !settings.dirs.is_empty() {
        return scan(&settings.dirs, Listing::All);
    }
    // Beside the program, links resolved: where `make` and the packages put them.
    let program = std::env::current_exe().and_then(std::fs::canonicalize);
    let dir = program
        .ok()
        .and_then(|path| Some(path.parent()?.to_owned()));
    scan(&Vec::from_iter(dir), Listing::Named)
}

/// Refuses names that no plugin knows before a port opens. What a plugin says of the model comes later.
pub(super) fn check_backend(config: &Config, host: &Host) -> Result<(), StartError> {
    for PluginFile { found, .. } in host.files() {
        if let Err(why) = found {
            tracing::warn!("a plugin is refused: {why}");
        }
    }
    let (models, refuse) = (config.models(), |key, why: String| {
        Err(StartError::Config(config.refuse(key, why)))
    });
    let backend = models.backend.as_deref();
    let plugins = host.named(backend);
    let named: Vec<_> = plugins.iter().map(|plugin| plugin.card()).collect();
    if let (Some(backend), []) = (backend, &named[..]) {
        let what = format!("there is no plugin {backend:?}");
        return refuse("model.backend", host.no_plugin(&what));
    }
    let device = models.device.split(':').next().unwrap_or_default();
    let devices: BTreeSet<_> = named.iter().flat_map(|card| &card.devices).collect();
    let has_device = devices.iter().any(|known| *known == device);
    // Without any plugin the model's own refusal says more.
    if device != "auto" && !devices.is_empty() && !has_device {
        let known: Vec<_> = devices.into_iter().map(String::as_str).collect();
        let known = known.join(", ");
        return refuse(
            "model.device",
            format!("no plugin computes on it; expected auto or one of {known}"),
        );
    }
    let mut dtypes = named.iter().flat_map(|card| &card.dtypes).peekable();
    let is_known = models.dtype == "auto" || dtypes.peek().is_none();
    if !is_known && !dtypes.clone().any(|dtype| *dtype == models.dtype) {
        let known: BTreeSet<_> = dtypes.map(String::as_str).collect();
        let known = Vec::from_iter(known).join(", ");
        return refuse("model.dtype", format!("expected auto or one of {known}"));
    }
    Ok(())
}

/// This program, also after another one was put in its place.
fn this_program() -> PathBuf {
    let own = PathBuf::from("/proc/self/exe");
    if own.exists() {
        return own;
    }
    std::env::current_exe().unwrap_or(own)
}

/// A library file as operators see it.
pub(super) fn row(file: &PluginFile) -> PluginRow {
    let card = file
        .found
        .as_ref()
        .map(|plugin| plugin.card().clone())
        .unwrap_or_default();
    PluginRow {
        path: file.path.display().to_string(),
        sha256: file.sha256.clone(),
        name: card.name,
        version: card.version,
        devices: card.devices,
        dtypes: card.dtypes,
        architectures: card.architectures,
        refused: file.found.as_ref().err().cloned(),
    }
}
