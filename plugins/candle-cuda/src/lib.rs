//! A Crossgate plugin that computes with candle on NVIDIA's GPUs. All of it is
//! [`candle_plugin`]; this library gives it a name and a place.

use backend_api::{Backend, Fault, OpenRequest, Plugin, PluginCard};
use candle_plugin::backend::{self, Place};

const NAME: &str = env!("CARGO_PKG_NAME");

/// The plugin.
pub struct CandleCuda;

backend_api::export_plugin!(CandleCuda);

impl Plugin for CandleCuda {
    fn card() -> PluginCard {
        backend::card(NAME, env!("CARGO_PKG_VERSION"), Place::Cuda)
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        backend::open(NAME, request, Place::Cuda)
    }
}
