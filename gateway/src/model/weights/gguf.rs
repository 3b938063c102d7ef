//! Which GGUF file holds a model's weights. Plugins read it; here it is found by its name.

use crate::model::ModelError;

pub(in crate::model) const ENDING: &str = ".gguf";

/// GGUF files hold a tokenizer, but in llama.cpp's terms, and a configuration that says less than transformers'.
const NEEDED: &str = "a GGUF file needs config.json and tokenizer.json beside it: make a folder of it and of those two \
    from the repository that it was converted from, and name that folder";
/// Names that a refusal lists.
const NAMES_MAX: usize = 12;

/// The file of this name, or without a name the only GGUF file among these; `None` if there is none. `place` is a
/// folder or a repository.
pub(in crate::model) fn choose<'a>(
    names: &'a [String],
    file: Option<&str>,
    place: &str,
) -> Result<Option<&'a str>, ModelError> {
    let files: Vec<&str> = all(names).collect();
    let listed = || {
        if files.is_empty() {
            return "none".to_owned();
        }
        let more = match files.len().saturating_sub(NAMES_MAX) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let first = &files[..files.len().min(NAMES_MAX)];
        format!("{}{more}", first.join(", "))
    };
    if let Some(file) = file {
        return match files.iter().find(|name| **name == file) {
            Some(name) => Ok(Some(name)),
            None => Err(ModelError::unfit(
                format!(
                    "{place} holds no {file}, which the backend options name; its GGUF files: {}",
                    listed()
                ),
                "correct the name in --backend-options",
            )),
        };
    }
    match files.as_slice() {
        [] => Ok(None),
        [name] => Ok(Some(name)),
        [first, ..] => Err(ModelError::unfit(
            format!("{place} holds {} GGUF files: {}", files.len(), listed()),
            format!("name one: --backend-options '{{\"file\": \"{first}\"}}'"),
        )),
    }
}

/// The same error with what is to be done where the weights are in a GGUF file.
pub(in crate::model) fn or_needed(mut error: ModelError, names: &[String]) -> ModelError {
    if all(names).next().is_some() {
        error.remedy = NEEDED.to_owned();
    }
    error
}

/// Those beside config.json: folders within a repository hold other things.
pub(in crate::model) fn all(names: &[String]) -> impl Iterator<Item = &str> {
    let names = names.iter().map(String::as_str);
    names.filter(|name| name.ends_with(ENDING) && !name.contains('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(names: &[&str], file: Option<&str>, want: Result<Option<&str>, &[&str]>) {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        match (choose(&names, file, "here"), want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want),
            (Err(got), Err(words)) => {
                for word in words {
                    assert!(got.to_string().contains(word), "{got}: {word:?}");
                }
            }
            (got, want) => panic!("{got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn the_only_one_or_the_one_that_is_named() {
        check(&["config.json", "x/y.gguf"], None, Ok(None));
        check(&["a.gguf", "README.md"], None, Ok(Some("a.gguf")));
        check(&["a.gguf", "b.gguf"], Some("b.gguf"), Ok(Some("b.gguf")));
        let both = ["here holds 2", "a.gguf, b.gguf", r#"{"file": "a.gguf"}"#];
        check(&["a.gguf", "b.gguf"], None, Err(&both));
        let other = ["here holds no c.gguf", "a.gguf, b.gguf"];
        check(&["a.gguf", "b.gguf"], Some("c.gguf"), Err(&other));
        let none = ["no x/y.gguf", "its GGUF files: none"];
        check(&["x/y.gguf"], Some("x/y.gguf"), Err(&none));
        let many: Vec<String> = (0..14).map(|at| format!("{at}.gguf")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        check(&many, None, Err(&["11.gguf and 2 more"]));
    }
}
