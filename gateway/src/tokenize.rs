//! Tokenizing, on threads of its own.

mod pool;
mod stage;

pub use pool::{Pool, Tokenized};
pub use stage::{Admitted, Tokenize};
