//! A Crossgate plugin that computes with candle on the host's processors. All of it is
//! [`candle_plugin`]; this library gives it a name and a place.

use backend_api::{Backend, Fault, OpenRequest, Plugin, PluginCard};
use candle_plugin::backend::{self, Place};

const NAME: &str = env!("CARGO_PKG_NAME");

/// The plugin.
pub struct CandleCpu;

backend_api::export_plugin!(CandleCpu);

impl Plugin for CandleCpu {
    fn card() -> PluginCard {
        backend::card(NAME, env!("CARGO_PKG_VERSION"), Place::Cpu)
    }

    fn open(request: &OpenRequest) -> Result<Box<dyn Backend>, Fault> {
        backend::open(NAME, request, Place::Cpu)
    }
}
