//! Lines of a file or a pipe, one at a time.

use super::Input;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read};

/// A line is held in memory; the server itself takes bodies of a few megabytes unless configured otherwise.
pub(super) const LINE_BYTES_MAX: u64 = 64 << 20;
/// Read at a time.
const BUFFER_BYTES: usize = 256 << 10;
/// Some editors begin a file with it.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// Reads line by line, and counts.
pub(crate) struct Lines {
    input: Input,
    reader: BufReader<Box<dyn Read + Send>>,
    number: u64,
    bytes: u64,
    buffer: Vec<u8>,
}

/// A line without its end. Not empty: lines of spaces are passed over.
pub(crate) struct Line {
    /// From 1.
    pub(crate) number: u64,
    pub(crate) content: Result<String, Fault>,
}

/// What is wrong with a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fault {
    /// In bytes, from 1; `None` for the line as a whole.
    pub(crate) column: Option<usize>,
    pub(crate) why: String,
}

// === impl Lines ===

impl Lines {
    /// Of `input`, which `reader` reads.
    pub(crate) fn new(input: Input, reader: Box<dyn Read + Send>) -> Self {
        Self {
            input,
            reader: BufReader::with_capacity(BUFFER_BYTES, reader),
            number: 0,
            bytes: 0,
            buffer: Vec::new(),
        }
    }

    /// Bytes of the lines so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The next line that is not empty; `None` behind the last.
    ///
    /// # Errors
    /// Names the input: it cannot be read on, or its line has no end.
    pub(crate) fn next(&mut self) -> Result<Option<Line>, String> {
        while self.read()? {
            let content = self.content();
            if content.as_ref().is_ok_and(|text| text.trim().is_empty()) {
                continue;
            }
            let (number, content) = (self.number, content.map(str::to_owned));
            return Ok(Some(Line { number, content }));
        }
        Ok(None)
    }

    /// Passes over so many lines that are not empty; how many there were, and the number of the last one.
    ///
    /// # Errors
    /// As [`next`](Self::next).
    pub(super) fn skip(&mut self, n_lines: u64) -> Result<(u64, u64), String> {
        let (mut n_done, mut last) = (0, 0);
        while n_done < n_lines && self.read()? {
            if !self.content().is_ok_and(|text| text.trim().is_empty()) {
                (n_done, last) = (n_done + 1, self.number);
            }
        }
        Ok((n_done, last))
    }

    fn read(&mut self) -> Result<bool, String> {
        self.buffer.clear();
        let mut bounded = self.reader.by_ref().take(LINE_BYTES_MAX);
        let n_read = bounded
            .read_until(b'\n', &mut self.buffer)
            .map_err(|error| format!("{} cannot be read: {error}", self.input))?;
        self.number += 1;
        self.bytes += n_read as u64;
        if n_read as u64 == LINE_BYTES_MAX {
            return Err(format!(
                "{}:{}: longer than {LINE_BYTES_MAX} bytes; give a document or a request a line",
                self.input, self.number
            ));
        }
        Ok(n_read > 0)
    }

    /// What was read, without its end.
    fn content(&self) -> Result<&str, Fault> {
        let text = std::str::from_utf8(&self.buffer).map_err(|error| Fault {
            column: Some(error.valid_up_to() + 1),
            why: "is not UTF-8; convert the file, as `iconv -t utf-8` does".to_owned(),
        })?;
        let text = match self.number {
            1 => text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text),
            _ => text,
        };
        Ok(text.trim_end_matches(['\n', '\r']))
    }
}

// === impl Fault ===

impl Fault {
    /// Of the line as a whole.
    pub(crate) fn whole(why: impl Into<String>) -> Self {
        Self {
            column: None,
            why: why.into(),
        }
    }

    /// With the place in the file: `FILE:LINE:COLUMN: why`.
    pub(crate) fn at(&self, input: &Input, line: u64) -> String {
        match self.column {
            Some(column) => format!("{input}:{line}:{column}: {}", self.why),
            None => format!("{input}:{line}: {}", self.why),
        }
    }
}

/// Without the file: what an output line says.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.column {
            Some(column) => write!(f, "column {column}: {}", self.why),
            None => f.write_str(&self.why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &'static [u8]) -> Lines {
        Lines::new(Input::Stdin, Box::new(bytes))
    }

    #[test]
    fn lines_have_numbers_and_no_ends() {
        let mut lines = lines(b"\xef\xbb\xbfa\r\n\n  \n b\nlast");
        let mut found = Vec::new();
        while let Some(line) = lines.next().unwrap() {
            found.push((line.number, line.content.unwrap()));
        }
        let wanted = [(1, "a"), (4, " b"), (5, "last")].map(|(n, text)| (n, text.to_owned()));
        assert_eq!(found, wanted);
        assert_eq!(lines.bytes(), 17);
    }

    #[test]
    fn skipping_counts_what_would_have_been_read() {
        let mut lines = lines(b"a\n\nb\n\xff\nd\n");
        assert_eq!(lines.skip(3), Ok((3, 4)));
        assert_eq!(lines.next().unwrap().unwrap().number, 5);
        assert_eq!(lines.skip(3), Ok((0, 0)));
    }

    #[test]
    fn what_is_no_utf_8_is_named() {
        let line = lines(b"ab\xff\n").next().unwrap().unwrap();
        let fault = line.content.unwrap_err();
        assert_eq!(fault.column, Some(3));
        let input = Input::File("in".into());
        assert!(fault.at(&input, 7).starts_with("in:7:3: is not UTF-8"));
    }
}
