//! The border as a file: `layout.txt` holds every size, offset, number and name that a plugin built
//! yesterday relies on. A change of it is a change of the contract, and shows in the diff.

use abi_stable::StableAbi;
use abi_stable::library::{ROOT_MODULE_LOADER_NAME, RootModule};
use abi_stable::std_types::{RResult, RVec};
use abi_stable::type_layout::{TLData, TLField, TypeLayout};
use backend_api::abi::{
    ABI_MAJOR, ABI_MINOR, AbiBackendBox, AbiBatch, AbiFault, AbiScores, AbiStamp, AbiWorkerBox,
    Fact, Facts, PluginModule, PluginModuleRef, STAMP_MAGIC, STAMP_SYMBOL,
};
use backend_api::{
    Description, DeviceState, FaultCode, OpenRequest, Phases, PluginCard, RowControl, RowStatus,
};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::mem::{align_of, offset_of, size_of};
use std::path::Path;

/// A type's size and alignment, and each field's offset. The pattern makes the list complete: a field
/// that is not named here does not compile.
macro_rules! layout {
    ($out:ident, $name:ident { $($field:ident),* }) => {{
        let _complete = |value: $name| { let $name { $($field: _),* } = value; };
        size::<$name>($out, stringify!($name));
        $($out.push(format!("{:6}  {}", offset_of!($name, $field), stringify!($field)));)*
    }};
}

#[test]
fn the_border_is_what_it_was() {
    let mut out = vec![
        "# What crosses, on 64-bit targets. Written by BLESS=1 cargo test -p backend-api."
            .to_owned(),
    ];
    names(&mut out);
    structs(&mut out);
    entries(&mut out);
    numbers(&mut out);
    facts(&mut out);
    check_contract(
        &Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/layout.txt"),
        &(out.join("\n") + "\n"),
    );
}

#[track_caller]
fn check_contract(path: &Path, generated: &str) {
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(path, generated).expect("the contract can be written");
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let differs = committed
        .lines()
        .zip(generated.lines())
        .find(|(committed, generated)| committed != generated);
    assert!(
        committed == generated,
        "{} is stale, first at {differs:?}: is every plugin out there still right? then run with BLESS=1",
        path.display()
    );
}

fn names(out: &mut Vec<String>) {
    heading(out, "names");
    out.push(format!("interface       {ABI_MAJOR}.{ABI_MINOR}"));
    out.push(format!("stamp           {STAMP_SYMBOL}"));
    out.push(format!("magic           {STAMP_MAGIC:#018x}"));
    out.push(format!("root module     {ROOT_MODULE_LOADER_NAME}"));
    out.push(format!(
        "module version  {}",
        PluginModuleRef::VERSION_STRINGS
    ));
}

fn structs(out: &mut Vec<String>) {
    heading(out, "structs (frozen): size, alignment, offsets");
    layout!(
        out,
        AbiStamp {
            magic,
            major,
            minor,
            host_minor_min,
            reserved
        }
    );
    layout!(out, Fact { key, value });
    size::<Facts>(out, "Facts");
    layout!(out, AbiFault { code, text });
    layout!(
        out,
        AbiBatch {
            input_ids,
            type_ids,
            offsets,
            prefix_lens,
            controls
        }
    );
    layout!(
        out,
        RowControl {
            deadline_us,
            wanted
        }
    );
    layout!(out, AbiScores { logits, statuses });
    layout!(
        out,
        Phases {
            prepare_us,
            compute_us,
            collect_us,
            reserved
        }
    );
}

/// What is called: the root module's functions and the two objects' methods, in order.
fn entries(out: &mut Vec<String>) {
    heading(out, "entries (append only)");
    layout!(out, PluginModule { card, open });
    size::<AbiBackendBox>(out, "AbiBackendBox");
    size::<AbiWorkerBox>(out, "AbiWorkerBox");
    size::<RResult<Facts, AbiFault>>(out, "RResult<Facts, AbiFault>");
    size::<RResult<AbiBackendBox, AbiFault>>(out, "RResult<AbiBackendBox, AbiFault>");
    size::<RResult<AbiWorkerBox, AbiFault>>(out, "RResult<AbiWorkerBox, AbiFault>");
    size::<RResult<Phases, AbiFault>>(out, "RResult<Phases, AbiFault>");
    size::<RResult<RVec<Facts>, AbiFault>>(out, "RResult<RVec<Facts>, AbiFault>");
    let roots = [
        ("PluginModule", <PluginModuleRef as StableAbi>::LAYOUT),
        ("AbiBackend", <AbiBackendBox as StableAbi>::LAYOUT),
        ("AbiWorker", <AbiWorkerBox as StableAbi>::LAYOUT),
    ];
    for (name, root) in roots {
        let table = function_table(root).expect("an interface of ours leads to a table of ours");
        let TLData::PrefixType(prefix) = table.data() else {
            panic!("{name}'s table may not grow")
        };
        out.push(format!(
            "{name}: {} bytes, the first {} fields are in every version",
            table.size(),
            prefix.first_suffix_field
        ));
        for field in prefix.fields.iter() {
            out.push(format!("        {}{}", field.name(), signature(&field)));
        }
    }
}

