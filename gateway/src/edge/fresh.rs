//! What files say, as long as they say it: certificates and keys are renewed while the server runs.

use arc_swap::ArcSwap;
use std::fmt::Display;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// The largest file that is read: far above what certificates and keys take.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads what is said now.
type Read<S, E> = Box<dyn Fn() -> Result<S, E> + Send + Sync>;
/// Makes the value of it, of what was there before.
type Make<S, T, E> = fn(&S, Option<&T>) -> Result<T, E>;

/// A value that is made of what files say. What they say wrongly later is logged, and the value stays.
pub(super) struct Fresh<S, T, E> {
    /// For the log.
    what: &'static str,
    read: Read<S, E>,
    make: Make<S, T, E>,
    value: ArcSwap<T>,
    seen: Mutex<Seen<S>>,
}

struct Seen<S> {
    said: S,
    /// Why the last reading came to nothing; said once.
    error: Option<String>,
}

impl<S: PartialEq, T, E: Display> Fresh<S, T, E> {
    /// Reads for the first time.
    ///
    /// # Errors
    /// Those of reading and making.
    pub(super) fn new(
        what: &'static str,
        read: impl Fn() -> Result<S, E> + Send + Sync + 'static,
        make: Make<S, T, E>,
    ) -> Result<Self, E> {
        let said = read()?;
        let value = make(&said, None)?;
        Ok(Self {
            what,
            read: Box::new(read),
            make,
            value: ArcSwap::from_pointee(value),
            seen: Mutex::new(Seen { said, error: None }),
        })
    }

    /// What was read last. Does not wait.
    pub(super) fn value(&self) -> Arc<T> {
        self.value.load_full()
    }

    /// Reads again; blocks as files do.
    pub(super) fn refresh(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let what = self.what;
        let made = (self.read)().and_then(|said| {
            if said == seen.said {
                return Ok(None);
            }
            let value = (self.make)(&said, Some(&self.value()))?;
            Ok(Some((said, value)))
        });
        match made {
            Ok(None) => seen.error = None,
            Ok(Some((said, value))) => {
                self.value.store(Arc::new(value));
                *seen = Seen { said, error: None };
                tracing::info!(what, "changed files were read");
            }
            Err(error) => {
                let why = error.to_string();
                if seen.error.as_ref() != Some(&why) {
                    tracing::warn!(what, why, "changed files are not used; the old ones stay");
                    seen.error = Some(why);
                }
            }
        }
    }
}

/// A whole file, which is not long.
///
/// # Errors
/// Names the file and says why not.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| {
        let mut file = file.take(FILE_BYTES_MAX + 1);
        file.read_to_end(&mut bytes)
    });
    match read {
        Ok(_) if bytes.len() as u64 <= FILE_BYTES_MAX => Ok(bytes),
        Ok(_) => Err(format!(
            "{}: has more than {FILE_BYTES_MAX} bytes; name another file",
            path.display()
        )),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}
