//! A Unix socket's file: nobody else's, its user's (or group's) alone, and gone with the server.

use super::listen::BACKLOG;
use crate::runtime::now;
use std::fmt::Display;
use std::fs::{self, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::{UnixListener, UnixSocket, UnixStream};

/// To connect is to write: the server's own user may, and root.
const MODE_OF_USER: u32 = 0o600;
/// Its group may, too: a proxy has a user of its own.
const MODE_OF_GROUP: u32 = 0o660;
/// Another server that starts in the same folder is done with it in less than a millisecond.
const TURN_TIME_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether it is done.
const TURN_PERIOD: Duration = Duration::from_millis(5);

/// A socket that is ours; dropping it removes its file.
pub struct Socket {
    // Dropped first: as long as somebody listens, no other server takes the file for a dead one's.
    file: SocketFile,
    listener: UnixListener,
}

/// Our file in the file system.
struct SocketFile {
    path: PathBuf,
    /// Device and inode: at the same path may stand another one by now.
    id: (u64, u64),
}

impl Socket {
    /// Listens on a file, which only the server's user can connect to from the first moment. What a dead server
    /// has left there is replaced.
    ///
    /// # Errors
    /// Why not, such as a server that listens there, or a file that is no socket; says what to do.
    pub async fn bind(path: &Path) -> Result<Self, String> {
        Self::bind_in_mode(path, MODE_OF_USER).await
    }

    /// The same for the server's user and group.
    ///
    /// # Errors
    /// Those of [`bind`](Self::bind).
    pub async fn bind_for_group(path: &Path) -> Result<Self, String> {
        Self::bind_in_mode(path, MODE_OF_GROUP).await
    }

    async fn bind_in_mode(path: &Path, mode: u32) -> Result<Self, String> {
        // Held until we listen: of two servers that start at once, the second one must not take the first one's
        // file, on which nobody listens yet, for a dead one's.
        let _turn = turn(path).await?;
        clear(path).await?;
        listen(path, mode).map_err(|error| format!("it cannot be listened on: {error}"))
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.file.path
    }

    pub(super) async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }
}

/// The right to change what stands in the file's folder. A lock on the folder leaves nothing behind, and ends
/// with the process that has it.
async fn turn(path: &Path) -> Result<File, String> {
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    let wrong = |error: &dyn Display| format!("the folder {}: {error}", folder.display());
    let file = File::open(folder).map_err(|error| wrong(&error))?;
    let end = now() + TURN_TIME_MAX;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) if now() < end => tokio::time::sleep(TURN_PERIOD).await,
            Err(error) => return Err(wrong(&error)),
        }
    }
}

/// Removes what a dead server has left.
async fn clear(path: &Path) -> Result<(), String> {
    let kind = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error.to_string()),
    };
    if !kind.is_socket() {
        return Err(
            "what is there is no socket; remove it, or name a path where nothing is".to_owned(),
        );
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err("another program listens there; stop it, or name another path".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| format!("what a dead server has left cannot be removed: {error}")),
        Err(error) => Err(format!(
            "there is a socket, and it does not say whether anybody listens: {error}; remove it, or name another path"
        )),
    }
}

fn listen(path: &Path, mode: u32) -> io::Result<Socket> {
    let socket = UnixSocket::new_stream()?;
    socket.bind(path)?;
    let metadata = fs::symlink_metadata(path)?;
    let file = SocketFile {
        path: path.to_owned(),
        id: (metadata.dev(), metadata.ino()),
    };
    // The file came with the mode that the process's umask gave it. Until somebody listens, nobody connects.
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    let listener = socket.listen(BACKLOG)?;
    Ok(Socket { file, listener })
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = |metadata: fs::Metadata| (metadata.dev(), metadata.ino()) == self.id;
        if fs::symlink_metadata(&self.path).is_ok_and(is_ours)
            && let Err(error) = fs::remove_file(&self.path)
        {
            let path = self.path.display();
            tracing::warn!(%error, %path, "the socket's file could not be removed");
        }
    }
}
