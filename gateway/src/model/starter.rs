//! The small model built into the program, so that the first start needs no network.
//!
//! Plugins open folders, so its files are written once into a folder named by their content.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::{Cause, Folder, ModelError, Wanted};

/// Mode bits by which the group and everybody may write.
const OTHERS_WRITE: u32 = 0o022;
/// Bytes compared at a time against what is on disk.
const COMPARE_BYTES: usize = 64 * 1024;

const FILES: [(&str, &[u8]); 4] = [
    (
        "config.json",
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/starter/config.json")),
    ),
    (
        "tokenizer.json",
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/starter/tokenizer.json"
        )),
    ),
    (
        "tokenizer_config.json",
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/starter/tokenizer_config.json"
        )),
    ),
    (
        "model.safetensors",
        include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/starter/model.safetensors"
        )),
    ),
];

/// The starter's folder under `own_dir`, written if it is not there or not what it should be.
/// Where that cannot be written, it goes to the system's temporary folder with a warning.
pub(super) fn install(own_dir: &Path) -> Result<Folder, ModelError> {
    install_files(&FILES, own_dir, &std::env::temp_dir())
}

fn install_files(
    files: &[(&str, &[u8])],
    own_dir: &Path,
    shared_dir: &Path,
) -> Result<Folder, ModelError> {
    let leaf = format!("starter-{}", content_hash(files));
    let folder = |path, warnings| Folder {
        path,
        name: "starter".into(),
        revision: None,
        wanted: Wanted::default(),
        warnings,
    };
    let own = own_dir.join(&leaf);
    let Err(error) = unpack(files, &own) else {
        return Ok(folder(own, Vec::new()));
    };
    let elsewhere = private_dir(shared_dir).and_then(|root| {
        let path = root.join(&leaf);
        unpack(files, &path).map(|()| path)
    });
    match elsewhere {
        Ok(path) => {
            let warning = format!("the starter model is not kept in the cache: {error}");
            Ok(folder(path, vec![warning]))
        }
        Err(also) => Err(ModelError {
            problem: format!("{}; nor elsewhere: {}", error.problem, also.problem),
            ..error
        }),
    }
}

/// A folder of this user's in one that others write as well. What lies in it is opened by plugins, so
/// nobody else may have made it or be able to change it after it was compared.
fn private_dir(shared: &Path) -> Result<PathBuf, ModelError> {
    let disk = |doing, path: &Path, error: &std::io::Error| ModelError::disk(doing, path, error);
    let fresh = shared.join(format!(".crossgate-{:016x}", super::hub::noise()));
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&fresh)
        .map_err(|error| disk("create", &fresh, &error))?;
    // The system says whose a new folder is; nothing in std says who we are.
    let owner = fs::metadata(&fresh).map(|fresh| fresh.uid());
    let named = owner.and_then(|uid| {
        let path = shared.join(format!("crossgate-{uid}"));
        // Fails where there is one with something in it, which is then looked at.
        let _ = fs::rename(&fresh, &path);
        let found = fs::symlink_metadata(&path)?;
        let is_ours = found.is_dir() && found.uid() == uid && found.mode() & OTHERS_WRITE == 0;
        Ok((path, is_ours))
    });
    let _ = fs::remove_dir(&fresh);
    match named {
        Ok((path, true)) => Ok(path),
        Ok((path, false)) => Err(ModelError::new(
            Cause::Disk,
            format!(
                "{} belongs to another user or others can write it",
                path.display()
            ),
            "remove it, or name another place with --cache-dir",
        )),
        Err(error) => Err(disk("read", shared, &error)),
    }
}

/// Leaves `path` holding exactly these files, or an error. Another process may do the same.
fn unpack(files: &[(&str, &[u8])], path: &Path) -> Result<(), ModelError> {
    if is_whole(files, path) {
        return Ok(());
    }
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|error| ModelError::disk("create", parent, &error))?;
    // Written aside and renamed, so that nobody opens half a model.
    let aside = parent.join(format!(
        ".starter-{}-{:016x}",
        std::process::id(),
        super::hub::noise()
    ));
    fs::create_dir(&aside).map_err(|error| ModelError::disk("create", &aside, &error))?;
    let written = write_all(files, &aside).and_then(|()| publish(files, &aside, path));
    // Gone if the rename succeeded; what is left otherwise is rubbish.
    let _ = fs::remove_dir_all(&aside);
    written
}

fn write_all(files: &[(&str, &[u8])], folder: &Path) -> Result<(), ModelError> {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::write(&path, bytes).map_err(|error| ModelError::disk("write", &path, &error))?;
    }
    Ok(())
}

