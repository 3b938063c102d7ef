//! How devices do is told of what serves, and of nothing else.

use crate::Swapping;
use serde_json::{Value, json};

fn options(device: &str) -> Value {
    json!({"devices": [{"name": device, "memory_used_bytes": 7}]})
}

/// Waits until the gauges tell of these devices.
fn until_told(swapping: &Swapping, expected: &[&str]) {
    let told = || {
        let text = swapping.server.get("/metrics").text;
        let devices = text.lines().filter_map(|line| {
            let labels = line.strip_prefix("crossgate_device_memory_used_bytes{")?;
            let device = labels.strip_prefix("device=\"")?.split('"').next()?;
            Some(device.to_owned())
        });
        devices.collect::<Vec<_>>()
    };
    swapping.server.until(|| (told() == expected).then_some(()));
}

#[test]
fn devices_are_those_of_what_serves() {
    let swapping = Swapping::start(&options("cuda:0"), &[]);
    until_told(&swapping, &["cuda:0"]);
    let order = json!({"options": options("cuda:1"), "probation_s": 60});
    assert_eq!(swapping.swap(&order).status, 200);
    until_told(&swapping, &["cuda:1"]);
    assert_eq!(swapping.rollback().status, 200);
    until_told(&swapping, &["cuda:0"]);
    let unloaded = swapping
        .server
        .order("/models/starter/unload", &Value::Null);
    assert_eq!(unloaded.status, 200, "{unloaded:?}");
    until_told(&swapping, &[]);
}

/// In a process of its own, where it costs nobody anything.
#[test]
fn a_plugin_that_does_not_tell_in_time_is_not_swapped_in() {
    let dir = tempfile::tempdir().unwrap();
    let hold = dir.path().join("hold");
    std::fs::write(&hold, "").unwrap();
    let swapping = Swapping::start(&options("cuda:0"), &[("plugins.probe_timeout", "1s")]);
    let order = json!({"options": {"hold_devices": hold}});
    let refused = swapping.swap(&order);
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.text.contains("it hangs"), "{refused:?}");
    until_told(&swapping, &["cuda:0"]);
}
