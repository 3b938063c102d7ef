//! The rules of `proto/`, read from the descriptors with their comments. `crossgate.v1` is ours and keeps all of
//! them. Of others' definitions names and numbers are facts, so that theirs keep only what their authors kept.

use prost::Message as _;
use prost_types::field_descriptor_proto::Label;
use prost_types::{DescriptorProto, EnumDescriptorProto, FileDescriptorProto, FileDescriptorSet};
use std::collections::BTreeSet;
use std::path::Path;

/// Ours.
const OURS: &str = "crossgate.v1";
/// Of others, and why they are not judged.
const FOREIGN: [(&str, &str); 2] = [
    (
        "tei.v1",
        "enums without UNSPECIFIED are Text Embeddings Inference's own",
    ),
    (
        "inference",
        "the package, GRPCInferenceService and its fields are KServe's own",
    ),
];

/// Numbers of descriptors' fields, of which a comment's place is made.
const MESSAGES: i32 = 4;
const ENUMS: i32 = 5;
const SERVICES: i32 = 6;
const PARTS: i32 = 2;
const NESTED: i32 = 3;

/// One file, and what is wrong with it.
struct Lint<'a> {
    file: &'a FileDescriptorProto,
    commented: BTreeSet<&'a [i32]>,
    wrong: Vec<String>,
}

fn files() -> FileDescriptorSet {
    let descriptors = concat!(env!("OUT_DIR"), "/crossgate_descriptor.bin");
    let bytes = std::fs::read(descriptors).expect("the build's descriptors");
    FileDescriptorSet::decode(&*bytes).expect("descriptors")
}

impl<'a> Lint<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let commented = locations.filter(|place| {
            let comment = place.leading_comments();
            // A sentence.
            comment.trim().ends_with(['.', '!']) && comment.contains(' ')
        });
        Self {
            file,
            commented: commented.map(|place| place.path.as_slice()).collect(),
            wrong: Vec::new(),
        }
    }

    fn check(&mut self, is_right: bool, what: &str) {
        if !is_right {
            self.wrong.push(format!("{}: {what}", self.file.name()));
        }
    }

    fn comment(&mut self, path: &[i32], what: &str) {
        let is_there = self.commented.contains(path);
        self.check(is_there, &format!("{what} has no comment"));
    }

    fn all(mut self) -> Vec<String> {
        let folder = self.file.package().replace('.', "/");
        let stands = Path::new(self.file.name()).parent() == Some(Path::new(&folder));
        self.check(
            stands,
            &format!("the package {} is not its folder", self.file.package()),
        );
        let last = self.file.package().rsplit('.').next().unwrap_or_default();
        let is_version = last
            .strip_prefix('v')
            .is_some_and(|n| n.parse::<u32>().is_ok());
        self.check(is_version, "the package has no version");
        for (n, service) in (0..).zip(&self.file.service) {
            let name = service.name();
            self.check(is_camel(name), &format!("service {name}"));
            self.comment(&[SERVICES, n], name);
            for (m, method) in (0..).zip(&service.method) {
                let (called, input) = (method.name(), method.input_type());
                let what = format!("{name}.{called}");
                self.check(is_camel(called), &what);
                self.comment(&[SERVICES, n, PARTS, m], &what);
                let package = self.file.package();
                let own = [
                    (input, format!(".{package}.{called}Request")),
                    (method.output_type(), format!(".{package}.{called}Response")),
                ];
                for (found, wanted) in own {
                    self.check(
                        found == wanted,
                        &format!("{what} takes or gives {found}, not {wanted}"),
                    );
                }
            }
        }
        for (n, message) in (0..).zip(&self.file.message_type) {
            self.message(&[MESSAGES, n], message);
        }
        for (n, one) in (0..).zip(&self.file.enum_type) {
            self.enumeration(&[ENUMS, n], one);
        }
        self.wrong
    }

    fn message(&mut self, path: &[i32], message: &DescriptorProto) {
        let name = message.name();
        self.check(is_camel(name), &format!("message {name}"));
        self.comment(path, name);
        for (n, field) in (0..).zip(&message.field) {
            let what = format!("{name}.{}", field.name());
            self.check(is_snake(field.name()), &what);
            self.comment(&[path, &[PARTS, n]].concat(), &what);
            // A list of things is named for the things.
            let is_list = field.label() == Label::Repeated;
            let is_plural = field.name().ends_with('s') || field.name() == "truncated";
            self.check(!is_list || is_plural, &format!("{what} is a list"));
        }
        for (n, nested) in (0..).zip(&message.nested_type) {
            self.message(&[path, &[NESTED, n]].concat(), nested);
        }
    }

    fn enumeration(&mut self, path: &[i32], one: &EnumDescriptorProto) {
        let name = one.name();
        self.check(is_camel(name), &format!("enum {name}"));
        self.comment(path, name);
        let prefix = format!("{}_", name.to_ascii_uppercase());
        for (n, value) in (0..).zip(&one.value) {
            let what = format!("{name}.{}", value.name());
            self.check(value.name().starts_with(&prefix), &what);
            self.comment(&[path, &[PARTS, n]].concat(), &what);
            let is_unspecified = value.name() == format!("{prefix}UNSPECIFIED");
            self.check(is_unspecified == (value.number() == 0), &what);
        }
    }
}

fn is_camel(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase())
        && name.chars().all(|c| c.is_ascii_alphanumeric())
        && name.to_ascii_uppercase() != name
}

fn is_snake(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name
            .chars()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        && !name.contains("__")
        && !name.ends_with('_')
}

#[test]
fn ours_keeps_the_rules() {
    let files = files();
    let ours: Vec<_> = files
        .file
        .iter()
        .filter(|file| file.package() == OURS)
        .collect();
    assert!(!ours.is_empty(), "no file of {OURS}");
    let wrong: Vec<String> = ours
        .into_iter()
        .flat_map(|file| Lint::of(file).all())
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn nobody_else_is_forgotten() {
    for file in &files().file {
        let package = file.package();
        let is_foreign = FOREIGN.iter().any(|(name, _)| *name == package);
        assert!(
            package == OURS || is_foreign,
            "{package} is neither ours nor a named one of others"
        );
        // What a file is for is said before its package, whoever's it is.
        let infos = file.source_code_info.iter().flat_map(|info| &info.location);
        let mut heads = infos.filter(|place| place.path == [PARTS]);
        assert!(
            heads.any(|place| place.leading_comments().contains('.')),
            "{}",
            file.name()
        );
    }
}

#[test]
fn the_rules_find_what_is_wrong() {
    let mut files = files();
    let file = files
        .file
        .iter_mut()
        .find(|file| file.package() == OURS)
        .expect("ours");
    file.message_type[0].field[0].name = Some("documentTokens".to_owned());
    file.enum_type[0].value[0].name = Some("PRIORITY_NONE".to_owned());
    file.service[0].method[0].input_type = Some(".crossgate.v1.Form".to_owned());
    file.package = Some("crossgate.v2".to_owned());
    if let Some(info) = &mut file.source_code_info {
        info.location.retain(|place| place.path != [MESSAGES, 1]);
    }
    let wrong = Lint::of(file).all().join("\n");
    for part in [
        "Form.documentTokens",
        "Priority.PRIORITY_NONE",
        "Scoring.Score takes or gives .crossgate.v1.Form",
        "crossgate.v2 is not its folder",
        "Pair has no comment",
    ] {
        assert!(wrong.contains(part), "{part} in {wrong}");
    }
}
