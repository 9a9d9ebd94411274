//! One NBD connection under load on a glommio executor: its streams and waiting, our protocol.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use glommio::Task;
use glommio::net::{TcpStream, UnixStream};
use glommio::timer::Timer;

use crate::connection::{GREETING_BYTES, Greeting};
use crate::job::PATIENCE;
use crate::nbd_session::{SLICES_MAX, Session, Shape};
use crate::options::Replies;
use crate::target::{Answer, Target};
use crate::uri::Address;
use crate::workload::Op;

/// A stream of either kind; one indirect call a turn does not show.
trait Stream: AsyncRead + AsyncWrite + Unpin {}

impl<S: AsyncRead + AsyncWrite + Unpin> Stream for S {}

/// Wakes a waiting turn now and then, so that the load loop looks at its clock.
struct Ticker {
    waiting: Rc<RefCell<Option<Waker>>>,
    _task: Task<()>,
}

impl Ticker {
    fn start() -> Self {
        let waiting: Rc<RefCell<Option<Waker>>> = Rc::default();
        let theirs = Rc::clone(&waiting);
        let task = glommio::spawn_local(async move {
            loop {
                glommio::timer::sleep(PATIENCE).await;
                if let Some(waker) = theirs.borrow_mut().take() {
                    waker.wake();
                }
            }
        });
        Self {
            waiting,
            _task: task,
        }
    }

    /// Ready when there was a tick since the first look.
    fn poll(&self, looked: &mut bool, context: &TaskContext<'_>) -> Poll<()> {
        let mut waiting = self.waiting.borrow_mut();
        if *looked && waiting.is_none() {
            return Poll::Ready(());
        }
        *looked = true;
        *waiting = Some(context.waker().clone());
        Poll::Pending
    }
}

/// An NBD connection with its slots, on the executor that opened it.
pub(crate) struct GlommioNbd {
    stream: Box<dyn Stream>,
    session: Session,
    ticker: Ticker,
}

impl GlommioNbd {
    /// Connects and shakes hands.
    pub(crate) async fn open(address: &Address, replies: Replies, shape: Shape) -> Result<Self> {
        let connecting = || format!("connecting to {address}");
        let (mut stream, export): (Box<dyn Stream>, _) = match address {
            Address::Unix { socket, export } => {
                let stream = UnixStream::connect(socket).await;
                let stream = stream.map_err(io::Error::from).with_context(connecting)?;
                (Box::new(stream), export)
            }
            Address::Tcp { host, port, export } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await;
                let stream = stream.map_err(io::Error::from).with_context(connecting)?;
                stream.set_nodelay(true).map_err(io::Error::from)?;
                (Box::new(stream), export)
            }
            Address::Sealed { .. } | Address::File(_) => bail!("{address} is not for this engine"),
        };
        let mut greeting = Greeting::new(export, replies, false)?;
        let mut input = [0; GREETING_BYTES];
        loop {
            let reading = stream.read(&mut input).await;
            let len = reading.context("reading the server's handshake")?;
            let greeted = greeting.advance(&input[..len])?;
            let sending = stream.write_all(&greeted.out).await;
            sending.context("sending the handshake")?;
            if let Some(described) = greeted.export {
                return Ok(Self {
                    stream,
                    session: Session::new(described.headers, shape),
                    ticker: Ticker::start(),
                });
            }
        }
    }

    fn poll_send(&mut self, context: &mut TaskContext<'_>) -> Result<()> {
        while !self.session.all_sent() {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let count = self.session.unsent(&mut slices);
            let stream = Pin::new(&mut *self.stream);
            match stream.poll_write_vectored(context, &slices[..count]) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(len)) => self.session.advance(len),
                Poll::Ready(Err(error)) if closed(&error) => self.session.abandon(),
                Poll::Ready(Err(error)) => return Err(error).context("sending requests"),
            }
        }
        Ok(())
    }

    fn poll_receive(&mut self, context: &mut TaskContext<'_>) -> Poll<Result<()>> {
        let stream = Pin::new(&mut *self.stream);
        stream
            .poll_read(context, self.session.room())
            .map(|read| match read {
                Ok(len) => self.session.received(len),
                Err(error) if closed(&error) => bail!("the server closed the connection"),
                Err(error) => Err(error).context("receiving replies"),
            })
    }
}

fn closed(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset};
    matches!(error.kind(), BrokenPipe | ConnectionReset)
}

impl Target for GlommioNbd {
    fn buffer(&mut self, slot: usize) -> &mut [u8] {
        self.session.buffer(slot)
    }

    fn submit(&mut self, slot: usize, op: &Op) -> Result<()> {
        self.session.submit(slot, op)
    }

    async fn turn(&mut self, patience: Duration, answers: &mut Vec<Answer>) -> Result<()> {
        glommio::yield_if_needed().await;
        let mut timer = (patience < PATIENCE).then(|| Timer::new(patience));
        let mut looked = false;
        poll_fn(|context| {
            self.poll_send(context)?;
            if let Poll::Ready(received) = self.poll_receive(context) {
                return Poll::Ready(received);
            }
            match &mut timer {
                Some(timer) => Pin::new(timer).poll(context).map(|_| Ok(())),
                None => self.ticker.poll(&mut looked, context).map(Ok),
            }
        })
        .await?;
        self.session.parse(answers)
    }

    async fn finish(&mut self) -> Result<()> {
        let goodbye = self.session.goodbye();
        let sending = self.stream.write_all(&goodbye).await;
        sending.context("disconnecting")
    }
}
