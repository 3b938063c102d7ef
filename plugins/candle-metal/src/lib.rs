//! A Crossgate plugin that computes with candle on Apple's GPUs. All of it is
//! [`candle_plugin`]; this library gives it a name and a place.

use backend_api::{Backend, Fault, OpenRequest, Plugin, PluginCard};
use candle_plugin::backend::{self, Place};

const NAME: &str = env!("CARGO_PKG_NAME");

/// The plugin.
pub struct CandleMetal;

backend_api::export_plugin!(CandleMetal);

impl Plugin for CandleMetal {
    fn card() -> PluginCard {
        backend::card(NAME, env!("CARGO_PKG_VERSION"), Place::Metal)
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        backend::open(NAME, request, Place::Metal)
    }
}
