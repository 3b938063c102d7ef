//! Which of a model's weights somebody will open. A repository may have them in several forms, of gigabytes each: what
//! nobody reads stays on the hub.

use super::hub::check_file_name;
use super::weights::{self, INDEX, SINGLE};
use super::{Format, ModelError};
use std::fmt;
use std::path::Path;

/// The most names that a refusal lists.
const LISTED_MAX: usize = 16;

/// The weights that some plugins read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    // Whether weights by name will do: where they are there, they are taken.
    is_named: bool,
    // Else the first of these that is there, by its path below the model's folder.
    files: Vec<String>,
    // Who asks for those files: `dtype int8`.
    by: String,
}

/// What a plugin's card says of the weights that it reads.
#[derive(Clone, Copy, Debug)]
pub struct Reads<'a> {
    /// How they are written.
    pub formats: &'a [String],
    /// Where it opens one file of several: `dtype:path`, best first.
    pub files: &'a [String],
}

/// Weights by name, which most plugins read.
impl Default for Wanted {
    fn default() -> Self {
        Self {
            is_named: true,
            files: Vec::new(),
            by: String::new(),
        }
    }
}

impl Wanted {
    /// By plugins that read these, each of which may be asked to open the model in this data type and with these
    /// options; weights by name without any.
    pub fn by<'a>(
        plugins: impl IntoIterator<Item = Reads<'a>>,
        dtype: &str,
        options: &str,
    ) -> Self {
        let file = file_option(options);
        let (mut is_named, mut found) = (None, Vec::new());
        for Reads { formats, files } in plugins {
            // One that does not say which file it would open is not waited for to say it.
            let reads_named = files.is_empty() || has(formats, Format::Safetensors.name());
            *is_named.get_or_insert(false) |= reads_named;
            match &file {
                Some(file) => found.extend(places(file, files)),
                None => found.extend(in_dtype(dtype, files)),
            }
        }
        Self {
            is_named: is_named.unwrap_or(true),
            files: found,
            by: match file {
                Some(_) => "the option `file`".to_owned(),
                None => format!("dtype {dtype}"),
            },
        }
    }

    /// Of files that are there, the one that is or names the weights.
    pub(super) fn choose(&self, is_there: impl Fn(&str) -> bool) -> Option<&str> {
        let named = [SINGLE, INDEX].into_iter().filter(|_| self.is_named);
        let files = self.files.iter().map(String::as_str);
        named.chain(files).find(|name| is_there(name))
    }

    /// Whether a folder holds what can be opened.
    pub(super) fn is_in(&self, folder: &Path) -> bool {
        (self.is_named && weights::locate(folder).is_ok())
            || self.files.iter().any(|file| folder.join(file).is_file())
    }

    /// Whether there can be nothing better than what a folder holds.
    pub(super) fn is_best_in(&self, folder: &Path) -> bool {
        if self.is_named {
            return weights::locate(folder).is_ok();
        }
        let best = self.files.first();
        best.is_some_and(|file| folder.join(file).is_file())
    }

    /// That none of it is among these. `place` is a folder or a repository.
    pub(super) fn none_found(&self, place: &str, names: &[String]) -> ModelError {
        let ending = |name: &str| name.rsplit_once('.').map(|(_, ending)| ending.to_owned());
        let is_like = |name: &&String| {
            let mut wanted = self.files.iter();
            wanted.any(|file| ending(file) == ending(name))
        };
        let mut others: Vec<_> = names.iter().filter(is_like).cloned().collect();
        if self.is_named && others.is_empty() {
            return weights::none_found(place, names);
        }
        let n_more = others.len().saturating_sub(LISTED_MAX);
        others.truncate(LISTED_MAX);
        let there = match (others.is_empty(), n_more) {
            (true, _) => "nothing like them".to_owned(),
            (false, 0) => others.join(", "),
            (false, _) => format!("{} and {n_more} more", others.join(", ")),
        };
        ModelError::unfit(
            format!(
                "{place} holds none of the files that {} asks for: {self}; it holds {there}",
                self.by
            ),
            "ask for a dtype that it has, or name one of its files by the option `file`",
        )
    }
}

/// The files, for people.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.is_named.then_some(SINGLE).into_iter();
        let names: Vec<_> = named.chain(self.files.iter().map(String::as_str)).collect();
        f.write_str(&names.join(" or "))
    }
}

/// The file of the model's that a plugin's options name. One outside the model's folder is nobody's to fetch.
fn file_option(options: &str) -> Option<String> {
    let options: serde_json::Value = serde_json::from_str(options).ok()?;
    let file = options.get("file")?.as_str()?;
    check_file_name(file).is_ok().then(|| file.to_owned())
}

