//! Tokenizing, on threads of its own.

mod pool;
mod stage;

pub use pool::Pool;
pub use stage::{Admitted, Tokenize};
