//! Which of a model's weights somebody will open. A folder or a repository may have them in several forms, of gigabytes
//! each: what nobody reads stays on the hub.

use super::hub::check_file_name;
use super::weights::{self, INDEX, SINGLE, gguf};
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
    // Else the first of these graphs that is there, by its path below the model's folder.
    graphs: Vec<String>,
    // Else a GGUF file.
    gguf: Gguf,
    // Who asks for those graphs: `dtype int8`.
    by: String,
}

/// Which GGUF file is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Gguf {
    Nobodys,
    /// Of several, nobody can say which.
    TheOnly,
    Named(String),
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
            graphs: Vec::new(),
            gguf: Gguf::Nobodys,
            by: String::new(),
        }
    }
}

impl Wanted {
    /// By plugins that read these, each of which may be asked to open the model in this data type and with these
    /// options; weights by name without any. A file that the option `file` names is wanted instead of all others, if it
    /// is of a kind that one of them reads.
    pub fn by<'a>(
        plugins: impl IntoIterator<Item = Reads<'a>>,
        dtype: &str,
        options: &str,
    ) -> Self {
        let (gguf, graph) = match file_option(options) {
            Some(file) if file.ends_with(gguf::ENDING) => (Some(file), None),
            file => (None, file),
        };
        let (mut is_named, mut reads_gguf) = (None, false);
        let (mut in_type, mut in_place) = (Vec::new(), Vec::new());
        for Reads { formats, files } in plugins {
            let has = |format: Format| formats.iter().any(|name| name == format.name());
            // One that does not say which file it would open is not waited for to say it.
            let says = has(Format::Gguf) || !files.is_empty();
            *is_named.get_or_insert(false) |= has(Format::Safetensors) || !says;
            reads_gguf |= has(Format::Gguf);
            in_type.extend(in_dtype(dtype, files));
            in_place.extend(graph.iter().flat_map(|file| places(file, files)));
        }
        match gguf {
            Some(file) if reads_gguf => Self {
                is_named: false,
                gguf: Gguf::Named(file),
                ..Self::default()
            },
            None if !in_place.is_empty() => Self {
                is_named: false,
                graphs: in_place,
                by: "the option `file`".to_owned(),
                ..Self::default()
            },
            _ => Self {
                is_named: is_named.unwrap_or(true),
                graphs: in_type,
                gguf: match reads_gguf {
                    true => Gguf::TheOnly,
                    false => Gguf::Nobodys,
                },
                by: format!("dtype {dtype}"),
            },
        }
    }

    /// Whether weights that are written like this will do.
    pub(super) fn reads(&self, format: Format) -> bool {
        match format {
            Format::Safetensors => self.is_named,
            Format::Onnx => !self.graphs.is_empty(),
            Format::Gguf => self.gguf != Gguf::Nobodys,
        }
    }

    /// Of files that are there, the one that is or names the weights. `place` is a folder or a repository.
    pub(super) fn choose<'a>(
        &'a self,
        names: &'a [String],
        place: &str,
    ) -> Result<&'a str, ModelError> {
        let named = [SINGLE, INDEX].into_iter().filter(|_| self.is_named);
        let graphs = self.graphs.iter().map(String::as_str);
        let is_there = |name: &&str| names.iter().any(|there| there == name);
        match named.chain(graphs).find(is_there) {
            Some(name) => Ok(name),
            None => self
                .gguf(names, place)?
                .ok_or_else(|| self.none_found(place, names)),
        }
    }

    /// Of files that are there, the GGUF file that is wanted; an error if it is not there, or nobody can say which it is.
    pub(super) fn gguf<'a>(
        &self,
        names: &'a [String],
        place: &str,
    ) -> Result<Option<&'a str>, ModelError> {
        match &self.gguf {
            Gguf::Nobodys => Ok(None),
            Gguf::TheOnly => gguf::choose(names, None, place),
            Gguf::Named(file) => gguf::choose(names, Some(file), place),
        }
    }

    /// Whether a folder holds what can be opened.
    pub(super) fn is_in(&self, folder: &Path) -> bool {
        let gguf = || {
            let names = weights::names_in(folder);
            self.gguf(&names, "").is_ok_and(|file| file.is_some())
        };
        (self.is_named && weights::locate(folder).is_ok())
            || self.graphs.iter().any(|file| folder.join(file).is_file())
            || gguf()
    }

    /// Whether there can be nothing better than what a folder holds.
    pub(super) fn is_best_in(&self, folder: &Path) -> bool {
        let best = match &self.gguf {
            _ if self.is_named => return weights::locate(folder).is_ok(),
            Gguf::Named(file) => Some(file),
            Gguf::Nobodys | Gguf::TheOnly => self.graphs.first(),
        };
        best.is_some_and(|file| folder.join(file).is_file())
    }

    /// That none of it is among these.
    fn none_found(&self, place: &str, names: &[String]) -> ModelError {
        let ending = |name: &str| name.rsplit_once('.').map(|(_, ending)| ending.to_owned());
        let is_like = |name: &&String| {
            let mut wanted = self.graphs.iter();
            wanted.any(|file| ending(file) == ending(name))
        };
        let mut others: Vec<_> = names.iter().filter(is_like).cloned().collect();
        if others.is_empty() {
            return self.none_like_it(place, names);
        }
        let n_more = others.len().saturating_sub(LISTED_MAX);
        others.truncate(LISTED_MAX);
        let more = match n_more {
            0 => String::new(),
            n_more => format!(" and {n_more} more"),
        };
        ModelError::unfit(
            format!(
                "{place} holds none of the files that {} asks for: {self}; it holds {}{more}",
                self.by,
                others.join(", ")
            ),
            "ask for a dtype that it has, or name one of its files by the option `file`",
        )
    }

    /// That these are in forms that nobody reads.
    fn none_like_it(&self, place: &str, names: &[String]) -> ModelError {
        if self.is_named {
            return weights::none_found(place, names);
        }
        let there = match weights::of_weights(names) {
            others if others.is_empty() => "no weights".to_owned(),
            others => format!("weights only as {}", others.join(", ")),
        };
        let formats = Format::ALL.into_iter().filter(|format| self.reads(*format));
        let formats: Vec<_> = formats.map(Format::name).collect();
        let formats = formats.join(" and ");
        ModelError::unfit(
            format!("{place} holds {there}, and the plugin reads {formats}: {self}"),
            "name a plugin that reads what is there, or another model",
        )
    }
}