/// Where a named file may be: where its name says, or in a folder of those that a card lists.
fn places(file: &str, listed: &[String]) -> Vec<String> {
    let mut places = Vec::new();
    if listed.is_empty() {
        return places;
    }
    places.push(file.to_owned());
    for (_, path) in listed.iter().filter_map(|listed| listed.split_once(':')) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            let place = format!("{folder}/{file}");
            if !places.contains(&place) {
                places.push(place);
            }
        }
    }
    places
}

/// Of a card's files, those in a data type.
fn in_dtype<'a>(dtype: &'a str, listed: &'a [String]) -> impl Iterator<Item = String> + 'a {
    let entries = listed.iter().filter_map(|entry| entry.split_once(':'));
    let first = entries.clone().next().map_or("", |(dtype, _)| dtype);
    let asked = if dtype == "auto" { first } else { dtype };
    entries
        .filter(move |(dtype, _)| *dtype == asked)
        .map(|(_, path)| path.to_owned())
}

fn has(formats: &[String], name: &str) -> bool {
    formats.iter().any(|format| format == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: [&str; 5] = [
        "f32:onnx/model.onnx",
        "f32:model.onnx",
        "int8:onnx/model_best.onnx",
        "int8:onnx/model_int8.onnx",
        "int8:model_int8.onnx",
    ];

    /// What is chosen of `there`.
    #[track_caller]
    fn check(formats: &[&[&str]], dtype: &str, options: &str, there: &[&str], want: Option<&str>) {
        let owned = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
        let plugins: Vec<_> = formats
            .iter()
            .map(|formats| {
                let files = formats.contains(&"onnx").then_some(&FILES[..]);
                (owned(formats), owned(files.unwrap_or_default()))
            })
            .collect();
        let reads = plugins
            .iter()
            .map(|(formats, files)| Reads { formats, files });
        let wanted = Wanted::by(reads, dtype, options);
        assert_eq!(
            wanted.choose(|name| there.contains(&name)),
            want,
            "{wanted:?} of {there:?}"
        );
    }

    const BOTH: [&str; 4] = ["model.onnx", "model_int8.onnx", "onnx/model.onnx", SINGLE];

    #[test]
    fn who_reads_graphs_alone_is_given_no_named_weights() {
        check(&[&["safetensors"]], "auto", "{}", &BOTH, Some(SINGLE));
        check(&[&["onnx"]], "auto", "{}", &BOTH, Some("onnx/model.onnx"));
        check(&[&["onnx"]], "int8", "{}", &BOTH, Some("model_int8.onnx"));
        check(&[&["onnx"]], "f16", "{}", &BOTH, None);
        check(&[&["onnx"]], "auto", "{}", &[SINGLE], None);
    }

    #[test]
    fn of_several_plugins_those_that_read_named_weights_come_first() {
        let all: [&[&str]; 2] = [&["onnx"], &["safetensors"]];
        check(&all, "int8", "{}", &BOTH, Some(SINGLE));
        check(&all, "int8", "{}", &BOTH[..3], Some("model_int8.onnx"));
        check(&[&["safetensors"]], "auto", "{}", &BOTH[..3], None);
        check(&[], "auto", "{}", &BOTH, Some(SINGLE));
    }

    #[test]
    fn a_file_that_is_named_is_taken_whatever_the_dtype() {
        let there = ["onnx/model_O3.onnx", "onnx/model.onnx", "x/y.onnx"];
        let named = |file: &str| format!("{{\"file\":{file:?}}}");
        let only: [&[&str]; 1] = [&["onnx"]];
        check(
            &only,
            "auto",
            &named("model_O3.onnx"),
            &there,
            Some(there[0]),
        );
        check(&only, "int8", &named(there[0]), &there, Some(there[0]));
        check(&only, "auto", &named("x/y.onnx"), &there, Some("x/y.onnx"));
        check(&only, "auto", &named("z.onnx"), &there, None);
        // What is not below the folder is not the hub's.
        check(&only, "auto", &named("/z.onnx"), &there, Some(there[1]));
        check(&only, "auto", &named("../z.onnx"), &there, Some(there[1]));
        check(
            &[&["safetensors"]],
            "auto",
            &named("x"),
            &BOTH,
            Some(SINGLE),
        );
    }

    #[test]
    fn what_is_missing_is_named() {
        let files = FILES.map(str::to_owned);
        let formats = ["onnx".to_owned()];
        let reads = Reads {
            formats: &formats,
            files: &files,
        };
        let names = ["config.json", SINGLE, "onnx/model_O4.onnx"].map(str::to_owned);
        let said = Wanted::by([reads], "int8", "{}").none_found("a/b", &names);
        for word in [
            "a/b",
            "dtype int8",
            "onnx/model_best.onnx or ",
            "it holds onnx/model_O4.onnx;",
            "option `file`",
        ] {
            assert!(said.to_string().contains(word), "{said}: {word}");
        }
        let said = Wanted::default().none_found("a/b", &names);
        assert!(
            said.to_string().contains("not as model.safetensors"),
            "{said}"
        );
    }
}
