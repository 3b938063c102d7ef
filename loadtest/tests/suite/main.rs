//! Runs of the library and of the program against a look-alike server on loopback.

mod command;
mod counters;
mod look_alike;
mod patience;
mod runs;