/// The first extensible type of this crate that is reached from `from`.
fn function_table(from: &'static TypeLayout) -> Option<&'static TypeLayout> {
    if from.is_prefix_kind() && from.package() == env!("CARGO_PKG_NAME") {
        return Some(from);
    }
    let fields = from
        .get_fields()
        .map(|fields| fields.to_vec())
        .unwrap_or_default();
    fields
        .into_iter()
        .chain(from.phantom_fields().iter())
        .find_map(|field| function_table(field.layout()))
}

/// `: fn(params)->result` of a field that is a function. abi_stable writes types without their arguments
/// and lifetimes on a line of their own, which is left out.
fn signature(field: &TLField) -> String {
    let text: String = field
        .function_range()
        .iter()
        .map(|function| format!(": {function}"))
        .collect();
    text.lines().next().unwrap_or_default().to_owned()
}

fn numbers(out: &mut Vec<String>) {
    heading(out, "fault codes: any other number reads as Internal");
    let codes = (0..1_000).map(|number| (FaultCode::from_number(number), number));
    out.extend(
        codes
            .filter(|&(code, number)| code as u32 == number)
            .map(|(code, number)| format!("{number:6}  {code:?}  {}", code.name())),
    );
    heading(out, "row statuses: any other number reads as Failed");
    let statuses = (0..=u8::MAX).map(|number| (RowStatus::from_number(number), number));
    out.extend(
        statuses
            .filter(|&(status, number)| status as u8 == number)
            .map(|(status, number)| format!("{number:6}  {status:?}")),
    );
}

/// The texts that cross are named like the fields of these structs.
fn facts(out: &mut Vec<String>) {
    heading(
        out,
        "facts and their defaults (append only; an unknown name is passed over)",
    );
    defaults(out, PluginCard::default());
    defaults(out, OpenRequest::default());
    defaults(out, Description::default());
    defaults(out, DeviceState::default());
}

fn defaults(out: &mut Vec<String>, value: impl Debug) {
    out.extend(
        format!("{value:#?}")
            .lines()
            .filter(|line| *line != "}")
            .map(|line| line.replace(" {", "")),
    );
}

fn heading(out: &mut Vec<String>, text: &str) {
    out.push(format!("\n## {text}"));
}

fn size<T>(out: &mut Vec<String>, name: &str) {
    out.push(format!(
        "{name}: {} bytes, aligned to {}",
        size_of::<T>(),
        align_of::<T>()
    ));
}

// === what a newer other side may say ===

/// abi_stable takes the types of crates whose major versions differ for different types, whatever they
/// are: with a version of its own the crate would refuse plugins that the interface allows.
#[test]
fn the_crates_version_is_the_interfaces() {
    let version = [
        env!("CARGO_PKG_VERSION_MAJOR"),
        env!("CARGO_PKG_VERSION_MINOR"),
    ];
    assert_eq!(version, [ABI_MAJOR.to_string(), ABI_MINOR.to_string()]);
}

/// Whoever looks for what a version brought finds it on the page.
#[test]
fn every_version_is_on_the_page() {
    let page = include_str!("../README.md");
    for minor in 0..=ABI_MINOR {
        let row = format!("\n| {ABI_MAJOR}.{minor} | ");
        assert!(page.contains(&row), "README.md has no row {row:?}");
    }
}

#[test]
fn unknown_numbers_read_as_the_general_case() {
    let known: BTreeMap<u8, RowStatus> = [0, 1, 2, 3, 4, 255]
        .map(|number| (number, RowStatus::from_number(number)))
        .into();
    for number in 0..=u8::MAX {
        let expected = known.get(&number).copied().unwrap_or(RowStatus::Failed);
        assert_eq!(
            RowStatus::from_number(number),
            expected,
            "row status {number}"
        );
    }
    for number in [0, 10, 1_000, u32::MAX] {
        assert_eq!(
            FaultCode::from_number(number),
            FaultCode::Internal,
            "fault code {number}"
        );
    }
}
