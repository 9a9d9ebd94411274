//! A file or block device under load on a glommio executor, with its `DmaFile`.

use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::FutureExt;
use futures::future::{Either, LocalBoxFuture, select};
use futures::stream::{FuturesUnordered, StreamExt};
use glommio::io::{DmaBuffer, DmaFile, OpenOptions, ReadResult};
use glommio::timer::Timer;

use crate::nbd_session::Shape;
use crate::target::{Answer, Refused, Target};
use crate::workload::{Kind, Op};

/// How a request of a slot ended.
type Done = (usize, io::Result<Option<ReadResult>>);

/// A file with its slots, on the executor that opened it.
pub(crate) struct GlommioFile {
    file: Rc<DmaFile>,
    slots: Vec<Rc<DmaBuffer>>,
    bytes_max: usize,
    fua: bool,
    keep_data: bool,
    running: FuturesUnordered<LocalBoxFuture<'static, Done>>,
}

impl GlommioFile {
    /// Opens a file or block device.
    pub(crate) async fn open(path: &Path, writes: bool, shape: Shape) -> Result<Self> {
        let mut options = OpenOptions::new();
        let opened = options.read(true).write(writes).dma_open(path).await;
        let file = opened
            .map_err(io::Error::from)
            .with_context(|| format!("opening {}", path.display()))?;
        let buffer = |_| Rc::new(file.alloc_dma_buffer(shape.bytes_max.max(1)));
        Ok(Self {
            slots: (0..shape.slots).map(buffer).collect(),
            file: Rc::new(file),
            bytes_max: shape.bytes_max,
            fua: shape.fua,
            keep_data: shape.keep_data,
            running: FuturesUnordered::new(),
        })
    }

    fn ended(&mut self, (slot, result): Done, answers: &mut Vec<Answer>) {
        let outcome = result.map(|read| {
            if let (Some(read), true) = (read, self.keep_data) {
                self.buffer(slot)[..read.len()].copy_from_slice(&read);
            }
        });
        answers.push(Answer {
            slot,
            outcome: outcome.map_err(Refused::Os),
        });
    }
}

fn whole(moved: usize, wanted: usize) -> io::Result<()> {
    if moved == wanted {
        return Ok(());
    }
    Err(io::Error::other(format!("{moved} of {wanted} bytes")))
}

impl Target for GlommioFile {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        // The kernel may hold on to a buffer a little longer than its request.
        if Rc::get_mut(&mut self.slots[slot]).is_none() {
            self.slots[slot] = Rc::new(self.file.alloc_dma_buffer(self.bytes_max.max(1)));
        }
        let buffer = Rc::get_mut(&mut self.slots[slot]).expect("it is new or nobody else's");
        buffer.as_bytes_mut()
    }

    fn submit(&mut self, slot: usize, op: &Op) -> Result<()> {
        let (file, fua, at, len) = (Rc::clone(&self.file), self.fua, op.offset, op.len as usize);
        let running = match op.kind {
            Kind::Read => async move {
                let read = async {
                    let read = file.read_at_aligned(at, len).await?;
                    whole(read.len(), len).map(|()| Some(read))
                };
                (slot, read.await)
            }
            .boxed_local(),
            Kind::Write => {
                let mut buffer = Rc::clone(&self.slots[slot]);
                if len < self.bytes_max {
                    let mut part = self.file.alloc_dma_buffer(len);
                    part.as_bytes_mut()
                        .copy_from_slice(&buffer.as_bytes()[..len]);
                    buffer = Rc::new(part);
                }
                async move {
                    let write = async {
                        whole(file.write_rc_at(buffer, at).await?, len)?;
                        if fua {
                            file.fdatasync().await?;
                        }
                        Ok(None)
                    };
                    (slot, write.await)
                }
                .boxed_local()
            }
            Kind::Flush => async move {
                let flushed = file.fdatasync().await;
                (slot, flushed.map(|()| None).map_err(io::Error::from))
            }
            .boxed_local(),
            Kind::Trim | Kind::Zeroes => bail!("glommio neither trims nor zeroes a file"),
        };
        self.running.push(running);
        Ok(())
    }

    async fn turn(&mut self, patience: Duration, answers: &mut Vec<Answer>) -> Result<()> {
        if self.running.is_empty() {
            glommio::timer::sleep(patience).await;
            return Ok(());
        }
        let first = match select(self.running.next(), Timer::new(patience)).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => None,
        };
        let mut next = first;
        while let Some(done) = next {
            self.ended(done, answers);
            next = self.running.next().now_or_never().flatten();
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}
