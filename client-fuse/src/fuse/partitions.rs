//! Looking for what is only known when the disk has been read, and listing it: tasks, because that may
//! have to wait.

use std::ffi::OsStr;
use std::sync::Arc;

use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, ReplyAttr, ReplyDirectory, ReplyEntry,
};

use super::{Adapter, CONSTANT, errno};
use crate::fetch::Source;
use crate::fs::{ImageFs, Kind, Node};

/// How a partition looks that is known.
fn attributes<S: Source>(fs: &ImageFs<S>, node: Node, like_the_disk: FileAttr) -> FileAttr {
    let size = fs.length(node);
    FileAttr {
        ino: INodeNo(node.number()),
        size,
        blocks: size.div_ceil(512),
        perm: 0o444,
        ..like_the_disk
    }
}

impl<S: Source> Adapter<S> {
    /// Answers for a name in the root that is none of the fixed ones.
    pub(super) fn look_up_partition(&self, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = name.to_str().map(str::to_owned) else {
            return reply.error(Errno::ENOENT);
        };
        let fs = Arc::clone(&self.fs);
        let like_the_disk = self.attributes(Node::Disk);
        self.tasks.spawn(async move {
            match fs.partition(&name).await {
                Ok(Some(node)) => {
                    let attributes = attributes(&fs, node, like_the_disk);
                    reply.entry(&CONSTANT, &attributes, Generation(0));
                }
                Ok(None) => reply.error(Errno::ENOENT),
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::error!(name, error = cause, "a partition cannot be looked for");
                    reply.error(errno(&error));
                }
            }
        });
    }

    /// Answers how a partition looks that the kernel knows.
    pub(super) fn look_at_partition(&self, node: Node, reply: ReplyAttr) {
        let fs = Arc::clone(&self.fs);
        let like_the_disk = self.attributes(Node::Disk);
        self.tasks.spawn(async move {
            match fs.know(node).await {
                Ok(()) => reply.attr(&CONSTANT, &attributes(&fs, node, like_the_disk)),
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::error!(?node, error = cause, "a partition cannot be looked at");
                    reply.error(errno(&error));
                }
            }
        });
    }

    /// Lists a directory from its entry number `offset` on.
    pub(super) fn list(&self, node: Node, offset: u64, mut reply: ReplyDirectory) {
        let fixed = [(".", node), ("..", node.parent())];
        let fixed = fixed.iter().chain(node.children());
        let mut entries: Vec<(INodeNo, FileType, String)> = fixed
            .map(|(name, entry)| {
                let kind = match entry.kind() {
                    Kind::Directory => FileType::Directory,
                    Kind::File => FileType::RegularFile,
                };
                (self.number(*entry), kind, (*name).to_owned())
            })
            .collect();
        let fs = Arc::clone(&self.fs);
        self.tasks.spawn(async move {
            if node == Node::Root {
                let number = |node: Node| INodeNo(node.number());
                let partitions = fs.partitions().await.into_iter();
                entries.extend(
                    partitions.map(|(name, node)| (number(node), FileType::RegularFile, name)),
                );
            }
            let skip = usize::try_from(offset).unwrap_or(usize::MAX);
            for (position, (number, kind, name)) in (1..).zip(entries).skip(skip) {
                if reply.add(number, position, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }
}
