//! A backend in a directory: local disk, or a mount shared with other appliances.
//!
//! All file operations run on the backend's own threads, so that a hung mount blocks nobody else;
//! the futures work under any executor.

mod open_files;
mod pool;
mod tree;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::{Backend, BoxFuture, Listed, Probe, Put};
use crate::error::Result;
use crate::object::{ChunkKey, ObjectKey};

pub use open_files::LocalFile;

use pool::Pool;
use tree::Tree;

/// Priority of putting threads on machines of one or two CPUs.
const PUT_NICE_WHEN_SHARED: i32 = 10;

/// Sizes of a [`DirBackend`].
#[derive(Clone, Copy, Debug)]
pub struct DirOptions {
    /// Threads for reads, so that a cold read never waits behind puts.
    pub read_threads: usize,
    /// Threads for puts, deletes and lists.
    pub write_threads: usize,
    /// Operations that may wait for each kind of thread; one more fails as `Transient`.
    pub queue: usize,
}

impl Default for DirOptions {
    fn default() -> Self {
        Self {
            read_threads: 4,
            write_threads: 4,
            queue: 1024,
        }
    }
}

/// Objects as files below a directory.
pub struct DirBackend {
    tree: Arc<Tree>,
    reads: Pool,
    writes: Pool,
}

impl DirBackend {
    /// Opens `root` (created if only its last part is missing), removes what crashed writers left.
    pub fn open(root: &Path) -> Result<Self> {
        Self::with_options(root, DirOptions::default())
    }

    /// As [`DirBackend::open`], with other sizes.
    pub fn with_options(root: &Path, options: DirOptions) -> Result<Self> {
        Self::over(Tree::open(root)?, options)
    }

    fn over(tree: Tree, options: DirOptions) -> Result<Self> {
        let (reads, writes) = (options.read_threads, options.write_threads);
        // Where there are no CPUs to spare, clients come before puts.
        let shared = std::thread::available_parallelism().is_ok_and(|cpus| cpus.get() <= 2);
        let nice = if shared { PUT_NICE_WHEN_SHARED } else { 0 };
        let tree = if shared { tree.past_page_cache() } else { tree };
        Ok(Self {
            tree: Arc::new(tree),
            reads: Pool::start("dir-read", reads, options.queue, 0)?,
            writes: Pool::start("dir-write", writes, options.queue, nice)?,
        })
    }

    fn run<'a, T: Send + 'static>(
        &'a self,
        pool: &'a Pool,
        key: &'a ObjectKey,
        work: impl FnOnce(&Tree, &ObjectKey) -> Result<T> + Send + 'static,
    ) -> BoxFuture<'a, Result<T>> {
        let tree = self.tree.clone();
        let key = key.clone();
        pool.run(move || work(&tree, &key))
    }
}

impl Backend for DirBackend {
    fn put_if_absent<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<Put>> {
        self.run(&self.writes, key, move |tree, key| {
            tree.put_if_absent(key, &body)
        })
    }

    fn put<'a>(&'a self, key: &'a ObjectKey, body: Bytes) -> BoxFuture<'a, Result<()>> {
        self.run(&self.writes, key, move |tree, key| tree.put(key, &body))
    }

    fn get<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Bytes>> {
        self.run(&self.reads, key, Tree::get)
    }

    fn get_range<'a>(
        &'a self,
        key: &'a ObjectKey,
        offset: u64,
        len: u64,
    ) -> BoxFuture<'a, Result<Bytes>> {
        self.run(&self.reads, key, move |tree, key| {
            tree.get_range(key, offset, len)
        })
    }

    fn head<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<Option<u64>>> {
        self.run(&self.reads, key, Tree::head)
    }

    fn list<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        max: usize,
    ) -> BoxFuture<'a, Result<Vec<Listed>>> {
        let (tree, prefix) = (self.tree.clone(), prefix.to_owned());
        let after = after.map(ToOwned::to_owned);
        self.writes
            .run(move || tree.list(&prefix, after.as_deref(), max))
    }

    fn delete<'a>(&'a self, key: &'a ObjectKey) -> BoxFuture<'a, Result<()>> {
        self.run(&self.writes, key, Tree::delete)
    }

    fn room_for_data(&self, bytes: u64) -> BoxFuture<'_, Result<()>> {
        let tree = self.tree.clone();
        self.writes.run(move || tree.room_for_data(bytes))
    }

    fn probe(&self) -> BoxFuture<'_, Result<Probe>> {
        let tree = self.tree.clone();
        self.writes.run(move || tree.probe())
    }

    fn local_file(&self, key: &ChunkKey) -> Option<LocalFile> {
        self.tree.open_files.get(key)
    }

    fn describe(&self) -> String {
        format!("dir:{}", self.tree.root().display())
    }
}

#[cfg(test)]
mod tests;
