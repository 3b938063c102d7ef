//! Tokenizing, on threads of its own.

mod pool;
mod stage;

pub use pool::{Haste, Pool, Tokenized};
pub use stage::{Admitted, Tokenize};
