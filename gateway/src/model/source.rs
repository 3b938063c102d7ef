//! Where a model comes from, as the user wrote it.

use std::path::{Path, PathBuf};

use super::hub;

/// One of three places. `Starter` is built into the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Starter,
    Folder(PathBuf),
    /// `repo` is `org/name`, or `name` for the oldest ones; no revision means `main`.
    Hub {
        repo: String,
        revision: Option<String>,
    },
}

const FORMS: &str = "a model is `starter`, a folder (./path, /path, ~/path), \
                     or a hub id `org/name` or `org/name@revision`";

// === impl Source ===

impl Source {
    /// `starter`; else a folder if it starts with `.`, `/` or `~` or is an existing folder; else
    /// a hub id. The error says what is wrong with the text and names the forms.
    pub fn parse(text: &str) -> Result<Self, String> {
        Self::parse_at_home(text, std::env::home_dir().as_deref())
    }

    fn parse_at_home(text: &str, home: Option<&Path>) -> Result<Self, String> {
        let text = text.trim();
        let refuse = |why: &str| Err(format!("model {text:?}: {why}; {FORMS}"));
        if text.is_empty() {
            return refuse("it is empty");
        }
        if text == "starter" {
            return Ok(Self::Starter);
        }
        if let Some(rest) = text.strip_prefix('~') {
            // `~other` is another user's home: the shell's business, not ours.
            return match (home, rest.strip_prefix('/')) {
                (Some(home), Some(rest)) => Ok(Self::Folder(home.join(rest))),
                (Some(home), None) if rest.is_empty() => Ok(Self::Folder(home.into())),
                (None, _) => refuse("there is no home folder to stand for ~"),
                (Some(_), None) => refuse("only ~/path is understood"),
            };
        }
        if text.starts_with(['.', '/']) || Path::new(text).is_dir() {
            return Ok(Self::Folder(text.into()));
        }
        let (repo, revision) = match text.split_once('@') {
            Some((repo, revision)) => (repo, Some(revision)),
            None => (text, None),
        };
        if let Err(why) = hub::check_repo(repo) {
            return refuse(&why);
        }
        if let Some(Err(why)) = revision.map(hub::check_revision) {
            return refuse(&why);
        }
        Ok(Self::Hub {
            repo: repo.into(),
            revision: revision.map(Into::into),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, want: Result<Source, &str>) {
        let got = Source::parse_at_home(text, Some(Path::new("/home/ada")));
        match (got, want) {
            (Ok(got), Ok(want)) => assert_eq!(got, want, "{text:?}"),
            (Err(got), Err(want)) => {
                assert!(got.contains(want), "{got:?} does not say {want:?}");
                assert!(got.contains("starter") && got.contains("org/name"), "{got}");
            }
            (got, want) => panic!("{text:?}: {got:?}, expected {want:?}"),
        }
    }

    fn folder(path: &str) -> Result<Source, &'static str> {
        Ok(Source::Folder(path.into()))
    }

    fn hub(repo: &str, revision: Option<&str>) -> Result<Source, &'static str> {
        Ok(Source::Hub {
            repo: repo.into(),
            revision: revision.map(Into::into),
        })
    }

    #[test]
    fn the_three_forms() {
        check("starter", Ok(Source::Starter));
        check(" starter ", Ok(Source::Starter));
        check("./starter", folder("./starter"));
        check("../models/a", folder("../models/a"));
        check("/models/a@b", folder("/models/a@b"));
        check("~/models/a", folder("/home/ada/models/a"));
        check("~", folder("/home/ada"));
        // An existing folder wins over a hub id of the same spelling.
        check("src", folder("src"));
        check(
            "BAAI/bge-reranker-base",
            hub("BAAI/bge-reranker-base", None),
        );
        check("bert-base-uncased", hub("bert-base-uncased", None));
        check("a/b@refs/pr/1", hub("a/b", Some("refs/pr/1")));
        check("a/b@v1.0", hub("a/b", Some("v1.0")));
    }

    #[test]
    fn neither_of_them() {
        check("", Err("empty"));
        check("~bob/models", Err("only ~/path"));
        check("a/b/c", Err("one slash"));
        check("a/", Err("empty"));
        check("/a@", folder("/a@"));
        check("a/b@", Err("revision"));
        check("a/b@../../c", Err("revision"));
        check("a b", Err("' '"));
        check("a/..b", Err(".."));
        check("a/b--c", Err("--"));
    }
}
