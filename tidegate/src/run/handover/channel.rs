//! Records with file descriptors between two processes of one user, over a Unix socket that keeps records apart.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::{fs, process};

use anyhow::{Context as _, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, recvmsg,
    sendmsg, socket_with, sockopt::socket_peercred,
};
use rustix::process::geteuid;
use serde_json::Value;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};

/// One end. The other is of the same user.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
}

/// What is sent at once.
#[derive(Debug)]
pub(super) struct Record {
    pub(super) text: Value,
    pub(super) descriptors: Vec<OwnedFd>,
}

impl Channel {
    /// To whoever listens; `None` where nobody does.
    pub(super) fn connect(path: &Path) -> anyhow::Result<Option<Self>> {
        let address = SocketAddrUnix::new(path)?;
        let socket = socket()?;
        match connect(&socket, &address) {
            Ok(()) => {}
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        Self::of(socket).map(Some)
    }

    /// Over a socket that is connected.
    pub(super) fn of(socket: OwnedFd) -> anyhow::Result<Self> {
        Self::trusted(UnixStream::from_std(socket.into())?)
    }

    fn trusted(socket: UnixStream) -> anyhow::Result<Self> {
        let other = socket_peercred(&socket)?;
        ensure!(other.uid == geteuid(), "it is of another user: {}", other.uid.as_raw());
        Ok(Self { socket })
    }

    /// The same end, for another process to see when the other ends.
    pub(super) fn try_clone(&self) -> io::Result<OwnedFd> {
        self.socket.as_fd().try_clone_to_owned()
    }

    /// At most [`MAX_DESCRIPTORS`] descriptors.
    pub(super) async fn send(&self, text: &Value, descriptors: &[BorrowedFd<'_>]) -> anyhow::Result<()> {
        let text = text.to_string();
        ensure!(text.len() <= MAX_TEXT && descriptors.len() <= MAX_DESCRIPTORS, "a record is too large");
        let sending = || {
            let mut space = [MaybeUninit::uninit(); SPACE];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !descriptors.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(descriptors));
            }
            Ok(sendmsg(&self.socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL)?)
        };
        self.socket.async_io(Interest::WRITABLE, sending).await?;
        Ok(())
    }

    /// The next record; `None` once the other process closed its end, or is gone.
    pub(super) async fn receive(&self) -> anyhow::Result<Option<Record>> {
        let receiving = || {
            let mut text = vec![0; MAX_TEXT];
            let mut space = [MaybeUninit::uninit(); SPACE];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let into = &mut [IoSliceMut::new(&mut text)];
            let received = recvmsg(&self.socket, into, &mut control, RecvFlags::CMSG_CLOEXEC)?;
            let descriptors = control
                .drain()
                .filter_map(|message| match message {
                    RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                    _ => None,
                })
                .flatten()
                .collect::<Vec<_>>();
            if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
                return Err(io::Error::other("a record is too large"));
            }
            text.truncate(received.bytes);
            Ok((text, descriptors))
        };
        let (text, descriptors) = match self.socket.async_io(Interest::READABLE, receiving).await {
            Ok(record) => record,
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if text.is_empty() {
            return Ok(None);
        }
        Ok(Some(Record {
            text: serde_json::from_slice(&text).context("a record that is no JSON")?,
            descriptors,
        }))
    }

    /// Waits until the other process is gone.
    pub(super) async fn ended(&self) {
        while let Ok(Some(_)) = self.receive().await {}
    }
}

/// Where the next process knocks.
#[derive(Debug)]
pub(in crate::run) struct Door {
    listener: UnixListener,
    path: PathBuf,
}

impl Door {
    /// In the place of whatever is there: of another process, or left behind by one that is gone.
    pub(in crate::run) fn open(path: &Path) -> anyhow::Result<Self> {
        let mut fresh = path.as_os_str().to_owned();
        fresh.push(format!(".{}", process::id()));
        let fresh = PathBuf::from(fresh);
        // Of a process with the same number, in another life.
        let _ = fs::remove_file(&fresh);
        let socket = socket()?;
        bind(&socket, &SocketAddrUnix::new(&fresh)?)?;
        let opened = fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).and_then(|()| {
            listen(&socket, BACKLOG)?;
            fs::rename(&fresh, path)
        });
        if let Err(error) = opened {
            let _ = fs::remove_file(&fresh);
            return Err(error.into());
        }
        Ok(Self { listener: UnixListener::from_std(socket.into())?, path: path.to_owned() })
    }

    pub(super) async fn accept(&self) -> anyhow::Result<Channel> {
        Channel::trusted(self.listener.accept().await?.0)
    }

    /// Nobody is there any more, and nobody else took the place.
    pub(in crate::run) fn close(self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// In one record; the kernel takes 253.
pub(super) const MAX_DESCRIPTORS: usize = 64;
const SPACE: usize = rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS));
/// Bytes of one record.
const MAX_TEXT: usize = 16 << 10;
/// One process takes over at a time.
const BACKLOG: i32 = 8;

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use serde_json::json;

    use super::*;

    async fn pair(path: &Path) -> (Door, Channel, Channel) {
        let door = Door::open(path).unwrap();
        let ours = Channel::connect(path).unwrap().unwrap();
        let theirs = door.accept().await.unwrap();
        (door, ours, theirs)
    }

    #[tokio::test]
    async fn records_come_with_their_descriptors_and_the_end_is_seen() {
        let folder = tempfile::tempdir().unwrap();
        let (_door, ours, theirs) = pair(&folder.path().join("door")).await;
        let file = folder.path().join("file");
        fs::write(&file, "content").unwrap();
        let open = fs::File::open(&file).unwrap();
        ours.send(&json!({ "first": 1 }), &[open.as_fd(), open.as_fd()]).await.unwrap();
        ours.send(&json!({ "second": 2 }), &[]).await.unwrap();
        let Record { text, descriptors } = theirs.receive().await.unwrap().unwrap();
        assert_eq!((text, descriptors.len()), (json!({ "first": 1 }), 2));
        let mut text = String::new();
        fs::File::from(descriptors.into_iter().next().unwrap()).read_to_string(&mut text).unwrap();
        assert_eq!(text, "content");
        assert_eq!(theirs.receive().await.unwrap().unwrap().text, json!({ "second": 2 }));
        drop(ours);
        assert!(theirs.receive().await.unwrap().is_none());
        theirs.ended().await;
    }

    #[tokio::test]
    async fn nobody_else_can_knock_and_a_place_that_was_left_is_nobody_s() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("door");
        assert!(Channel::connect(&path).unwrap().is_none());
        let (door, ..) = pair(&path).await;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        // As after a crash: the file stays.
        drop(door);
        assert!(Channel::connect(&path).unwrap().is_none());
        let (door, ours, theirs) = pair(&path).await;
        theirs.send(&json!("again"), &[]).await.unwrap();
        assert_eq!(ours.receive().await.unwrap().unwrap().text, json!("again"));
        door.close();
        assert!(!path.exists() && Channel::connect(&path).unwrap().is_none());
    }

    #[tokio::test]
    async fn what_is_too_large_or_no_record_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let (_door, ours, theirs) = pair(&folder.path().join("door")).await;
        assert!(ours.send(&json!("x".repeat(MAX_TEXT)), &[]).await.is_err());
        let raw = ours.try_clone().unwrap();
        rustix::net::send(&raw, b"{", SendFlags::empty()).unwrap();
        assert!(theirs.receive().await.is_err());
        rustix::net::send(&raw, &vec![b' '; MAX_TEXT + 1], SendFlags::empty()).unwrap();
        assert!(theirs.receive().await.is_err());
    }
}
