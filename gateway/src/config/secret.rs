//! What callers must show, and nobody is shown.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Fewer characters can be guessed: 16 of those that `openssl rand -hex` prints are 64 bits.
pub(super) const CHARS_MIN: usize = 16;
/// A header's line must hold it.
pub(super) const CHARS_MAX: usize = 512;
/// What stands in its place wherever it would be shown.
pub(super) const SHOWN: &str = "***";
/// Of a file: the longest secret, and room for line ends. More is the wrong file.
const FILE_BYTES_MAX: usize = 2 * CHARS_MAX;

/// A text without spaces that can stand in a header. Shows itself to nobody.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Spaces around it do not count.
    ///
    /// # Errors
    /// What it should be, without what it is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let n_chars = text.chars().count();
        if (CHARS_MIN..=CHARS_MAX).contains(&n_chars) && text.bytes().all(|b| b.is_ascii_graphic())
        {
            return Ok(Self(text.to_owned()));
        }
        Err(format!(
            "expected {CHARS_MIN} to {CHARS_MAX} visible ASCII characters without spaces, such as \
             `openssl rand -hex 32` prints; found {n_chars} characters"
        ))
    }

    /// What a file holds, which ends with a line's end or without.
    ///
    /// # Errors
    /// Why it cannot be read, or what is wrong with its content.
    pub fn read(path: &Path) -> Result<Self, String> {
        let in_file = |why: String| format!("{}: {why}", path.display());
        let mut text = String::new();
        let read = File::open(path).and_then(|file| {
            file.take(FILE_BYTES_MAX as u64 + 1)
                .read_to_string(&mut text)
        });
        read.map_err(|error| in_file(error.to_string()))?;
        if FILE_BYTES_MAX < text.len() {
            return Err(in_file(format!(
                "has more than {FILE_BYTES_MAX} bytes; expected a key and nothing else"
            )));
        }
        Self::parse(&text).map_err(in_file)
    }

    /// Itself, for whoever compares or sends it; not for eyes.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(SHOWN)
    }
}
