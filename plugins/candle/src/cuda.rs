//! NVIDIA GPUs: packed rows, kernels of our own between cuBLAS's products, and nothing on the way but ids up and logits
//! down.
//!
//! Reading order: [`backend`] opens, measures memory and answers calls; `lane` is one GPU with its copy of the model;
//! `packed` what goes up; `steps` and `attention` what blocks call; `twins` what kernels are given; `graphs` small batches'
//! launches as one; `driver` what calls CUDA, the only place here with `unsafe`; `faults` what its errors mean.

pub(crate) mod attention;
mod backend;
mod driver;
mod faults;
mod graphs;
mod lane;
mod names;
pub(crate) mod packed;
pub(crate) mod steps;
mod twins;

pub(crate) use backend::open;
pub(crate) use faults::code_while_loading;