/// The files, for people.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.is_named.then_some(SINGLE).into_iter();
        let gguf = match &self.gguf {
            Gguf::Nobodys => None,
            Gguf::TheOnly => Some("a GGUF file"),
            Gguf::Named(file) => Some(file.as_str()),
        };
        let graphs = self.graphs.iter().map(String::as_str);
        let names: Vec<_> = named.chain(graphs).chain(gguf).collect();
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

    fn owned(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    /// By plugins that read these formats.
    fn wanted(formats: &[&[&str]], dtype: &str, options: &str) -> Wanted {
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
        Wanted::by(reads, dtype, options)
    }

    /// What is chosen of `there`.
    #[track_caller]
    fn check(formats: &[&[&str]], dtype: &str, options: &str, there: &[&str], want: Option<&str>) {
        let (wanted, names) = (wanted(formats, dtype, options), owned(there));
        let chosen = wanted.choose(&names, "here");
        assert_eq!(chosen.ok(), want, "{wanted:?} of {there:?}");
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

    const ALL: [&str; 5] = [
        "onnx/model.onnx",
        "onnx/model_O3.onnx",
        "a.gguf",
        "b.gguf",
        SINGLE,
    ];

    #[test]
    fn a_gguf_file_comes_last_unless_it_is_named() {
        let reads_both: [&[&str]; 1] = [&["safetensors", "gguf"]];
        let auto: [&[&str]; 2] = [&["onnx"], reads_both[0]];
        check(&auto, "auto", "{}", &ALL, Some(SINGLE));
        check(&auto, "auto", "{}", &ALL[..4], Some("onnx/model.onnx"));
        check(&reads_both, "auto", "{}", &ALL[..3], Some("a.gguf"));
        check(&[&["gguf"]], "auto", "{}", &ALL[2..3], Some("a.gguf"));
        check(&[&["gguf"]], "auto", "{}", &ALL[4..], None);
        // Which of two?
        check(&reads_both, "auto", "{}", &ALL[..4], None);
        // No graph is in the type that is asked for.
        check(&auto, "q4_k", "{}", &ALL[..3], Some("a.gguf"));
        let named = r#"{"file":"b.gguf"}"#;
        for plugins in [&auto[..], &reads_both[..]] {
            check(plugins, "auto", named, &ALL, Some("b.gguf"));
            check(plugins, "auto", named, &ALL[..3], None);
        }
        // Nobody reads it.
        check(&auto[..1], "auto", named, &ALL, Some("onnx/model.onnx"));
        check(&[&["safetensors"]], "auto", named, &ALL, Some(SINGLE));
        // A graph that is named is as good.
        let graph = r#"{"file":"model_O3.onnx"}"#;
        check(&auto, "auto", graph, &ALL, Some("onnx/model_O3.onnx"));
        check(&reads_both, "auto", graph, &ALL, Some(SINGLE));
    }

    #[test]
    fn forms_that_nobody_reads_are_named_with_those_that_are() {
        let (graphs, names) = (wanted(&[&["onnx"]], "auto", "{}"), owned(&["a.gguf", "x"]));
        let said = graphs.choose(&names, "a/b").unwrap_err().to_string();
        for word in [
            "a/b holds weights only as a.gguf",
            "the plugin reads onnx: onnx/model.onnx or ",
            "name a plugin",
        ] {
            assert!(said.contains(word), "{said}: {word}");
        }
        let said = graphs.choose(&[], "a/b").unwrap_err().to_string();
        assert!(said.contains("a/b holds no weights"), "{said}");
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
