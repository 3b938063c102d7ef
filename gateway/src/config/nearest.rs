//! Which name somebody may have meant who wrote one that is none.

use super::setting::Setting;
use super::table::SETTINGS;

/// The key that somebody may have meant: another name of a setting, or the nearest spelling.
#[must_use]
pub(super) fn nearest(unknown: &str) -> Option<&'static str> {
    let spell = |name: &str| name.to_ascii_lowercase().replace('-', "_");
    let meant = spell(unknown);
    let last = |key: &'static str| key.rsplit('.').next().unwrap_or(key);
    let is_name_of = |setting: &Setting| {
        let names = setting
            .also
            .iter()
            .chain(setting.off)
            .chain(setting.env)
            .chain([&setting.flag]);
        names.map(|name| spell(name)).any(|name| name == meant) || last(setting.key) == meant
    };
    if let Some(setting) = SETTINGS.iter().find(|setting| is_name_of(setting)) {
        return Some(setting.key);
    }
    // Jaro's similarity, 0 to 1: below 0.8 the spelling has little in common.
    let similar = |key| strsim::jaro(key, &meant);
    let best = SETTINGS.iter().map(|setting| setting.key);
    best.max_by(|a, b| similar(a).total_cmp(&similar(b)))
        .filter(|key| 0.8 <= similar(key))
}

/// The variable that somebody may have meant who set one that ends in `rest`.
#[must_use]
pub(super) fn nearest_env(rest: &str) -> Option<&'static str> {
    let spell = |text: &str| text.to_ascii_lowercase().replace(['-', '.'], "_");
    let meant = spell(rest);
    let variables = SETTINGS
        .iter()
        .filter_map(|setting| Some((setting, *setting.env.first()?)));
    let similar = |setting: &Setting, variable: &str| {
        let variable = spell(variable.trim_start_matches("CROSSGATE_"));
        let names = [variable, spell(setting.key), spell(setting.flag)];
        let ratios = names.iter().map(|name| strsim::jaro(name, &meant));
        ratios.fold(0.0, f64::max)
    };
    let rated = variables.map(|(setting, variable)| (similar(setting, variable), variable));
    rated
        .filter(|(ratio, _)| 0.8 <= *ratio)
        .max_by(|(a, _), (b, _)| a.total_cmp(b))
        .map(|(_, variable)| variable)
}
