//! Gauges of what backends tell of their devices. What is not told now is not there: a gauge that is observed
//! when somebody asks shows what was observed then, and nothing from before.

use crate::load::Catalog;
use backend_api::DeviceState;
use opentelemetry::KeyValue;
use opentelemetry::metrics::{Meter, ObservableGauge};
use std::sync::Arc;

/// Name, unit, description, and the value where it is known.
type Row = (
    &'static str,
    &'static str,
    &'static str,
    fn(&DeviceState) -> Option<f64>,
);

const ROWS: [Row; 6] = [
    (
        "crossgate.device_memory_process",
        "By",
        "Memory of a model's device that this server holds, for this model and others.",
        |device| device.memory_process_bytes.map(|bytes| bytes as f64),
    ),
    (
        "crossgate.device_memory_used",
        "By",
        "Memory of a model's device that is in use, whoever holds it.",
        |device| device.memory_used_bytes.map(|bytes| bytes as f64),
    ),
    (
        "crossgate.device_memory_total",
        "By",
        "Memory that a model's device has.",
        |device| device.memory_total_bytes.map(|bytes| bytes as f64),
    ),
    (
        "crossgate.device_utilization",
        "1",
        "Share of its last sample period in which a model's device computed.",
        |device| device.utilization,
    ),
    (
        "crossgate.device_temperature",
        "Cel",
        "Temperature of a model's device.",
        |device| device.temperature_celsius,
    ),
    (
        "crossgate.device_power",
        "W",
        "Power that a model's device takes.",
        |device| device.power_watts,
    ),
];

/// Of each device of each model in `catalog`, as its backend told last.
pub(super) fn gauges(meter: &Meter, catalog: &Arc<dyn Catalog>) -> [ObservableGauge<f64>; 6] {
    ROWS.map(|(name, unit, about, value)| {
        let catalog = Arc::downgrade(catalog);
        meter
            .f64_observable_gauge(name)
            .with_unit(unit)
            .with_description(about)
            .with_callback(move |observer| {
                let catalog = catalog.upgrade();
                for model in catalog.map(|catalog| catalog.models()).unwrap_or_default() {
                    for device in &*model.devices {
                        let labels = [
                            KeyValue::new("model", model.name.to_string()),
                            KeyValue::new("device", device.name.clone()),
                        ];
                        if let Some(value) = value(device) {
                            observer.observe(value, &labels);
                        }
                    }
                }
            })
            .build()
    })
}
