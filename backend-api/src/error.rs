//! Failure as a value: a code that programs read and a text that people read.

use std::fmt;

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// What kind of failure, for the host's decision.
    pub code: FaultCode,
    /// What happened, naming file, tensor, option or row; lower case, no full stop.
    pub text: String,
}

/// Kinds of failure. Numbers are for ever; one that is not known here reads as `Internal`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum FaultCode {
    /// Not for this plugin: another one may serve the model.
    Unsupported = 1,
    /// The model's files are missing or wrong.
    BadModel = 2,
    /// An option or another value of the open request is wrong.
    BadRequest = 3,
    /// The batch breaks the contract: the host's mistake.
    BadBatch = 4,
    /// The device or the process has not enough memory.
    OutOfMemory = 5,
    /// The device is gone or failed; a new backend may work.
    DeviceLost = 6,
    /// A panic was caught. The backend is poisoned.
    Panicked = 7,
    /// An earlier panic poisoned this backend: drop it and open it again.
    Poisoned = 8,
    /// Anything else.
    Internal = 9,
}

// === impl Fault ===

impl Fault {
    /// A fault of this code with this text.
    pub fn new(code: FaultCode, text: impl Into<String>) -> Self {
        Self {
            code,
            text: text.into(),
        }
    }

    /// The host should try another plugin.
    pub fn unsupported(text: impl Into<String>) -> Self {
        Self::new(FaultCode::Unsupported, text)
    }

    /// The model's files are missing or wrong.
    pub fn bad_model(text: impl Into<String>) -> Self {
        Self::new(FaultCode::BadModel, text)
    }

    /// An option is wrong.
    pub fn bad_request(text: impl Into<String>) -> Self {
        Self::new(FaultCode::BadRequest, text)
    }

    /// The batch breaks the contract.
    pub fn bad_batch(text: impl Into<String>) -> Self {
        Self::new(FaultCode::BadBatch, text)
    }

    /// Anything else.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(FaultCode::Internal, text)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.text, self.code.name())
    }
}

impl std::error::Error for Fault {}

// === impl FaultCode ===

impl FaultCode {
    const ALL: [Self; 9] = [
        Self::Unsupported,
        Self::BadModel,
        Self::BadRequest,
        Self::BadBatch,
        Self::OutOfMemory,
        Self::DeviceLost,
        Self::Panicked,
        Self::Poisoned,
        Self::Internal,
    ];

    /// The name that logs and metrics use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unsupported => "unsupported",
            Self::BadModel => "bad_model",
            Self::BadRequest => "bad_request",
            Self::BadBatch => "bad_batch",
            Self::OutOfMemory => "out_of_memory",
            Self::DeviceLost => "device_lost",
            Self::Panicked => "panicked",
            Self::Poisoned => "poisoned",
            Self::Internal => "internal",
        }
    }

    /// The code of this number; `Internal` for one that a newer plugin brought along.
    pub fn from_number(number: u32) -> Self {
        Self::ALL
            .into_iter()
            .find(|&code| code as u32 == number)
            .unwrap_or(Self::Internal)
    }
}