fn publish(files: &[(&str, &[u8])], aside: &Path, path: &Path) -> Result<(), ModelError> {
    let Err(error) = fs::rename(aside, path) else {
        return Ok(());
    };
    // Either another process was faster, or what is there is broken and must make room.
    if is_whole(files, path) {
        return Ok(());
    }
    if path.is_dir() && fs::remove_dir_all(path).is_ok() && fs::rename(aside, path).is_ok() {
        return Ok(());
    }
    Err(ModelError::disk("rename a folder to", path, &error))
}

/// Compares content, not only sizes: about 1 ms for 10 MB that the system has in memory, and a
/// shared temporary folder may hold what somebody else put there.
fn is_whole(files: &[(&str, &[u8])], folder: &Path) -> bool {
    files
        .iter()
        .all(|(name, bytes)| holds(&folder.join(name), bytes).unwrap_or(false))
}

fn holds(path: &Path, bytes: &[u8]) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    if file.metadata()?.len() != bytes.len() as u64 {
        return Ok(false);
    }
    let mut buffer = vec![0; COMPARE_BYTES];
    for want in bytes.chunks(COMPARE_BYTES) {
        let got = &mut buffer[..want.len()];
        file.read_exact(got)?;
        if got != want {
            return Ok(false);
        }
    }
    Ok(true)
}

fn content_hash(files: &[(&str, &[u8])]) -> String {
    let mut hasher = blake3::Hasher::new();
    for (name, bytes) in files {
        hasher
            .update(name.as_bytes())
            .update(&(bytes.len() as u64).to_le_bytes())
            .update(bytes);
    }
    hasher.finalize().to_hex()[..16].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    const TWO: [(&str, &[u8]); 2] = [("a", b"alpha"), ("b", b"")];

    fn install_in(own_dir: &Path) -> Result<Folder, ModelError> {
        install_files(&TWO, own_dir, Path::new("/no/such/folder"))
    }

    #[test]
    fn what_is_broken_is_written_again() {
        let cache = tempfile::tempdir().unwrap();
        let folder = install_in(cache.path()).unwrap();
        let a = folder.path.join("a");
        for damage in [&b"alpha"[..], b"alphb", b"alp", b"alphaa"] {
            fs::write(&a, damage).unwrap();
            assert_eq!(install_in(cache.path()).unwrap(), folder);
            assert_eq!(fs::read(&a).unwrap(), b"alpha", "after {damage:?}");
        }
        fs::remove_file(&a).unwrap();
        install_in(cache.path()).unwrap();
        assert_eq!(fs::read(&a).unwrap(), b"alpha");
        // Nothing is left of the folders written aside.
        assert_eq!(
            fs::read_dir(folder.path.parent().unwrap()).unwrap().count(),
            1
        );
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_replaced_and_named() {
        let cache = tempfile::tempdir().unwrap();
        // A file where a folder should be refuses even root, unlike a read-only folder.
        let blocked = cache.path().join("file");
        fs::write(&blocked, "").unwrap();
        let folder = install_files(&TWO, &blocked, cache.path()).unwrap();
        assert!(folder.path.starts_with(cache.path()));
        assert_eq!(folder.warnings.len(), 1);
        let error = install_in(&blocked).unwrap_err().to_string();
        for place in ["file", "/no/such/folder"] {
            assert!(error.contains(place), "{error} does not name {place}");
        }
    }

    #[test]
    fn a_shared_place_holds_only_what_is_ours() {
        let shared = tempfile::tempdir().unwrap();
        let private = private_dir(shared.path()).unwrap();
        assert_eq!(fs::metadata(&private).unwrap().mode() & 0o777, 0o700);
        fs::write(private.join("file"), "").unwrap();
        assert_eq!(private_dir(shared.path()).unwrap(), private);
        assert!(private.join("file").is_file());

        let check_refused = |what: &str| {
            let error = private_dir(shared.path()).unwrap_err().to_string();
            let place = private.display().to_string();
            assert!(error.contains(&place), "{what}: {error}");
            // Nothing is left of the attempt.
            let n_left = fs::read_dir(shared.path()).unwrap().count();
            assert!(n_left <= 2, "{what}: {n_left} left");
        };
        fs::set_permissions(&private, fs::Permissions::from_mode(0o777)).unwrap();
        check_refused("writable by all");
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
        // Only root may give a folder away.
        if std::os::unix::fs::chown(&private, Some(12_345), None).is_ok() {
            check_refused("another user's");
        }
        fs::rename(&private, shared.path().join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("elsewhere", &private).unwrap();
        check_refused("a link");
    }

    #[test]
    fn the_embedded_model_is_one() {
        let cache = tempfile::tempdir().unwrap();
        let folder = install(cache.path()).unwrap();
        let info = super::super::ModelInfo::read(&folder).unwrap();
        assert_eq!(info.labels.len(), 1);
        assert!(info.warnings.is_empty(), "{:?}", info.warnings);
    }
}
