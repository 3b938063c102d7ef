//! What stops a run before it has a result. A server's refusal or a wrong answer is a result.

use std::fmt;

#[derive(Debug)]
pub enum Error {
    /// The command line or a file it names is wrong: nothing was sent. Exit code 2.
    Usage(String),
    /// The run could not be started or its result not written. Exit code 1.
    Run(String),
}

impl Error {
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Run(_) => 1,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(reason) | Self::Run(reason) => formatter.write_str(reason),
        }
    }
}

impl std::error::Error for Error {}
