//! What older deployments set that is part of another setting here.

use super::raw::{Origin, Said};
use super::value::parse_switch;

/// Whether to compute by MLX, on Apple's chips.
pub(super) const USE_MLX: &str = "USE_MLX";
/// What it is part of.
pub(super) const DEVICE_KEY: &str = "model.device";

/// Flags that switched off what is not here, without their dashes, and what there is to say of each.
pub(crate) const FLAGS: [(&str, &str); 3] = [
    (
        "disable-flash-attention",
        "the plugin has one form of attention; another plugin is named by `model.backend`",
    ),
    (
        "disable-compile",
        "no model is compiled before it serves, but by plugins for Core ML; another plugin is named by `model.backend`",
    ),
    (
        "disable-better-transformer",
        "it is a part of PyTorch, which is not used; the plugin is named by `model.backend`",
    ),
];

/// The sentence for the log about one of [`FLAGS`].
pub(crate) fn passed_over(flag: &str, why: &str) -> String {
    format!("--{flag} is passed over: {why}")
}

/// What became of a variable.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mapped {
    /// What it says about its setting, where that is of use.
    pub(super) said: Option<Said>,
    /// A sentence for the log.
    pub(super) notice: String,
}

/// What `USE_MLX` says about the device. Servers that knew it went on without MLX where there was none, so it
/// never refuses a start: on a Mac it is the device `metal` unless another is named, elsewhere it is nothing.
pub(super) fn use_mlx(text: &str, device: &Said, is_mac: bool) -> Option<Mapped> {
    let passed_over = |why: String| {
        let notice = format!("{USE_MLX} = {text:?} is passed over: {why}");
        Some(Mapped { said: None, notice })
    };
    match parse_switch(text) {
        Ok(false) => return None,
        Ok(true) => {}
        Err(why) => return passed_over(why),
    }
    if !device.text.trim().eq_ignore_ascii_case("auto") {
        let Said { text, origin } = device;
        return passed_over(format!("{DEVICE_KEY} is {text} ({origin})"));
    }
    if !is_mac {
        return passed_over(format!(
            "MLX is for Apple's chips, and this is no Mac; {DEVICE_KEY} stays auto"
        ));
    }
    Some(Mapped {
        said: Some(Said {
            text: "metal".into(),
            origin: Origin::Env(USE_MLX),
        }),
        notice: format!(
            "{USE_MLX} is read as {DEVICE_KEY} = metal; set CROSSGATE_DEVICE=metal in its place"
        ),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, device: &str, is_mac: bool, wanted: (Option<&str>, &str)) {
        let device = Said {
            text: device.into(),
            origin: Origin::Env("DEVICE_PREFERENCE"),
        };
        let found = use_mlx(text, &device, is_mac);
        let (said, notice) = found.map_or((None, String::new()), |found| {
            (found.said.map(|said| said.text), found.notice)
        });
        assert_eq!(said.as_deref(), wanted.0, "{notice}");
        assert!(
            notice.contains(wanted.1) && notice.is_empty() == wanted.1.is_empty(),
            "{notice}"
        );
    }

    #[test]
    fn use_mlx_is_metal_on_a_mac() {
        check(
            "true",
            "auto",
            true,
            (Some("metal"), "CROSSGATE_DEVICE=metal"),
        );
        check("1", "AUTO", true, (Some("metal"), "model.device = metal"));
        check("true", "cpu", true, (None, "cpu (env DEVICE_PREFERENCE)"));
        check("true", "auto", false, (None, "no Mac"));
        check("false", "auto", true, (None, ""));
        check("maybe", "auto", true, (None, "expected true or false"));
    }
}
