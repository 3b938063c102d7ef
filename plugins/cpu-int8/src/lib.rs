//! A Crossgate plugin that scores with models of the BERT family on CPUs, in i8 (weights also in 4 bits),
//! bf16 or f32 (weights also in f16).
//!
//! Reading order: [`backend`] is what the host calls; [`model`] what a folder becomes at load;
//! [`encoder`] the forward pass; [`gemm`] its linear layers; [`kernel`] the instructions; [`quant`]
//! the numbers; [`arena`] the memory; [`threads`] those of a load. README.md has the numerics, the kernels and the figures.
//!
//! Everything below `backend` is generic over [`kernel::Kernel`], and the choice is made once, at
//! open.

pub mod arena;
pub mod backend;
pub mod encoder;
pub mod gemm;
pub mod kernel;
pub mod model;
pub mod quant;
pub mod threads;

pub use backend::CpuInt8;

backend_api::export_plugin!(CpuInt8);
